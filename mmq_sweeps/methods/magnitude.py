"""Weights in units of their own size, for solvers with absolute constants.

Powers of two change no digit of a float, so dividing a weight by such a power and multiplying its scales by it
afterwards yields the codes of the weight itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Method, Solution, quantize_many
from mmq_sweeps.methods.formats import Format

# For weights from 2**-20 to 2**20, squared errors times Gram matrices stay far from float32's limits.
ORDINARY_EXPONENTS = 20


def exponent_of(values: Tensor) -> int:
    """Return the least ``e`` with all magnitudes below ``2**e``; 0 for zeros and for values that are not finite."""
    largest = max(abs(float(bound)) for bound in torch.aminmax(values))
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def divided(values: Tensor, exponent: int) -> Tensor:
    """Return ``values / 2**exponent`` in float32."""
    # In two steps, because 2**-exponent itself may exceed float32.
    return values.float() * 2.0 ** -(exponent // 2) * 2.0 ** -(exponent - exponent // 2)


def multiplied(solution: Solution, exponents: Sequence[int]) -> Solution:
    """Rescale the ``solution`` for weights divided by ``2**exponents`` to the weights themselves."""
    weights = [weight.times_power_of_two(e) for weight, e in zip(solution.weights, exponents, strict=True)]
    return Solution(weights, solution.notes)


def loss_weights(weights: Sequence[Tensor]) -> list[float]:
    """Return the factor of each linear's squared output error in the sum over linears that share an input.

    It is 1 over the mean square of the weight, so that a factor moved from a linear to the next, as between two linears
    of an MLP, does not decide which linear counts. A single linear has factor 1.
    """
    if len(weights) == 1:
        return [1.0]
    squares = [float(torch.linalg.vector_norm(w, dtype=torch.float32)) ** 2 / w.numel() for w in weights]
    return [1 / square if 0 < square < math.inf else 1.0 for square in squares]


def solve_relative(
    method: Method, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
) -> list[Solution]:
    """Solve with ``method``, dividing weights whose squares would leave float32 by powers of two first.

    Not for half precision, which holds no such weights, and in which scales times a power of two may lose digits.
    """
    exponents = [exponent_of(weight) for weight in weights]
    half = any(format.dtype == "float16" for format in formats)
    exponents = [0 if half or abs(exponent) <= ORDINARY_EXPONENTS else exponent for exponent in exponents]
    weights = [divided(weight, e) if e else weight for weight, e in zip(weights, exponents, strict=True)]
    return [multiplied(solution, exponents) for solution in quantize_many(method, weights, stats, formats)]
