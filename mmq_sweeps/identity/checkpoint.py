"""Where a checkpoint lies and which weights it holds. Imports no torch: cells are named before any model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.contents import content_digest, folder_digest

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
PINNED = "sha256:"
# What ``from_pretrained`` never reads: texts and pictures for people, logs, and weights of other frameworks.
UNREAD = (
    ".md",
    ".png",
    ".jpg",
    ".jpeg",
    ".gif",
    ".webp",
    ".pdf",
    ".log",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".gguf",
    ".pth",
)
UNREAD_NAMES = ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY", "requirements.txt", "README")
# How a checkpoint says that it is quantized: under these keys of config.json, at any depth, or in files beside it, as
# auto-gptq, autoawq and modelopt write them.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# The types of safetensors that full-precision weights are stored in.
FULL_PRECISION_TYPES = ("F64", "F32", "F16", "BF16")


def checkpoint_path(checkpoint: str) -> Path | str:
    """A folder, where the checkpoint is one (``embedded/NAME`` comes with the package), else the name on the hub."""
    if checkpoint.startswith("embedded/"):
        return Path(__file__).resolve().parents[1] / "models" / checkpoint
    looks_like_path = checkpoint.startswith((".", "/", "~")) or Path(checkpoint).exists()
    return Path(checkpoint).expanduser().absolute() if looks_like_path else checkpoint


def pinned_revision(config: Mapping[str, Any]) -> str | None:
    """The revision that names a model's weights: of a folder their digest, of the hub the commit.

    So a folder whose weights change is another model, and nothing that was computed with the old ones is used. A branch of
    the hub, or none, becomes the commit that it stands for: in the cache, else on the hub; if neither can be asked it
    stays as it is configured.
    """
    folder, revision = checkpoint_path(config["checkpoint"]), config["revision"]
    if not isinstance(folder, Path):
        return commit_of(folder, revision) or revision
    if revision is not None or not weight_files(folder):
        named: str | None = revision
        return named
    return PINNED + weights_digest(folder)


def files_digest(config: Mapping[str, Any]) -> str | None:
    """The digest of what a checkpoint's folder holds beside weights: configuration, processor, tokenizer, chat template ...

    Any file that is not known to be without effect counts. ``None`` for a checkpoint of the hub, whose commit names all of
    its files.
    """
    folder = checkpoint_path(config["checkpoint"])
    if not isinstance(folder, Path) or not folder.is_dir():
        return None
    files = other_files(folder)
    return folder_digest(folder, files) if files else None


def other_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that may change a result, weights aside; of its folders only chat templates'."""
    weights = set(weight_files(folder))
    inside = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    return sorted(path for path in inside if path.is_file() and path not in weights and not _without_effect(path))


def _without_effect(path: Path) -> bool:
    return path.name.startswith(".") or path.name in UNREAD_NAMES or path.suffix.lower() in UNREAD


@lru_cache(maxsize=64)
def commit_of(name: str, revision: str | None) -> str | None:
    """The commit that ``revision`` of a checkpoint of the hub stands for; ``None`` if it is neither cached nor to be had."""
    # Only those who name a checkpoint of the hub wait for this import.
    from mmq_sweeps.identity.hub import cached_commit, current_commit

    return cached_commit(name, revision) or current_commit(name, revision)


def quantized_already(name: str, values: Mapping[str, Any], folder: Path | None) -> str | None:
    """A sentence if the checkpoint ``name`` is quantized; by the ``values`` of its config.json and the files in ``folder``.

    transformers would dequantize some of these silently (huggingface/transformers#47145), and fail on others.
    """
    said = _quantization(values, "")
    if said is None and folder is not None:
        said = next(filter(None, (_quantization_file(folder / file) for file in QUANTIZATION_FILES)), None)
        said = said or _stored_types(folder)
    if said is None:
        return None
    return (
        f"model.checkpoint={name}: is quantized already, {said}; cells measure what quantizing costs from full precision, so "
        "give the checkpoint that this one was made from"
    )


def _quantization(values: Mapping[str, Any], path: str) -> str | None:
    for key, value in values.items():
        if key in QUANTIZATION_KEYS and value:
            return f"by {_quantization_method(value)} ({path}{key} in its config.json)"
        if isinstance(value, Mapping) and (found := _quantization(value, f"{path}{key}.")):
            return found
    return None


def _quantization_file(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = {}
    return f"by {_quantization_method(content)} ({path.name} beside its config.json)"


def _quantization_method(values: Any) -> str:
    if not isinstance(values, Mapping):
        return "an unnamed method"
    values = {**values, **values.get("quantization", {})}  # modelopt's are a level below
    named = values.get("quant_method") or values.get("quant_algo") or values.get("format")
    if named is None and any(key.endswith(("load_in_8bit", "load_in_4bit")) for key in values):
        named = "bitsandbytes"
    bits = values.get("bits", values.get("w_bit"))
    return f"{named or 'an unnamed method'}{f' with {bits} bits' if bits else ''}"


def _stored_types(folder: Path) -> str | None:
    for path in sorted(folder.glob("*.safetensors")):
        for name, about in _header(path).items():
            if name.endswith(".weight") and about["dtype"] not in FULL_PRECISION_TYPES:
                return f"since {path.name} stores {name} as {about['dtype']}"
    return None


def _header(path: Path) -> dict[str, Any]:
    """The names, types and shapes of a safetensors file; empty if it is damaged, which reading its weights will say."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            return {}
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except ValueError:
            return {}
    header.pop("__metadata__", None)
    return header


def weight_files(folder: Path) -> list[Path]:
    return sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """Sixteen hexadecimal digits for the contents of the folder's weight files; of one file, those of its SHA-256."""
    return content_digest(weight_files(folder))
