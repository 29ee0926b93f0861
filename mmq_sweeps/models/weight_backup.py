"""Back up full-precision weights while quantized ones are in their place, and restore them bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from mmq_sweeps.memory import available_bytes


class WeightBackup:
    """Store of tensors in CPU memory or, if given, in ``file``."""

    def __init__(self, file: IO[bytes] | None) -> None:
        self._file = file
        self._kept: dict[str, Tensor | tuple[int, int]] = {}

    def keep(self, name: str, tensor: Tensor) -> None:
        copy = tensor.detach().to("cpu", copy=self._file is None).contiguous()
        if self._file is None:
            self._kept[name] = copy
            return
        octets = copy.view(-1).view(torch.uint8).numpy()
        self._kept[name] = (self._file.tell(), octets.nbytes)
        self._file.write(octets.data)

    @torch.no_grad()
    def put_back(self, name: str, into: Tensor) -> None:
        kept = self._kept.pop(name)
        if isinstance(kept, Tensor):
            into.copy_(kept)
            return
        assert self._file is not None
        offset, size = kept
        self._file.seek(offset)
        octets = bytearray(self._file.read(size))
        into.copy_(torch.frombuffer(octets, dtype=into.dtype).view(into.shape))


@contextmanager
def room_aside(size: int, folder: str | Path | None) -> Iterator[WeightBackup]:
    """Yield a backup for ``size`` bytes: in memory if they take at most half of the free memory, else in ``folder``.

    The file in ``folder`` has no name and is gone when closed.
    """
    free = available_bytes(torch.device("cpu"))
    if free is None or size <= free // 2:
        yield WeightBackup(None)
        return
    with tempfile.TemporaryFile(dir=folder, prefix="mmq-weights-") as file:
        yield WeightBackup(file)
