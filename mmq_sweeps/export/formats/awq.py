"""AWQ checkpoints (``gemm``): one width, in which every linear that is not named as dense is quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import LinearSpec, Names, Specs, TensorSpec
from mmq_sweeps.export.formats.bitstream import WORD, from_awq_order, in_awq_order, pack_rows, unpack_rows
from mmq_sweeps.export.formats.exact import equal_scale, refusal, steps, whole_zero
from mmq_sweeps.export.formats.single import BETTER, HALVES, group_size, half_scale, only_format, problem_of_mix
from mmq_sweeps.methods.formats import QuantizedWeight

WIDTHS = (2, 4, 8)
GROUP_SIZES = (16, 32, 64, 128)
# Modules that transformers keeps in float32, and therefore dense, in the models that have them (BLIP-2).
KEPT_DENSE = "qformer"


class AWQ:
    """Holds codes of one width of 2, 4 or 8 bits, of all linears but those that stay dense."""

    name: ClassVar[str] = "awq"

    def problem(
        self, linears: Specs, dtype: torch.dtype, dense: Names = (), main_input: str = "input_ids"
    ) -> str | None:
        if found := problem_of_mix(self.name, linears, dtype, WIDTHS, GROUP_SIZES):
            return found
        for name, spec in linears.items():
            if reason := _reason_against(name, spec, dense):
                return refusal(self.name, name, reason, BETTER)
        return None

    def layout(self, spec: LinearSpec, dtype: torch.dtype) -> dict[str, TensorSpec]:
        rows, columns = spec.shape
        groups, packed = spec.format.groups(spec.shape)[1], rows * spec.format.bits // WORD
        return {
            "qweight": (torch.int32, (columns, packed)),
            "qzeros": (torch.int32, (groups, packed)),
            "scales": (HALVES[0], (groups, rows)),
        }

    def tensors(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        scale = half_scale(weight, dtype)
        return {
            "qweight": _packed(weight.codes, weight.format.bits),
            "qzeros": _packed(whole_zero(weight), weight.format.bits),
            "scales": scale.T.contiguous(),
        }

    def holds(self, tensors: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
        rows, bits = weight.shape[0], weight.format.bits
        codes, zero = (_unpacked(tensors[name], rows, bits).to(torch.int16) for name in ("qweight", "qzeros"))
        grouped = codes.reshape(*zero.shape, -1).sub_(zero[:, :, None]).reshape(weight.shape)
        return equal_scale(tensors["scales"].T, weight) and torch.equal(grouped, steps(weight))

    def settings(self, linears: Specs, dense: Names) -> dict[str, Any]:
        format = only_format(linears)
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": format.bits,
            "group_size": group_size(format),
            "zero_point": True,
            # The kernel that multiplies as the dequantized model does.
            "backend": "torch_awq",
            "modules_to_not_convert": list(dense),
        }


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Pack ``[O, N]`` as ``[N, words]``, the outputs of an input after each other."""
    rows = codes.T
    return pack_rows(in_awq_order(rows) if bits == 4 else rows, bits)


def _unpacked(packed: Tensor, outputs: int, bits: int) -> Tensor:
    codes = unpack_rows(packed, outputs, bits)
    return (from_awq_order(codes) if bits == 4 else codes).T.contiguous()


def _reason_against(name: str, spec: LinearSpec, dense: Names) -> str | None:
    if KEPT_DENSE in name.split("."):
        return "is kept in float32 by transformers, and therefore dense"
    per_word = WORD // spec.format.bits
    if spec.shape[0] % per_word:
        return f"has {spec.shape[0]} outputs, and words hold {per_word}"
    # As transformers compares: from the start up to a dot, or the end of a name.
    skipping = [other for other in dense if re.match(rf"(?:{other})(?:(?<=\.)|(?=\.|$))", name) or name.endswith(other)]
    if skipping:
        return f"ends as the dense {skipping[0]} does, by whose name loaders would skip both"
    return None
