"""Weights in units of their own size, for solvers whose constants are absolute.

A power of two changes no digit of a float, so a weight that is divided by one and whose scales are multiplied by it
afterwards has the codes of the weight itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmq_sweeps.methods.affine import Format
from mmq_sweeps.methods.base import LayerStats, Method, Solution, quantize_many

# Of weights within 2**20 of one, errors squared and multiplied with Gram matrices are far from float32's ends.
ORDINARY_EXPONENTS = 20


def exponent_of(values: Tensor) -> int:
    """The least ``e`` with all magnitudes below ``2**e``; 0 for zeros and for values that are not finite."""
    largest = max(abs(float(bound)) for bound in torch.aminmax(values))
    return math.frexp(largest)[1] if math.isfinite(largest) else 0


def divided(values: Tensor, exponent: int) -> Tensor:
    """``values`` over ``2**exponent``, in single precision."""
    # In two steps: 2**-exponent itself may be beyond float32.
    return values.float() * 2.0 ** -(exponent // 2) * 2.0 ** -(exponent - exponent // 2)


def multiplied(solution: Solution, exponents: Sequence[int]) -> Solution:
    """The ``solution`` of weights that were divided by ``2**exponents``, for the weights themselves."""
    weights = [weight.times_power_of_two(e) for weight, e in zip(solution.weights, exponents, strict=True)]
    return Solution(weights, solution.notes)


def loss_weights(weights: Sequence[Tensor]) -> list[float]:
    """What the squared output error of each linear is multiplied with before those of linears that share an input are summed.

    It is 1 over the mean square of the weight. A factor that one linear gives up and the next takes on, as between two
    linears of an MLP, then does not decide which linear counts.
    """
    if len(weights) == 1:
        return [1.0]
    squares = [float(torch.linalg.vector_norm(w, dtype=torch.float32)) ** 2 / w.numel() for w in weights]
    return [1 / square if 0 < square < math.inf else 1.0 for square in squares]


def solve_relative(
    method: Method, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
) -> list[Solution]:
    """``method``'s solutions, with weights so small or so large that their squares leave float32 in units of their own size."""
    exponents = [exponent_of(weight) for weight in weights]
    exponents = [0 if abs(exponent) <= ORDINARY_EXPONENTS else exponent for exponent in exponents]
    weights = [divided(weight, e) if e else weight for weight, e in zip(weights, exponents, strict=True)]
    return [multiplied(solution, exponents) for solution in quantize_many(method, weights, stats, formats)]
