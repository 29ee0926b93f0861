"""Codebooks: values that need not lie evenly. A weight is ``scale * values[code]``.

``NORMAL_FLOAT`` are the fixed tables of NF2, NF3 and NF4 (QLoRA, arXiv 2305.14314): values that normal weights, divided by
the largest magnitude of their group, take about equally often, with an exact zero and both ends at 1.
``fit`` finds the values of a row by weighted k-means in one dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

# The width of a normal float's first and last bin, as published with QLoRA.
OFFSET = 0.9677083
# Lloyd's steps at most; rows of 10,240 weights need fewer than 100.
MOST_STEPS = 300
# Places where a row may be cut, and the most values for which the best of them are sought.
MOST_CUTS, MOST_EXACT = 128, 32
# Bytes of temporaries for a weight and for a pair of cuts, and of all rows fitted at once.
WEIGHT_BYTES, CUT_BYTES, FITTED_BYTES = 64, 40, 2**24


@cache
def normal_float(bits: int) -> Tensor:
    """Return the ``2**bits`` values of a normal float, ascending from -1 to 1, with a zero: float32 ``[2**bits]``.

    ``2**(bits - 1)`` values lie above zero and one fewer below, at the quantiles of a normal distribution.
    """
    half = 2 ** (bits - 1)
    normal = torch.distributions.Normal(0.0, 1.0)
    above = normal.icdf(torch.linspace(OFFSET, 0.5, half + 1, dtype=torch.float64)[:-1])
    below = -normal.icdf(torch.linspace(OFFSET, 0.5, half, dtype=torch.float64)[:-1])
    values = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (values / values.max()).float()


def nearest(values: Tensor, x: Tensor) -> Tensor:
    """Return the code of the nearest of ascending ``values`` ``[R or 1, K]`` to each of ``x`` ``[R, N]``, as uint8.

    The lower code wins a tie.
    """
    between = ((values[:, 1:] + values[:, :-1]) / 2).to(x.dtype)
    return torch.searchsorted(between.expand(len(x), -1).contiguous(), x.contiguous()).to(torch.uint8)


def fit(weight: Tensor, importance: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Return for each of ``counts`` that many values, ascending, of every row of ``weight`` ``[R, I]``: float64 ``[R, count]``.

    They lower ``sum_i importance_i (w_i - value)^2`` of a row, with ``importance`` ``[I]`` above zero. In one dimension the
    weights of a value lie side by side, so dynamic programming finds where to cut a row that has been sorted: the best cuts
    there are in rows of up to ``MOST_CUTS`` weights; in longer ones the best of ``MOST_CUTS`` that lie densely where many
    values would (Panter and Dite 1951), from where Lloyd's steps go on. More than ``MOST_EXACT`` values start from that
    density itself. Counts that are asked for together share the work.
    """
    at_once = max(1, FITTED_BYTES // (weight.shape[1] * WEIGHT_BYTES + MOST_CUTS**2 * CUT_BYTES))
    chunks = [_Rows.of(part, importance).fitted(counts) for part in weight.split(at_once)]
    return [torch.cat(found) for found in zip(*chunks, strict=True)]


@dataclass(frozen=True)
class _Rows:
    """Rows of a weight in ascending order, ``x`` ``[R, I]``, with their importance.

    ``sums`` are the running sums ``[R, I + 1]`` of importance times ``x**0``, ``x**1`` and ``x**2``, so that those of a run
    are differences.
    """

    x: Tensor
    importance: Tensor
    sums: tuple[Tensor, Tensor, Tensor]

    @staticmethod
    def of(weight: Tensor, importance: Tensor) -> _Rows:
        ascending, order = weight.sort(dim=1)
        x = ascending.double()
        own = importance.double()[order]
        zeroth, first, second = (pad(part.cumsum(dim=1), (1, 0)) for part in (own, own * x, own * x * x))
        return _Rows(x, own, (zeroth, first, second))

    def fitted(self, counts: Sequence[int]) -> list[Tensor]:
        """Return the values of each row ``[R, count]`` for each of ``counts``."""
        few = [count for count in counts if count <= MOST_EXACT]
        starts = dict(zip(few, self._cut(few), strict=True)) if few else {}
        return [self._settled(starts[count] if count in starts else self._spread(count)) for count in counts]

    def _spread(self, count: int) -> Tensor:
        """Return weights of each row at even steps of the number of values that are to lie between neighbours."""
        places = self._even_places((torch.arange(count, device=self.x.device) + 0.5) / count)
        return self.x.gather(1, places.clamp_(max=self.x.shape[1] - 1))

    def _even_places(self, shares: Tensor) -> Tensor:
        """Return where in each row ``shares`` of the values that are to lie in it lie below: ``[R, len(shares)]``.

        For many values the density with the least error is the third root of the weights' own.
        """
        distance = self.x.diff(dim=1, prepend=self.x[:, :1])
        # The least number for rows whose weights are all the same.
        dense = (self.importance * distance.square()).pow(1 / 3) + torch.finfo(torch.float64).tiny
        running = dense.cumsum(dim=1)
        return torch.searchsorted(running, running[:, -1:] * shares)

    def _cut(self, counts: Sequence[int]) -> list[Tensor]:
        """Return the means of the best runs between places where a row may be cut, for each of ``counts``.

        The least error up to a place with one run more is the least over where the last run starts.
        """
        length = self.x.shape[1]
        if length <= MOST_CUTS:
            places = torch.arange(length + 1, device=self.x.device).expand(len(self.x), -1)
        else:
            shares = torch.linspace(0, 1, MOST_CUTS + 1, dtype=torch.float64, device=self.x.device)[1:-1]
            places = pad(pad(self._even_places(shares), (1, 0)), (0, 1), value=length)
        number = places.shape[1]
        before, after = torch.tril_indices(number, number, -1, device=places.device)[[1, 0]]
        # Single precision decides between cuts as well, and takes half the time.
        dtype = torch.float64 if length <= MOST_CUTS else torch.float32
        runs = torch.full((len(self.x), number, number), torch.inf, dtype=dtype, device=places.device)
        # ``runs[:, after, before]``, so that the least over where a run starts is over neighbours in memory.
        runs[:, after, before] = self._of_runs(places[:, before], places[:, after]).to(dtype)
        runs.diagonal(dim1=1, dim2=2).zero_()
        least, begins, found = runs[:, :, 0], [], {1: self._means(places[:, :1], places[:, -1:])}
        for count in range(2, max(counts) + 1):
            least, begin = (runs + least[:, None, :]).min(dim=2)
            begins.append(begin)
            if count in counts:
                found[count] = self._means_between(places, begins)
        return [found[count] for count in counts]

    def _means_between(self, places: Tensor, begins: Sequence[Tensor]) -> Tensor:
        """Follow where runs begin, from the last one back; return the means of the runs, ascending."""
        cuts = [torch.full_like(places[:, :1], places.shape[1] - 1)]
        for begin in reversed(begins):
            cuts.append(begin.gather(1, cuts[-1]))
        cuts.append(torch.zeros_like(cuts[0]))
        bounds = places.gather(1, torch.cat(cuts[::-1], dim=1))
        return self._means(bounds[:, :-1], bounds[:, 1:]).sort(dim=1).values

    def _settled(self, values: Tensor) -> Tensor:
        """Move every value to the mean of the weights nearest to it until none changes its nearest."""
        before = None
        for _ in range(MOST_STEPS):
            bounds = self._bounds(values)
            if before is not None and torch.equal(bounds, before):
                break
            before = bounds
            mass, sums = (running.gather(1, bounds).diff(dim=1) for running in self.sums[:2])
            # A value without weights stays where it is; rounding of the sums alone can bring two out of order.
            values = torch.where(mass > 0, sums / mass, values).sort(dim=1).values
        return values

    def _bounds(self, values: Tensor) -> Tensor:
        """Return where the run of weights nearest to each value starts, and the end ``[R, K + 1]``."""
        inner = torch.searchsorted(self.x, (values[:, 1:] + values[:, :-1]) / 2)
        return pad(pad(inner, (1, 0)), (0, 1), value=self.x.shape[1])

    def _run_sums(self, starts: Tensor, ends: Tensor) -> list[Tensor]:
        return [running.gather(1, ends) - running.gather(1, starts) for running in self.sums]

    def _means(self, starts: Tensor, ends: Tensor) -> Tensor:
        mass, sums, _ = self._run_sums(starts, ends)
        return torch.where(mass > 0, sums / mass, self.x.gather(1, starts.clamp(max=self.x.shape[1] - 1)))

    def _of_runs(self, starts: Tensor, ends: Tensor) -> Tensor:
        """Return the squared error of each run of weights around its own mean."""
        mass, sums, squares = self._run_sums(starts, ends)
        return torch.where(mass > 0, squares - sums * sums / mass, 0.0)
