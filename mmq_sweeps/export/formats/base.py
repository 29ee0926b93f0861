"""The interface of a checkpoint format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from mmq_sweeps.methods.formats import Format, QuantizedWeight


@dataclass(frozen=True)
class LinearSpec:
    """Description of a quantized linear ``[O, I]`` before its weight is read.

    ``input_scaled`` is true if columns carry a scale of their own beside the codes (AWQ that is not fused). ``kind`` is
    ``linear`` for a module of that class, ``embeddings`` for token embeddings, ``expert`` for a slice of a tensor of experts.
    ``loads_packed`` is false if transformers fails on the linear unless it has a dense weight.
    """

    format: Format
    shape: tuple[int, int]
    input_scaled: bool = False
    kind: str = "linear"
    loads_packed: bool = True


# Linears by name, and names of linears.
Specs = Mapping[str, LinearSpec]
Names = tuple[str, ...]
# Dtype and shape of a tensor in the file.
TensorSpec = tuple[torch.dtype, tuple[int, ...]]


class CheckpointFormat(Protocol):
    """Writes quantized linears as tensors of a checkpoint, and the ``quantization_config`` that tells a loader of them.

    Linears are named as modules of the model's class. ``dtype`` is that of the exported model.
    """

    name: ClassVar[str]

    def problem(
        self, linears: Specs, dtype: torch.dtype, dense: Names = (), main_input: str = "input_ids"
    ) -> str | None:
        """Return why the format cannot hold ``linears`` exactly, naming one and a format that can; None if it can.

        ``dense`` are all other linears of the model, ``main_input`` is the ``main_input_name`` of its class.
        """

    def layout(self, spec: LinearSpec, dtype: torch.dtype) -> dict[str, TensorSpec]:
        """Return the tensors that replace ``NAME.weight`` by their ending, such as ``weight_packed``."""

    def tensors(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of ``layout`` for ``weight``; a ValueError if a value is not exact in them."""

    def holds(self, tensors: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
        """Return whether ``tensors``, as read from a file, decode to ``weight``'s codes, zeros and scales exactly."""

    def settings(self, linears: Specs, dense: Names) -> dict[str, Any] | None:
        """Return ``quantization_config`` for ``linears``, all other linears of the model being ``dense``; None if dense."""
