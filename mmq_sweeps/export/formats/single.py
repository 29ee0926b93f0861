"""Base of GPTQ's and AWQ's checkpoints: one width, group size and symmetry a file, and tensors with inputs first."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import Specs
from mmq_sweeps.export.formats.exact import exact_scale, first_problem, refusal
from mmq_sweeps.methods.formats import Format, QuantizedWeight

# Loaders compute in these, and keep scales in the first.
HALVES = (torch.float16, torch.bfloat16)
BETTER = "compressed-tensors"


def problem_of_mix(
    format: str, linears: Specs, dtype: torch.dtype, widths: Collection[int], group_sizes: Collection[int]
) -> str | None:
    """Return why a file of one scheme cannot hold ``linears`` exactly in ``dtype``, naming the first; None if it can."""
    if problem := first_problem(format, linears, dtype, HALVES):
        return problem
    first: tuple[str, Format] | None = None
    for name, spec in linears.items():
        found = spec.format
        if found.bits not in widths:
            return refusal(format, name, f"has {found.bits} bits, and loaders take {_listed(widths)}", BETTER)
        if found.group_size != "channel" and found.group_size not in group_sizes:
            return refusal(
                format, name,
                f"has group_size={found.group_size}, and loaders take channel, {_listed(group_sizes)}", BETTER,
            )  # fmt: skip
        if first is None:
            first = name, found
        elif found != first[1]:
            return refusal(
                format, name, f"has {_said(found)} where {first[0]} has {_said(first[1])}, and a file has one of each",
                BETTER,
            )  # fmt: skip
    return None


def half_scale(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return the scales ``[O, G]`` in float16; a ValueError if one is not exact in it or in ``dtype``."""
    exact_scale(weight, dtype)
    return exact_scale(weight, HALVES[0])


def only_format(linears: Specs) -> Format:
    """Return the format that all ``linears`` have."""
    (found,) = {spec.format for spec in linears.values()}
    return found


def group_size(format: Format) -> int:
    """Return the group size as these files say it: -1 for a whole row."""
    return format.group_size if isinstance(format.group_size, int) else -1


def _listed(numbers: Collection[int]) -> str:
    return ", ".join(map(str, numbers))


def _said(format: Format) -> str:
    return f"{format.bits} bits, group_size={format.group_size}, symmetric={format.symmetric}".lower()
