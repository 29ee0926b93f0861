"""GPTQ checkpoints: one width, for the blocks of a text model.

Version 1 (``gptq``) stores zeros less one, and loaders add the one to whole words, so a zero of 0 would carry into its
neighbour. It is therefore written for symmetric codes only, which every loader of GPTQ reads; asymmetric ones are written in
version 2 (``gptq_v2``), which stores zeros as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import LinearSpec, Names, Specs, TensorSpec
from mmq_sweeps.export.formats.bitstream import WORD, pack_rows, unpack_rows
from mmq_sweeps.export.formats.exact import equal_scale, refusal, steps, whole_zero
from mmq_sweeps.export.formats.single import BETTER, HALVES, group_size, half_scale, only_format, problem_of_mix
from mmq_sweeps.methods.formats import Format, QuantizedWeight

WIDTHS = (2, 3, 4, 8)
GROUP_SIZES = (16, 32, 64, 128, 256, 512, 1024)
BLOCKS = re.compile(r"(?P<path>.+?)\.\d+\..+")


class GPTQ:
    """Holds codes of one width of 2, 3, 4 or 8 bits, of linears in one list of blocks."""

    name: ClassVar[str] = "gptq"

    def problem(
        self, linears: Specs, dtype: torch.dtype, dense: Names = (), main_input: str = "input_ids"
    ) -> str | None:
        if main_input != "input_ids":
            return (
                f"--format {self.name} is loaded for text models only, and this one's first input is {main_input} "
                f"(as BLIP-2's); use --format {BETTER}"
            )
        return (
            problem_of_mix(self.name, linears, dtype, WIDTHS, GROUP_SIZES)
            or self._problem_of_places(linears)
            or self._problem_of_products(linears, dtype)
        )

    def _problem_of_products(self, linears: Specs, dtype: torch.dtype) -> str | None:
        """Return why products, which the loader rounds to float16 before ``dtype``, are rounded twice; None if they are not.

        A scale of bfloat16 has 8 digits and a product of it 11 in float16, which leaves 3 for steps.
        """
        for name, spec in linears.items():
            if dtype is torch.bfloat16 and spec.format.bits > (4 if spec.format.symmetric else 3):
                return (
                    f"--format {self.name} in bfloat16 is not exact for {name}, which has {spec.format.bits} bits: its loader "
                    f"multiplies in float16; use --dtype float16 or --format {BETTER}"
                )
        return None

    def _problem_of_places(self, linears: Specs) -> str | None:
        first = None
        for name, spec in linears.items():
            path = _blocks(name)
            if path is None:
                return refusal(self.name, name, "is outside the blocks, where loaders take dense linears", BETTER)
            first = first or (name, path)
            if path != first[1]:
                return refusal(self.name, name, f"is not in {first[1]} as {first[0]} is; a file has one list", BETTER)
            if spec.shape[0] % WORD or spec.shape[1] % WORD:
                reason = f"is {spec.shape[0]} x {spec.shape[1]}, and loaders take multiples of {WORD}"
                return refusal(self.name, name, reason, BETTER)
        return None

    def layout(self, spec: LinearSpec, dtype: torch.dtype) -> dict[str, TensorSpec]:
        (rows, columns), bits = spec.shape, spec.format.bits
        groups = spec.format.groups(spec.shape)[1]
        return {
            "qweight": (torch.int32, (columns * bits // WORD, rows)),
            "qzeros": (torch.int32, (groups, rows * bits // WORD)),
            "scales": (HALVES[0], (groups, rows)),
            "g_idx": (torch.int32, (columns,)),
        }

    def tensors(self, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        bits, columns = weight.format.bits, weight.shape[1]
        scale = half_scale(weight, dtype)
        zero = whole_zero(weight).sub_(_subtracted(weight.format)).remainder_(2**bits)
        return {
            "qweight": pack_rows(weight.codes, bits).T.contiguous(),
            "qzeros": pack_rows(zero.T, bits),
            "scales": scale.T.contiguous(),
            "g_idx": torch.arange(columns, dtype=torch.int32).div_(columns // scale.shape[1], rounding_mode="floor"),
        }

    def holds(self, tensors: Mapping[str, Tensor], weight: QuantizedWeight) -> bool:
        (rows, columns), bits = weight.shape, weight.format.bits
        codes = unpack_rows(tensors["qweight"].T.contiguous(), columns, bits).to(torch.int16)
        zero = unpack_rows(tensors["qzeros"], rows, bits).to(torch.int16).add_(_subtracted(weight.format))
        zero = zero.remainder_(2**bits).T[:, tensors["g_idx"].long()]
        return equal_scale(tensors["scales"].T, weight) and torch.equal(codes - zero, steps(weight))

    def settings(self, linears: Specs, dense: Names) -> dict[str, Any]:
        format = only_format(linears)
        version = "gptq" if format.symmetric else "gptq_v2"
        blocks = _blocks(next(iter(linears)))
        found: dict[str, Any] = {
            "quant_method": "gptq",
            "bits": format.bits,
            "group_size": group_size(format),
            "sym": format.symmetric,
            "desc_act": False,
            "format": version,
            "checkpoint_format": version,
            "block_name_to_quantize": blocks,
            # The kernel that multiplies as the dequantized model does.
            "backend": "gptq_torch",
        }
        within = [name for name in dense if name.startswith(f"{blocks}.")]
        if within:
            # transformers reads the first, which it compares with the ends of names; GPTQModel reads the second.
            found["modules_in_block_to_quantize"] = [list(linears)]
            found["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in within}
        return found


def _blocks(name: str) -> str | None:
    """Return the path of the list of blocks that linear ``name`` is in; None if it is in none."""
    found = BLOCKS.fullmatch(name)
    return found["path"] if found else None


def _subtracted(format: Format) -> int:
    return 1 if format.symmetric else 0
