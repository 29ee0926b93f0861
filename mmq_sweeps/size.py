"""What a quantized model weighs: the study's bits per weight, and the exact one.

The paper's (arXiv 2601.15287): ``(bits x quantized linear weights + 16 x every other parameter) / all parameters``.
The exact one counts what is stored: packed codes, scales, zeros and input scales, and 16 bits for everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmq_sweeps.affine import QuantizedWeight
from mmq_sweeps.targets import Part

FULL_PRECISION_BITS = 16


def measure(model: nn.Module, parts: Iterable[Part], quantized: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
    """Parameters, quantized weights, both bits per weight and bytes: in total and of each part's module."""
    return {
        "total": _size(model, "", quantized),
        "parts": {part.name: _size(model.get_submodule(part.module), f"{part.module}.", quantized) for part in parts},
    }


def _size(module: nn.Module, prefix: str, quantized: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
    # parameters() yields a shared parameter once, as it is stored once.
    parameters = sum(parameter.numel() for parameter in module.parameters())
    inside = [weight for name, weight in quantized.items() if name.startswith(prefix)]
    weights = sum(weight.codes.numel() for weight in inside)
    rest = FULL_PRECISION_BITS * (parameters - weights)
    paper_bits = rest + sum(weight.format.bits * weight.codes.numel() for weight in inside)
    exact_bits = rest + sum(
        weight.format.stored_bits(weight.shape, input_scaled=weight.input_scale is not None) for weight in inside
    )
    return {
        "parameters": parameters,
        "quantized_weights": weights,
        "bpw_paper": paper_bits / parameters,
        "bpw_exact": exact_bits / parameters,
        "size_bytes": exact_bits // 8,
    }
