"""Locate a checkpoint and identify its weights. Imports no torch: cells get their ids before any model is loaded."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.contents import content_digest, folder_digest

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
PINNED = "sha256:"
# Files that ``from_pretrained`` never reads: texts and pictures, logs, and weights of other frameworks.
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
# A quantized checkpoint has such a key in config.json, at any depth, or such a file beside it (auto-gptq, autoawq,
# modelopt).
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# Full-precision dtypes of safetensors, and of pickled weights.
FULL_PRECISION_TYPES = ("F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16")
# Dtypes that only quantized values have, under any name; others may be tables of positions.
QUANTIZED_TYPES = ("F8", "F6", "F4", "I8", "float8", "int8")


def checkpoint_path(checkpoint: str) -> Path | str:
    """Resolve a checkpoint to a folder (``embedded/NAME`` comes with the package), or return its name on the hub."""
    if checkpoint.startswith("embedded/"):
        return Path(__file__).resolve().parents[1] / "models" / checkpoint
    looks_like_path = checkpoint.startswith((".", "/", "~")) or Path(checkpoint).exists()
    return Path(checkpoint).expanduser().absolute() if looks_like_path else checkpoint


def pinned_revision(config: Mapping[str, Any]) -> str | None:
    """Return a revision that identifies a model's weights: their digest for a folder, the commit for the hub.

    A folder whose weights change is therefore a different model, and results of the old weights are not reused. A branch of
    the hub, or no revision, is resolved to its commit from the local cache, else from the hub; if both fail it is returned
    as configured. A revision configured for a folder is returned unchanged, as it is for a folder without weights.
    """
    folder, revision = checkpoint_path(config["checkpoint"]), config["revision"]
    if not isinstance(folder, Path):
        return commit_of(folder, revision) or revision
    if revision is not None or not weight_files(folder):
        named: str | None = revision
        return named
    return PINNED + weights_digest(folder)


def files_digest(config: Mapping[str, Any]) -> str | None:
    """Digest the files beside the weights in a checkpoint's folder: configuration, processor, tokenizer, chat template ...

    Every file counts unless it is known to have no effect. Returns None for a checkpoint of the hub, whose commit covers
    all files.
    """
    folder = checkpoint_path(config["checkpoint"])
    if not isinstance(folder, Path) or not folder.is_dir():
        return None
    files = other_files(folder)
    return folder_digest(folder, files) if files else None


def other_files(folder: Path) -> list[Path]:
    """List the files beside the weights that may change a result; the only subfolder read is that of chat templates."""
    weights = set(weight_files(folder))
    inside = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    return sorted(path for path in inside if path.is_file() and path not in weights and not _without_effect(path))


def _without_effect(path: Path) -> bool:
    return path.name.startswith(".") or path.name in UNREAD_NAMES or path.suffix.lower() in UNREAD


@lru_cache(maxsize=64)
def commit_of(name: str, revision: str | None) -> str | None:
    """Resolve a revision of a hub checkpoint to its commit; None if it is not cached and the hub gives no answer."""
    # A slow import, needed only for checkpoints of the hub.
    from mmq_sweeps.identity.hub import cached_commit, current_commit

    return cached_commit(name, revision) or current_commit(name, revision)


def quantization_method(folder: Path | str) -> str | None:
    """Return the method by which a folder's weights are quantized, as transformers reads it from config.json; else None.

    None as well for a checkpoint of the hub, and for one whose weights are not in safetensors.
    """
    if not isinstance(folder, Path) or not (folder / "config.json").is_file():
        return None
    if any(path.suffix != ".safetensors" for path in weight_files(folder)):
        return None
    try:
        values = json.loads((folder / "config.json").read_text())
    except ValueError:
        return None  # Loading it reports the error.
    return method_of(values.get(QUANTIZATION_KEYS[0]) if isinstance(values, Mapping) else None)


def method_of(values: Any) -> str | None:
    """Return the method that the value of a ``quantization_config`` names, in small letters; None if it names none."""
    if not isinstance(values, Mapping) or not values:
        return None
    if any(values.get(key) for key in ("load_in_8bit", "load_in_4bit")):
        return "bitsandbytes"
    named = values.get("quant_method")
    return str(named).lower() if named else None


def quantized_already(name: str, values: Mapping[str, Any], folder: Path | None) -> str | None:
    """Return an error message if the checkpoint ``name`` is quantized in a way that is not measured as it is, else None.

    Checks ``values``, the content of its config.json, and the files in ``folder``. Without the check, transformers would
    dequantize some such checkpoints silently (huggingface/transformers#47145) and fail on others. A folder that has a
    ``quantization_method`` is measured as it is; ``folder`` may also be the cache of a checkpoint of the hub, which is not.
    """
    if quantization_method(checkpoint_path(name)) is not None:
        return None
    said = next((f"{_by(value)} ({key} in its config.json)" for key, value in quantization_entries(values)), None)
    if said is None and folder is not None:
        name_of_file, content = quantization_file(folder)
        said = f"{_by(content)} ({name_of_file} beside its config.json)" if name_of_file else _stored_types(folder)
    if said is None:
        return None
    return (
        f"model.checkpoint={name}: is quantized already, {said}; only a folder whose config.json says so in "
        "quantization_config is measured as it is, so give the checkpoint that this one was made from"
    )


def quantization_entries(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of ``QUANTIZATION_KEYS`` in a config.json by their dotted keys, outer ones first."""
    for key, value in values.items():
        if key in QUANTIZATION_KEYS and value:
            yield f"{path}{key}", value
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from quantization_entries(value, f"{path}{key}.")


def quantization_file(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """Return the first of ``QUANTIZATION_FILES`` in ``folder`` and its content, empty if unreadable; no name without one."""
    name = next((name for name in QUANTIZATION_FILES if (folder / name).is_file()), "")
    try:
        content = json.loads((folder / name).read_text()) if name else {}
    except ValueError:
        content = {}
    return name, content if isinstance(content, Mapping) else {}


def _by(values: Any) -> str:
    if not isinstance(values, Mapping):
        return "by an unnamed method"
    values = {**values, **values.get("quantization", {})}  # modelopt's are a level below
    named = values.get("quant_method") or values.get("quant_algo") or values.get("format")
    if named is None and any(key.endswith(("load_in_8bit", "load_in_4bit")) for key in values):
        named = "bitsandbytes"
    bits = values.get("bits", values.get("w_bit"))
    return f"by {named or 'an unnamed method'}{f' with {bits} bits' if bits else ''}"


def _stored_types(folder: Path) -> str | None:
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            try:
                types = {name: about["dtype"] for name, about in read_header(path)[0].items()}
            except ValueError:  # Damaged, which loading the weights reports.
                types = {}
        else:
            types = _pickled_types(path)
        for name, dtype in types.items():
            if dtype.startswith(QUANTIZED_TYPES) or (name.endswith(".weight") and dtype not in FULL_PRECISION_TYPES):
                return f"since {path.name} stores {name} as {dtype}"
    return None


def _pickled_types(path: Path) -> dict[str, str]:
    """Read the dtypes of a file of pickled weights; empty if it is damaged, an error that loading the weights reports."""
    import torch  # A slow import, needed only for such a file.

    try:
        # Values of the meta device are not read.
        content = torch.load(path, map_location="meta", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        return {}
    tensors = content.items() if isinstance(content, dict) else ()
    return {name: str(value.dtype).removeprefix("torch.") for name, value in tensors if isinstance(value, torch.Tensor)}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the tensors in the header of a safetensors file, and where their values begin; a ValueError if it is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length + 8 > path.stat().st_size:
            raise ValueError(f"{path}: is cut off or is no safetensors file: its header is longer than the file")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            header.pop("__metadata__", None)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: cannot read its header: {error}") from error
    return header, 8 + length


def weight_files(folder: Path) -> list[Path]:
    """List the weight files of a checkpoint's folder."""
    return sorted(path for pattern in WEIGHT_FILES for path in folder.glob(pattern))


def weights_digest(folder: Path) -> str:
    """Digest a folder's weight files to sixteen hexadecimal digits; a single file gives the start of its SHA-256."""
    return content_digest(weight_files(folder))
