"""Checks shared by formats of integer codes: linears that none of them holds, and values that must be exact."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mmq_sweeps.export.formats.base import LinearSpec, Specs
from mmq_sweeps.methods.formats import QuantizedWeight

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def name_of(dtype: torch.dtype) -> str:
    """Return the name of ``dtype`` as the configuration spells it."""
    return str(dtype).removeprefix("torch.")


def reason_against(spec: LinearSpec) -> str | None:
    """Return why no format of integer codes holds a linear; None if one may."""
    if spec.kind == "expert":
        return "is a slice of a tensor of experts, which is loaded whole and dense"
    if spec.kind == "embeddings":
        return "is a table of token embeddings, which is loaded dense"
    if not spec.loads_packed:
        return (
            "transformers initializes by its dense weight when it loads a checkpoint (Siglip), so it cannot be packed"
        )
    if spec.input_scaled:
        return "has input scales that are not folded into the layer before (fuse: true would)"
    if spec.format.real_zero:
        return "has zeros that are fractions of a step (uniform, hqq), and only whole ones are stored"
    if spec.format.codebook:
        return "has a codebook (kmeans, normal_float), and only even steps are stored"
    return None


def refusal(format: str, name: str, reason: str, other: str = "dequantized") -> str:
    """Say that ``format`` cannot hold linear ``name`` and which other one can."""
    return f"--format {format} cannot hold {name}, which {reason}; use --format {other}"


def first_problem(format: str, linears: Specs, dtype: torch.dtype, dtypes: Iterable[torch.dtype]) -> str | None:
    """Return the problem of the first linear that no format of integer codes holds, or of the dtype; None if there is none."""
    allowed = [name_of(one) for one in dtypes]
    if name_of(dtype) not in allowed:
        return (
            f"--format {format} is not exact in dtype {name_of(dtype)}; choose --dtype {' or '.join(allowed)}, "
            "or --format dequantized"
        )
    for name, spec in linears.items():
        if reason := reason_against(spec):
            return refusal(format, name, reason)
    return None


def exact_scale(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """Return the scales ``[O, G]`` in ``dtype``; a ValueError if one of them changes by it."""
    scale = weight.grid.scale
    rounded = scale.to(dtype)
    changed = rounded.to(scale.dtype) != scale
    if changed.any():
        raise ValueError(
            f"{int(changed.sum())} of {scale.numel()} scales are not exact in {name_of(dtype)}, e.g. "
            f"{float(scale[changed][0]):.9g}: what was measured would not be what is loaded. Sweep with "
            f"model.dtype={name_of(dtype)}, which rounds scales before it measures, or export with --dtype float32"
        )
    return rounded


def whole_zero(weight: QuantizedWeight) -> Tensor:
    """Return the zeros ``[O, G]`` as int16; a ValueError if one is not a code."""
    zero = weight.grid.zero
    stored = zero.to(torch.int16)
    wrong = (stored != zero) | (stored < 0) | (stored > weight.format.max_code)
    if wrong.any():
        raise ValueError(
            f"{int(wrong.sum())} of {zero.numel()} zeros are not codes of {weight.format.bits} bits, e.g. "
            f"{float(zero[wrong][0]):.9g}; use --format dequantized"
        )
    return stored


def steps(weight: QuantizedWeight) -> Tensor:
    """Return ``q - zero`` ``[O, I]`` as int16: a weight in steps of its scale."""
    zero = whole_zero(weight)
    grouped = weight.codes.to(torch.int16).reshape(*zero.shape, -1)
    return grouped.sub_(zero[:, :, None]).reshape(weight.shape)


def equal_scale(stored: Tensor, weight: QuantizedWeight) -> bool:
    """Return whether ``stored``, of any shape with a scale for every group in order, are ``weight``'s scales."""
    return torch.equal(stored.reshape(weight.grid.scale.shape).to(torch.float32), weight.grid.scale.to(torch.float32))
