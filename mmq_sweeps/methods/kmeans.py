"""A codebook a row by weighted k-means (SqueezeLLM, Kim et al. 2023, arXiv 2306.07629).

Row ``r`` has ``2**bits`` values of its own, chosen for the least ``sum_i d_i (W_ri - value)^2``. The published weights
``d`` are the diagonal of the Fisher information of each weight; here they are the diagonal of the Gram matrix of the
inputs, that of the Hessian of the squared output error, damped as GPTQ's is. Nothing is kept sparse beside the codes.

With ``corrected``, columns are rounded to those values one after the other and the later ones make up for the errors of
those before, as in ``methods/gptq.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Solution
from mmq_sweeps.methods.factor import Factor, NotDefiniteError
from mmq_sweeps.methods.formats import (
    ROWS,
    Format,
    Grid,
    QuantizedWeight,
    check_finite,
    codebook_grid,
    codebooks,
    round_to_grid,
)
from mmq_sweeps.methods.gptq import GPTQ

# Columns corrected singly between two products.
BLOCK = 128
# Damping of inputs that are all zero, whose weights still need values.
LEAST_DAMPING = 1e-6


def fit_codebooks(weight: Tensor, importance: Tensor, formats: Sequence[Format]) -> list[Grid]:
    """Return a grid of ``weight`` ``[O, I]`` for each of ``formats``, with the values of every row.

    ``importance`` ``[I]`` is above zero. Raises ValueError if the weight is not finite.
    """
    scale = weight.abs().amax(dim=1, keepdim=True)
    check_finite(scale)
    grids = []
    for format, values in zip(
        formats, codebooks.fit(weight, importance, [2**format.bits for format in formats]), strict=True
    ):
        own = codebook_grid(scale, format, values.new_zeros(values.shape)).scale
        grids.append(codebook_grid(scale, format, (values / own).float()))
    return grids


def round_corrected(weight: Tensor, grid: Grid, factor: Factor) -> Tensor:
    """Return codes ``[O, I]`` of ``weight``, each column corrected by the errors before it in ``factor``'s order."""
    assert grid.values is not None
    values = (grid.values * grid.scale).to(weight.dtype)
    W = weight.masked_fill(factor.dead, 0.0).T.index_select(0, factor.order)
    # A column's correction until it is rounded, its error from then on.
    X, Q = torch.zeros_like(W), torch.empty_like(W, dtype=torch.uint8)
    for start in range(0, len(W), BLOCK):
        stop = min(start + BLOCK, len(W))
        X[start:stop].addmm_(factor.lower[start:stop, :start], X[:start])
        for column in range(start, stop):
            X[column].addmv_(X[start:column].T, factor.lower[column, start:column])
            codes = codebooks.nearest(values, (W[column] + X[column])[:, None])
            Q[column] = codes[:, 0]
            torch.sub(W[column], values.gather(1, codes.long())[:, 0], out=X[column])
    return Q.index_select(0, factor.order.argsort()).T.contiguous()


@dataclass(frozen=True)
class KMeans:
    """Weighted k-means a row. ``damping`` is a fraction of the mean diagonal of the Gram matrix.

    ``corrected`` rounds to the values with GPTQ's correction, columns by falling diagonal.
    """

    corrected: bool = False
    damping: float = 0.01

    known_as: ClassVar[str] = "kmeans"
    needs_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._gptq()  # Validates damping.

    def format(self, bits: int) -> Format:
        return Format(bits, codebook=ROWS)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        return self.quantize_many(weights, stats, [format])[0]

    def quantize_many(
        self, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
    ) -> list[Solution]:
        """Quantize to all ``formats``, which share the rows in order and the factorization.

        Without ``stats``, as of an expert that no token reached, all columns count alike and nothing is corrected.
        """
        weights = [weight.float() for weight in weights]
        factor, notes = (None, {}) if stats is None else self._factor(stats)
        importance = weights[0].new_ones(weights[0].shape[1]) if stats is None else self._importance(stats)
        grids = [fit_codebooks(weight, importance, formats) for weight in weights]
        return [
            Solution([_rounded(weight, own[place], factor) for weight, own in zip(weights, grids, strict=True)], notes)
            for place in range(len(formats))
        ]

    def _importance(self, stats: LayerStats) -> Tensor:
        diagonal = stats.gram.diagonal().float()
        importance = diagonal + max(self.damping, LEAST_DAMPING) * diagonal.mean()
        return importance if float(importance.min()) > 0 else torch.ones_like(importance)

    def _factor(self, stats: LayerStats) -> tuple[Factor | None, dict[str, object]]:
        """Return the factorization, None without correction, and notes on it for the record."""
        if not self.corrected:
            return None, {}
        gptq = self._gptq()
        try:
            factor = gptq.factor(stats)
        except NotDefiniteError as error:
            return None, {"fallback": "kmeans without correction", "reason": str(error)}
        return (None if factor.dead.all() else factor), gptq.notes(factor)

    @property
    def factor_key(self) -> tuple[str, float, bool] | None:
        """Key of ``GPTQ`` with the same fields, so that both share a factorization; None without correction."""
        return self._gptq().factor_key if self.corrected else None

    def _gptq(self) -> GPTQ:
        return GPTQ(damping=self.damping)


def _rounded(weight: Tensor, grid: Grid, factor: Factor | None) -> QuantizedWeight:
    codes = round_to_grid(weight, grid) if factor is None else round_corrected(weight, grid, factor)
    return QuantizedWeight(codes, grid)
