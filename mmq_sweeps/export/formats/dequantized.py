"""Plain weights in the model's dtype: what every loader reads, at the size of full precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import LinearSpec, TensorSpec
from mmq_sweeps.methods.affine import QuantizedWeight


class Dequantized:
    name: ClassVar[str] = "dequantized"

    def problem(
        self,
        linears: Mapping[str, LinearSpec],
        dtype: torch.dtype,
        dense: tuple[str, ...] = (),
        main_input: str = "input_ids",
    ) -> str | None:
        return None

    def layout(self, spec: LinearSpec, dtype: torch.dtype) -> dict[str, TensorSpec]:
        return {"weight": (dtype, spec.shape)}

    def tensors(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"weight": weight.dequantize().to(dtype)}

    def read(self, tensors: Mapping[str, Tensor], spec: LinearSpec) -> Tensor:
        raise NotImplementedError

    def settings(self, linears: Mapping[str, LinearSpec], dense: tuple[str, ...]) -> dict[str, Any] | None:
        return None
