"""Compressed-tensors checkpoints, which transformers loads with compressed-tensors 0.18 or later.

Symmetric codes are stored in their width. Asymmetric ones of 2 to 7 bits become symmetric ones of one bit more, ``q - zero``,
without zeros: loaders do not agree on packed zeros. Asymmetric 8 bits are bytes with a zero each, and a single scale and zero a
tensor keep their width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import LinearSpec, Names, Specs, TensorSpec
from mmq_sweeps.export.formats.bitstream import pack_rows, unpack_rows, words
from mmq_sweeps.export.formats.exact import FLOATS, equal_scale, exact_scale, first_problem, steps, whole_zero
from mmq_sweeps.export.formats.targets import targets
from mmq_sweeps.grouping import grouped
from mmq_sweeps.methods.formats import Format, QuantizedWeight

PACKED, BYTES, MIXED = "pack-quantized", "int-quantized", "mixed-precision"
# Every head under whatever name a class has it.
HEADS = "re:.*lm_head"


@dataclass(frozen=True, order=True)
class Scheme:
    """How a linear is stored: a group of ``config_groups``."""

    packing: str
    bits: int
    strategy: str
    group_size: int = 0
    symmetric: bool = True

    @staticmethod
    def of(format: Format) -> Scheme:
        size = format.group_size
        strategy, group = ("group", size) if isinstance(size, int) else (size, 0)
        if format.symmetric or strategy == "tensor":
            return Scheme(PACKED, format.bits, strategy, group, format.symmetric)
        if format.bits == 8:
            return Scheme(BYTES, 8, strategy, group, symmetric=False)
        return Scheme(PACKED, format.bits + 1, strategy, group)

    @property
    def offset(self) -> int:
        """The unsigned code of a signed zero."""
        return 2 ** (self.bits - 1)

    def arguments(self) -> dict[str, Any]:
        """Return ``weights`` of the group; loaders refuse keys that they do not know."""
        found = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "strategy": self.strategy}
        return {**found, **({"group_size": self.group_size} if self.group_size else {}), "dynamic": False}


class CompressedTensors:
    """Holds symmetric and asymmetric codes of 2 to 8 bits with scales per group, row or tensor, in any mix."""

    name: ClassVar[str] = "compressed-tensors"

    def problem(
        self, linears: Specs, dtype: torch.dtype, dense: Names = (), main_input: str = "input_ids"
    ) -> str | None:
        return first_problem(self.name, linears, dtype, FLOATS)

    def layout(self, spec: LinearSpec, dtype: torch.dtype) -> dict[str, TensorSpec]:
        scheme, (rows, columns) = Scheme.of(spec.format), spec.shape
        groups = (1,) if scheme.strategy == "tensor" else spec.format.groups(spec.shape)
        found: dict[str, TensorSpec] = {"weight_scale": (dtype, groups)}
        if not scheme.symmetric:
            found["weight_zero_point"] = (torch.int8, groups)
        if scheme.packing == BYTES:
            return {"weight": (torch.int8, spec.shape), **found}
        return {
            "weight_packed": (torch.int32, (rows, words(columns, scheme.bits))),
            "weight_shape": (torch.int64, (2,)),
            **found,
        }

    def tensors(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        scheme = Scheme.of(weight.format)
        scale = exact_scale(weight, dtype)
        found = {"weight_scale": scale.reshape(1) if scheme.strategy == "tensor" else scale}
        zero = whole_zero(weight)
        if not scheme.symmetric:
            found["weight_zero_point"] = (zero - scheme.offset).to(torch.int8).reshape(found["weight_scale"].shape)
        if scheme.packing == BYTES:
            return {"weight": (weight.codes ^ 128).view(torch.int8), **found}
        codes = weight.codes if scheme.bits == weight.format.bits else steps(weight).add_(scheme.offset)
        return {
            "weight_packed": pack_rows(codes, scheme.bits),
            "weight_shape": torch.tensor(weight.shape, dtype=torch.int64),
            **found,
        }

    def holds(self, tensors: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
        scheme = Scheme.of(weight.format)
        if not equal_scale(tensors["weight_scale"], weight):
            return False
        return torch.equal(self._steps(tensors, scheme, weight.shape), steps(weight))

    def settings(self, linears: Specs, dense: Names) -> dict[str, Any]:
        schemes = grouped(linears, lambda name: Scheme.of(linears[name].format))
        groups = {}
        for number, (scheme, names) in enumerate(sorted(schemes.items())):
            others = [*dense, *(name for other, found in schemes.items() if other != scheme for name in found)]
            groups[f"group_{number}"] = {
                "targets": targets(names, others),
                "format": scheme.packing,
                "weights": scheme.arguments(),
                "input_activations": None,
                "output_activations": None,
            }
        packings = {scheme.packing for scheme in schemes}
        heads = [HEADS] if not any(name.endswith("lm_head") for name in linears) else []
        return {
            "quant_method": "compressed-tensors",
            "format": packings.pop() if len(packings) == 1 else MIXED,
            # Without it the loader expects dense weights and leaves random ones.
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": [*targets(dense, list(linears)), *heads],
        }

    @staticmethod
    def _steps(tensors: Mapping[str, Tensor], scheme: Scheme, shape: tuple[int, int]) -> Tensor:
        """Return ``q - zero`` ``[O, I]`` int16, decoded as the loader does."""
        if scheme.packing == BYTES:
            signed = tensors["weight"].to(torch.int16)
        else:
            signed = unpack_rows(tensors["weight_packed"], shape[1], scheme.bits).to(torch.int16).sub_(scheme.offset)
        if scheme.symmetric:
            return signed
        zero = tensors["weight_zero_point"].to(torch.int16)
        zero = zero.reshape(1, 1) if scheme.strategy == "tensor" else zero
        return signed.reshape(*zero.shape, -1).sub_(zero[:, :, None]).reshape(shape)
