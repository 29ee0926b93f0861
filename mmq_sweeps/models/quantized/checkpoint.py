"""A checkpoint as its folder shows it: its quantized linears, their storage, and its bytes. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmq_sweeps.models.quantized.configuration import Configuration, read_configuration, read_values
from mmq_sweeps.models.quantized.layouts import QuantizedLinear, find_linears
from mmq_sweeps.models.quantized.tensors import StoredTensor, read_tensors


@dataclass(frozen=True)
class StoredCheckpoint:
    """A folder's configuration, its quantized linears by name, and its other tensors."""

    folder: Path
    values: Mapping[str, Any]
    configuration: Configuration | None
    linears: Mapping[str, QuantizedLinear]
    dense: Mapping[str, StoredTensor]

    @property
    def class_name(self) -> str | None:
        """The class that ``config.json`` names, of transformers or not."""
        named = self.values.get("architectures") or [None]
        return named[0]

    @property
    def size(self) -> int:
        """Bytes of all tensors in the files."""
        quantized = sum(linear.bits // 8 for linear in self.linears.values())
        return quantized + sum(tensor.size for tensor in self.dense.values())


def read_checkpoint(folder: Path) -> StoredCheckpoint:
    """Read ``folder`` without loading its weights; ValueError or OSError if it is no checkpoint or is damaged."""
    values = read_values(folder)
    tensors = read_tensors(folder)
    linears = find_linears(tensors)
    inside = {tensor.name for linear in linears.values() for tensor in linear.tensors.values()}
    dense = {name: tensor for name, tensor in tensors.items() if name not in inside}
    return StoredCheckpoint(folder, values, read_configuration(folder, values), linears, dense)
