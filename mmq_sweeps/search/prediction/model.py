"""Learn the cost of every option from a prior table and a few measured cells.

The logarithm of a point's score, relative to full precision, is ``-h(D)`` with ``D`` the sum over axes of ``c_a T[a, o] **
g``: the prior ``T`` of the chosen option (output error, or divergence from full precision) times a coefficient of the axis,
which is that of its part times a deviation of its own, and times one of the option's method if there are several: errors of a
method that is not calibrated are of its weights, and mean another damage than errors of outputs. ``h(D) = D + k D ** 2``
bends the sum, because damages of several parts need not add up: ``k`` above zero is a damage that is more than its parts'.
All are fitted together to the measured cells, around their priors (a least-squares fit, whose minimum is the most probable
value), with a level for each set of items that cells were measured on. What a cell's score differs from the fit is believed
to the degree that its noise allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.stats import norm

from mmq_sweeps.search.space import Point

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Shares of full precision below this are as bad as each other.
LOWEST = 0.02
# Spreads of the priors: of a part's coefficient, an axis's deviation, a method's coefficient, the exponent and the bend.
PART, AXIS, METHOD, EXPONENT, BEND = 3.0, 0.5, 1.0, 0.2, 0.4
# Spread of the fit's error in a point's logarithm: a constant, and a share of its damage. More would let the noise of races
# decide.
MISFIT = (0.005, 0.1)


@dataclass(frozen=True)
class Observation:
    """The mean score of a point, None for full precision, on the items of set ``items``; ``variance`` is that of the mean,
    apart from what all points on these items have in common.
    """

    point: Point | None
    items: int
    mean: float
    variance: float


@dataclass
class DamageModel:
    """See the module. ``parts`` has the number of each axis's part, ``exponent`` the prior mean of ``g``.

    ``methods`` has the number of every option's method by axis, None if there is one.
    """

    prior: Sequence[Floats]
    parts: Sequence[int]
    exponent: float = 1.0
    methods: Sequence[Ints] | None = None
    _observed: list[Observation] = field(default_factory=list, repr=False)
    _fitted: _Parameters | None = field(default=None, repr=False)

    def fit(self, observations: Sequence[Observation]) -> None:
        """Fit to ``observations``; full precision must be among those of the first set of items."""
        self._observed = list(observations)
        self._fitted = self._fit(self._observed)

    def _fit(self, observed: Sequence[Observation]) -> _Parameters:
        methods = self._methods
        sets = sorted({own.items for own in observed})
        count, axes = max(self.parts) + 1, len(self.parts)
        numbers = np.array(self.parts, dtype=np.int64)
        start_levels = [_start_level(observed, number) for number in sets]
        scale = self._scale(observed, start_levels, sets)
        # Priors and methods of the options that were measured, by axis.
        chosen = np.array([_of_options(self.prior, own.point) for own in observed], np.float64).reshape(-1, axes)
        by = np.array([_of_options(methods, own.point) for own in observed], np.int64).reshape(-1, axes)
        several = max(int(own.max()) for own in methods) + 1
        # One method needs no coefficient of its own.
        free = several if several > 1 else 0
        first_level = count + axes + 2 + free
        place = np.array([sets.index(own.items) for own in observed], dtype=np.int64)
        logs = np.array([_log(own.mean) for own in observed])
        lost = np.maximum(0.0, np.array([start_levels[number] for number in place]) - logs)
        spread = np.sqrt([_variance(own) + _misfit(damage) ** 2 for own, damage in zip(observed, lost, strict=True)])
        single = np.bincount(numbers, minlength=count)[numbers] == 1

        def unpack(values: Floats) -> _Parameters:
            levels = values[first_level:]
            own = np.where(single, 0.0, values[count : count + axes] * AXIS)
            return _Parameters(
                scale + values[:count] * PART,
                own,
                values[count + axes + 2 : first_level] * METHOD if free else np.zeros(1),
                self.exponent * float(np.exp(values[count + axes] * EXPONENT)),
                float(values[count + axes + 1] * BEND),
                dict(zip(sets, levels, strict=True)),
            )

        def residuals(values: Floats) -> Floats:
            found = unpack(values)
            damage = (found.coefficients(self.parts) * np.exp(found.method[by]) * chosen**found.exponent).sum(axis=1)
            levels = values[first_level:]
            misses = (logs - levels[place] + _bent(damage, found.bend)) / spread if len(observed) else np.empty(0)
            apart = (levels[1:] - levels[:1]) / 0.3
            return np.concatenate([misses, values[:first_level], apart])

        first = np.concatenate([np.zeros(first_level), start_levels])
        fitted = least_squares(residuals, first, method="trf", x_scale="jac", max_nfev=200)
        # Laplace's approximation: the residuals are standardized, those of the priors among them.
        covariance = np.linalg.pinv(fitted.jac.T @ fitted.jac)
        return replace(unpack(fitted.x), vector=fitted.x, covariance=covariance, unpack=unpack)

    def _scale(self, observed: Sequence[Observation], levels: Sequence[float], sets: Sequence[int]) -> float:
        """Return the logarithm of the coefficient with which the sum of priors has the damages' order of magnitude."""
        ratios = []
        for own in observed:
            if own.point is not None:
                total = sum(float(prior) ** self.exponent for prior in _of_options(self.prior, own.point))
                lost = levels[sets.index(own.items)] - _log(own.mean)
                if total > 0 and lost > 0.01:
                    ratios.append(np.log(min(lost, -np.log(LOWEST)) / total))
        return float(np.median(ratios)) if ratios else 0.0

    @property
    def _methods(self) -> Sequence[Ints]:
        return self.methods if self.methods is not None else [np.zeros(len(own), np.int64) for own in self.prior]

    @property
    def corrected_prior(self) -> list[Floats]:
        """The prior with the coefficients of methods, and with nothing else that was learned."""
        found = self._parameters
        return [
            own * np.exp(found.method[by] / found.exponent) for own, by in zip(self.prior, self._methods, strict=True)
        ]

    def tables(self) -> list[Floats]:
        """Return the damage of every axis and option, whose sums rank points as ``relative`` does."""
        found = self._parameters
        by_axis = zip(found.coefficients(self.parts), self._methods, self.prior, strict=True)
        return [factor * np.exp(found.method[by]) * own**found.exponent for factor, by, own in by_axis]

    def relative(self, point: Point) -> float:
        """Return the predicted score of ``point`` as a share of full precision's, measured points not believed."""
        return float(np.exp(-self._bent_damage(point, self._parameters)))

    def share(self, damage: float) -> float:
        """Return the share of full precision that a sum of ``tables`` keeps."""
        return float(np.exp(-_bent(np.array(damage), self._parameters.bend)))

    def _bent_damage(self, point: Point, parameters: _Parameters) -> float:
        coefficients = parameters.coefficients(self.parts)
        prior = np.array(_of_options(self.prior, point))
        methods = np.array(_of_options(self._methods, point), np.int64)
        damages = coefficients * np.exp(parameters.method[methods]) * prior**parameters.exponent
        return float(_bent(np.array(damages.sum()), parameters.bend))

    def estimate(self, point: Point) -> float:
        """Return the share of full precision that ``point`` is believed to keep, after its own measurements."""
        rest, _ = self._rest(point)
        return float(self.relative(point) * np.exp(rest))

    def gain(self, point: Point, other: Point) -> float:
        """Return how much more of full precision ``point`` is expected to keep than ``other``, if it keeps more.

        This is the mean of the positive part of the difference, as far as the fit knows it: what is lost, on average, by
        settling for ``other`` (the opportunity cost of Chick and Inoue, Operations Research 49, 2001).
        """
        spread, other_spread = self._rest(point)[1], self._rest(other)[1]
        mean = self.estimate(point) - self.estimate(other)
        steps = self._parameters.steps(lambda own: self._bent_damage(other, own) - self._bent_damage(point, own))
        variance = float(steps @ self._parameters.covariance @ steps) + spread**2 + other_spread**2
        width = float(np.sqrt(variance)) * max(self.estimate(point), self.estimate(other))
        return float(mean * norm.cdf(mean / width) + width * norm.pdf(mean / width)) if width > 0 else max(mean, 0.0)

    def _rest(self, point: Point) -> tuple[float, float]:
        """Return the rest of a point's logarithm that its own measurements show beyond the fit, and the spread of that."""
        predicted = -self._bent_damage(point, self._parameters)
        logs, weights = [0.0], [1 / _misfit(-predicted) ** 2]
        for own in self._observed:
            if own.point == point:
                logs.append(_log(own.mean) - self._parameters.levels[own.items] - predicted)
                weights.append(1 / _variance(own))
        return float(np.average(logs, weights=weights)), float(1 / np.sqrt(sum(weights)))

    @property
    def _parameters(self) -> _Parameters:
        if self._fitted is None:
            self._fitted = self._fit([])
        return self._fitted


@dataclass(frozen=True)
class _Parameters:
    part: Floats
    axis: Floats
    method: Floats
    exponent: float
    bend: float
    levels: dict[int, float]
    # The fitted vector, its meaning, and the covariance of its error.
    vector: Floats = field(default_factory=lambda: np.empty(0))
    covariance: Floats = field(default_factory=lambda: np.empty((0, 0)))
    unpack: Callable[[Floats], _Parameters] | None = None

    def coefficients(self, parts: Sequence[int]) -> Floats:
        found: Floats = np.exp(np.clip(self.part[np.array(parts, dtype=np.int64)] + self.axis, -50, 50))
        return found

    def steps(self, value: Callable[[_Parameters], float], size: float = 1e-4) -> Floats:
        """Return the derivatives of ``value`` by the fitted vector."""
        if self.unpack is None:
            return np.zeros(len(self.vector))
        middle, found = value(self), np.zeros(len(self.vector))
        for place in range(len(self.vector)):
            moved = self.vector.copy()
            moved[place] += size
            found[place] = (value(self.unpack(moved)) - middle) / size
        return found


def _bent(damage: Floats, bend: float) -> Floats:
    """Return ``h``, which never falls."""
    found: Floats = np.where(bend >= 0, damage + bend * damage**2, damage / (1 + np.maximum(-bend, 0) * damage))
    return found


def _of_options(tables: Sequence[Floats | Ints], point: Point | None) -> list[float]:
    """Return the values of ``tables`` for the options of ``point``, by axis; zero for full precision."""
    return [0] * len(tables) if point is None else [own[place] for own, place in zip(tables, point, strict=True)]


def _misfit(damage: float) -> float:
    return MISFIT[0] + MISFIT[1] * min(abs(damage), 3.0)


def _log(mean: float) -> float:
    return float(np.log(max(mean, 1e-9)))


def _variance(own: Observation) -> float:
    """Return the variance of the logarithm of a mean; a mean near zero is known to be bad, not how bad."""
    relative = own.variance / max(own.mean, 1e-9) ** 2
    return float(min(relative + 1e-6, 4.0))


def _start_level(observed: Sequence[Observation], number: int) -> float:
    inside = [own for own in observed if own.items == number]
    full = [own for own in inside if own.point is None]
    return max(_log(own.mean) for own in (full or inside))
