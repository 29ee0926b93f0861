"""Write safetensors files tensor by tensor: only the tensor that is being written is in memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor
from transformers.modeling_utils import str_to_torch_dtype

from mmq_sweeps.export.formats.base import TensorSpec

# Names of the dtypes in a file's header.
DTYPES = {dtype: name for name, dtype in str_to_torch_dtype.items()}
SHARD_BYTES = 5 * 10**9
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
# A header's length is a multiple of it, so that every dtype is aligned behind it.
ALIGNMENT = 8


def size_of(spec: TensorSpec) -> int:
    """Return the bytes of a tensor."""
    dtype, shape = spec
    return dtype.itemsize * math.prod(shape)


@dataclass
class _File:
    """One file: its first bytes, its length, and the tensors that are still to be written with their places."""

    path: Path
    header: bytes
    length: int
    left: dict[str, tuple[int, TensorSpec]]
    descriptor: int = field(init=False)

    def open(self) -> None:
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        _write_all(self.descriptor, self.header, 0)
        os.ftruncate(self.descriptor, self.length)


class WeightFiles:
    """Writes the tensors of ``specs`` into ``folder``, in any order; a context that fails unless all are written.

    One file, or shards of at most ``shard_bytes`` and an index, tensors in the order of ``specs``; a larger tensor has a
    shard of its own.
    """

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec], shard_bytes: int = SHARD_BYTES) -> None:
        self._folder, self._specs = folder, dict(specs)
        shards = _shards(self._specs, shard_bytes)
        names = [SINGLE] if len(shards) == 1 else [_shard_name(place, len(shards)) for place in range(len(shards))]
        self._files = [_planned(folder / name, shard) for name, shard in zip(names, shards, strict=True)]
        self._holder = {name: file for file in self._files for name in file.left}

    @property
    def bytes(self) -> int:
        """Bytes of all files with tensors."""
        return sum(file.length for file in self._files)

    def __enter__(self) -> WeightFiles:
        for file in self._files:
            file.open()
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor; ValueError unless it is as its spec says, and not written yet."""
        file = self._holder[name]
        if name not in file.left:
            raise ValueError(f"{name} is written twice")
        place, spec = file.left[name]
        if spec != (tensor.dtype, tuple(tensor.shape)):
            raise ValueError(
                f"{name} is {tensor.dtype} {list(tensor.shape)}, and the header says {spec[0]} {list(spec[1])}"
            )
        octets = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        _write_all(file.descriptor, octets.numpy().data, place)
        del file.left[name]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            if error is None and file.left:
                raise ValueError(f"{file.path.name} lacks {len(file.left)} tensors, such as {next(iter(file.left))}")
            try:
                if error is None:
                    os.fsync(file.descriptor)
            finally:
                os.close(file.descriptor)
        if error is None and len(self._files) > 1:
            write_json(self._folder / INDEX, self._index())

    def _index(self) -> dict[str, object]:
        held = {name: file.path.name for name, file in self._holder.items()}
        total = sum(map(size_of, self._specs.values()))
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(held.items()))}


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as a JSON file, durably."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a new file, durably."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_all(descriptor: int, content: bytes | memoryview, place: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(descriptor, left, place)
        left, place = left[written:], place + written


def _shards(specs: Mapping[str, TensorSpec], most: int) -> list[dict[str, TensorSpec]]:
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name, spec in specs.items():
        own = size_of(spec)
        if shards[-1] and size + own > most:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += own
    return shards


def _shard_name(place: int, count: int) -> str:
    return f"model-{place + 1:05}-of-{count:05}.safetensors"


def _planned(path: Path, specs: Mapping[str, TensorSpec]) -> _File:
    """Return the file of ``specs`` at ``path`` before it is written.

    Wide dtypes come first: readers map tensors, which must be aligned, and the format allows no gap between them.
    """
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for name, spec in sorted(specs.items(), key=lambda item: -item[1][0].itemsize):
        offsets[name] = end
        end += size_of(spec)
        content[name] = {"dtype": DTYPES[spec[0]], "shape": list(spec[1]), "data_offsets": [offsets[name], end]}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    left = {name: (len(header) + offset, specs[name]) for name, offset in offsets.items()}
    return _File(path, header, len(header) + end, left)
