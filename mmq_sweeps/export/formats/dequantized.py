"""Weights as the numbers that the codes stand for: holds every method, and saves no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import LinearSpec, Names, Specs, TensorSpec
from mmq_sweeps.methods.formats import QuantizedWeight


class Dequantized:
    """Stores ``weight`` in the model's dtype, as any checkpoint does."""

    name: ClassVar[str] = "dequantized"

    def problem(
        self, linears: Specs, dtype: torch.dtype, dense: Names = (), main_input: str = "input_ids"
    ) -> str | None:
        return None if dtype.is_floating_point else f"--dtype {dtype}: weights are floats; choose float32 or bfloat16"

    def layout(self, spec: LinearSpec, dtype: torch.dtype) -> dict[str, TensorSpec]:
        return {"weight": (dtype, spec.shape)}

    def tensors(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": weight.dequantize().to(dtype)}

    def holds(self, tensors: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
        return torch.equal(tensors["weight"], weight.dequantize().to(tensors["weight"].dtype))

    def settings(self, linears: Specs, dense: Names) -> None:
        return None
