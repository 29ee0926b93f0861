"""Where a checkpoint lies and which weights it holds. Imports no torch: cells are named before any model is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
PINNED = "sha256:"
# How a checkpoint says that it is quantized: under these keys of config.json, at any depth, or in files beside it, as
# auto-gptq, autoawq and modelopt write them.
QUANTIZATION_KEYS = ("quantization_config", "compression_config")
QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
# The types of safetensors that full-precision weights are stored in.
FULL_PRECISION_TYPES = ("F64", "F32", "F16", "BF16")


def checkpoint_path(checkpoint: str) -> Path | str:
    """A folder, where the checkpoint is one (``embedded/NAME`` comes with the package), else the name on the hub."""
    if checkpoint.startswith("embedded/"):
        return Path(__file__).resolve().parent / checkpoint
    looks_like_path = checkpoint.startswith((".", "/", "~")) or Path(checkpoint).exists()
    return Path(checkpoint).expanduser().absolute() if looks_like_path else checkpoint


def pinned_revision(config: Mapping[str, Any]) -> str | None:
    """The revision that names a model's weights: the one configured, for a folder the digest of what lies in it.

    So a folder whose weights change is another model, and nothing that was computed with the old ones is used.
    """
    folder = checkpoint_path(config["checkpoint"])
    if config["revision"] is not None or not isinstance(folder, Path) or not weight_files(folder):
        revision: str | None = config["revision"]
        return revision
    return PINNED + weights_digest(folder)


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
    """The first 16 hexadecimal digits of the SHA-256 over the folder's weight files."""
    files = weight_files(folder)
    found = [path.stat() for path in files]
    # Asked for when a cell is named and again when it is loaded; the weights of a real model take a while.
    return _digest(tuple(files), tuple((file.st_size, file.st_mtime_ns, file.st_ino) for file in found))


@cache
def _digest(files: tuple[Path, ...], _versions: tuple[tuple[int, int, int], ...]) -> str:
    sha = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 24):
                sha.update(chunk)
    return sha.hexdigest()[:16]
