"""List the tensors of a checkpoint's folder from the headers of its safetensors files. Imports no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.checkpoint import read_header, weight_files

INDEX = "model.safetensors.index.json"
# Bits of a value by the dtype's name in safetensors headers.
WIDTHS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file: its name, dtype (as in ``WIDTHS``) and shape, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of bytes in the file."""
        return self.end - self.start

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def read(self) -> bytes:
        """Read the values. Use it for small tensors only."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def read_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return the tensors in ``folder`` by name.

    Raises ValueError if there are none, if a file is damaged or cut off, if its values are in pickled files, or if the index
    names a file that is not there.
    """
    files = weight_files(folder)
    if pickled := [path.name for path in files if path.suffix != ".safetensors"]:
        raise ValueError(f"{folder}: {pickled[0]} is pickled; only safetensors say what is in them without being run")
    if not files:
        raise ValueError(f"{folder}: holds no weights; expected *.safetensors beside config.json")
    found: dict[str, StoredTensor] = {}
    for path in files:
        own = _tensors_of(path)
        if twice := sorted(found.keys() & own.keys()):
            raise ValueError(f"{folder}: {twice[0]} lies both in {found[twice[0]].path.name} and in {path.name}")
        found |= own
    _check_index(folder, found)
    return found


def _tensors_of(path: Path) -> dict[str, StoredTensor]:
    size = path.stat().st_size
    header, data = read_header(path)
    try:
        found = {name: _tensor(name, about, path, data) for name, about in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot read its header: {error}") from error
    if (end := max((tensor.end for tensor in found.values()), default=0)) > size:
        raise ValueError(f"{path}: is cut off: its tensors end at byte {end:,}, and it has {size:,}")
    return found


def _tensor(name: str, about: Mapping[str, Any], path: Path, data: int) -> StoredTensor:
    start, end = about["data_offsets"]
    tensor = StoredTensor(name, about["dtype"], tuple(about["shape"]), path, data + start, data + end)
    if tensor.dtype in WIDTHS and tensor.size != math.ceil(tensor.count * WIDTHS[tensor.dtype] / 8):
        raise ValueError(f"{name}: {tensor.size} bytes do not hold {tensor.shape} of {tensor.dtype}")
    return tensor


def _check_index(folder: Path, found: Mapping[str, StoredTensor]) -> None:
    if not (folder / INDEX).is_file():
        return
    try:
        files: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{folder / INDEX}: cannot be read: {error}") from error
    for name, file in files.items():
        if name not in found or found[name].path.name != file:
            raise ValueError(f"{folder / INDEX}: says that {name} lies in {file}, where it is not")
