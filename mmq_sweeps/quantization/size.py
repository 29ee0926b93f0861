"""Size of a quantized model: the study's bits per weight, and the exact ones.

The paper's (arXiv 2601.15287) are ``(bits x quantized linear weights + 16 x every other parameter) / all parameters``.
The exact ones count the stored bits: packed codes, scales, zeros and input scales, and 16 bits for everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmq_sweeps.identity.cell import FULL_PRECISION_BITS
from mmq_sweeps.methods.affine import Format, QuantizedWeight
from mmq_sweeps.quantization.targets import Part


@dataclass(frozen=True)
class StoredLinear:
    """Storage of a weight ``[O, I]``: everything its size depends on.

    All but ``exponents`` is known before quantizing. ``exponents`` counts the powers of two beside scales that no half
    can hold; few weights have any.
    """

    format: Format
    shape: tuple[int, int]
    input_scaled: bool = False
    exponents: int = 0

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bits(self) -> int:
        return self.format.stored_bits(self.shape, self.input_scaled, self.exponents)


def measure(model: nn.Module, parts: Iterable[Part], quantized: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
    """Return parameters, quantized weights, both bits per weight and bytes, in total and per part's module."""
    stored = {
        name: StoredLinear(weight.format, weight.shape, weight.input_scale is not None, weight.exponents)
        for name, weight in quantized.items()
    }
    return measure_stored(model, parts, stored)


def measure_stored(model: nn.Module, parts: Iterable[Part], stored: Mapping[str, StoredLinear]) -> dict[str, Any]:
    """Return the sizes of ``measure`` for linears stored as in ``stored``; ``model`` may lie on the meta device."""
    return {
        "total": _size(model, "", stored),
        "parts": {part.name: _size(model.get_submodule(part.module), f"{part.module}.", stored) for part in parts},
    }


def _size(module: nn.Module, prefix: str, stored: Mapping[str, StoredLinear]) -> dict[str, Any]:
    # parameters() yields shared parameters once, as they are stored once.
    parameters = sum(parameter.numel() for parameter in module.parameters())
    inside = [linear for name, linear in stored.items() if name.startswith(prefix)]
    weights = sum(linear.weights for linear in inside)
    rest = FULL_PRECISION_BITS * (parameters - weights)
    paper_bits = rest + sum(linear.format.bits * linear.weights for linear in inside)
    exact_bits = rest + sum(linear.bits for linear in inside)
    return {
        "parameters": parameters,
        "quantized_weights": weights,
        "bpw_paper": paper_bits / parameters,
        "bpw_exact": exact_bits / parameters,
        "size_bytes": exact_bits // 8,
    }
