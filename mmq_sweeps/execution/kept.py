"""Values kept in the process's memory within a bound in bytes: those not used for longest go first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

import torch

from mmq_sweeps.memory import available_bytes

Value = TypeVar("Value")
# Of the memory that is free when a process begins, what one kind of kept values may take.
SHARE = 8
# Where the system does not tell how much is free.
UNKNOWN_BYTES = 1 << 30


class Kept(Generic[Value]):
    """``bound`` is in bytes; a value that is larger on its own is not kept."""

    def __init__(self, bound: int) -> None:
        self.bound, self.size_bytes = bound, 0
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def get(self, key: str) -> Value | None:
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: str, value: Value, size_bytes: int) -> None:
        """Keep ``value``, in place of what had its key."""
        self.drop(key)
        if size_bytes > self.bound:
            return
        self._values[key] = (value, size_bytes)
        self.size_bytes += size_bytes
        while self.size_bytes > self.bound:
            self.drop(next(iter(self._values)))

    def drop(self, key: str) -> None:
        """Keep no value under ``key``."""
        if key in self._values:
            self.size_bytes -= self._values.pop(key)[1]

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
        self.size_bytes = 0


def share_of_memory() -> int:
    """A bound in bytes for one kind of kept values."""
    free = available_bytes(torch.device("cpu"))
    return UNKNOWN_BYTES if free is None else free // SHARE
