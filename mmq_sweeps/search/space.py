"""The choices of a search: axes, their options with exact sizes, and the assignment that a choice of options stands for.

An *axis* is a set of units that always share one setting: a part, a layer kind of a part, a layer kind of a block group, or a
single unit, as the *granularity* says. A *point* has the place of the chosen option for every axis.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS

GRANULARITIES = ("part", "kind", "group", "unit")
BITS_PER_GB = 8_000_000_000
# The place of the chosen option for each axis, in the order of the axes.
Point = tuple[int, ...]


@dataclass(frozen=True)
class Option:
    """A setting of an axis: a bit-width, and the method as an assignment file names it.

    ``method`` is None at full precision, and for the method of the configuration. ``label`` is shown to people.
    """

    bits: int
    method: Mapping[str, Any] | None = field(default=None, hash=False)
    group_size: int | str | None = None
    label: str = ""

    @property
    def full(self) -> bool:
        """True if the option leaves its units at full precision."""
        return self.bits == FULL_PRECISION_BITS

    @property
    def setting(self) -> dict[str, Any]:
        """The option as a value of an assignment file."""
        found: dict[str, Any] = {"bits": self.bits}
        if not self.full:
            found |= {} if self.group_size is None else {"group_size": self.group_size}
            found |= {} if self.method is None else {"method": dict(self.method)}
        return found


@dataclass(frozen=True)
class Axis:
    """Units that share a setting, their options, and the exact stored bits of their weights under each option.

    ``where`` is the rule that selects the units in an assignment: empty for a part, else ``blocks`` and ``layers``; a single
    unit has none and is named in ``units``.
    """

    name: str
    part: str
    units: tuple[str, ...]
    weights: int
    options: tuple[Option, ...]
    stored_bits: tuple[int, ...]
    where: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)

    @property
    def by_number(self) -> bool:
        """True if an assignment names the axis as a unit of its own."""
        return self.name in self.units and self.name != self.part


@dataclass(frozen=True)
class Space:
    """All points of a search over ``axes`` of the model ``model``.

    ``base_bits`` are the exact bits of everything that no axis changes; ``parameters`` counts all parameters.
    """

    model: str
    granularity: str
    axes: tuple[Axis, ...]
    base_bits: int
    parameters: int

    @property
    def finer(self) -> bool:
        """True if axes are finer than parts."""
        return len({axis.part for axis in self.axes}) < len(self.axes)

    @property
    def count(self) -> int:
        """Number of points."""
        return math.prod(len(axis.options) for axis in self.axes)

    @cached_property
    def sizes(self) -> list[NDArray[np.int64]]:
        """Exact stored bits of every axis by option."""
        return [np.array(axis.stored_bits, dtype=np.int64) for axis in self.axes]

    @cached_property
    def methods(self) -> list[NDArray[np.int64]]:
        """The number of every option's method by axis; an option at full precision has that of the first."""
        numbers: dict[str, int] = {}

        def number(option: Option) -> int:
            return 0 if option.full else numbers.setdefault(json.dumps(option.method, sort_keys=True), len(numbers))

        return [np.array([number(option) for option in axis.options], dtype=np.int64) for axis in self.axes]

    def bits(self, point: Point) -> int:
        """Return the exact bits of the whole model."""
        return self.base_bits + sum(axis.stored_bits[place] for axis, place in zip(self.axes, point, strict=True))

    def bpw(self, point: Point) -> float:
        """Return the exact bits per weight of the whole model, as its record has them."""
        return self.bits(point) / self.parameters

    @property
    def least_bits(self) -> int:
        """Exact bits of the smallest point."""
        return self.base_bits + sum(min(axis.stored_bits) for axis in self.axes)

    @property
    def full_bits(self) -> int:
        """Exact bits at full precision."""
        return self.base_bits + FULL_PRECISION_BITS * sum(axis.weights for axis in self.axes)

    @property
    def smallest(self) -> Point:
        """The point of the smallest size."""
        return tuple(int(np.argmin(own)) for own in self.sizes)

    @property
    def best_options(self) -> Point:
        """The point with the option of every axis that takes most bits: full precision if that is an option."""
        return tuple(int(np.argmax(own)) for own in self.sizes)

    def uniform(self) -> list[Point]:
        """Return the points that give all axes the same option, as far as they have it; smallest first.

        An axis without the option takes the one next to it in bits that is not smaller.
        """
        options = dict.fromkeys(option for axis in self.axes for option in axis.options)
        found = {tuple(_nearest(axis, option) for axis in self.axes) for option in options}
        return sorted(found, key=lambda point: (self.bits(point), point))

    def points(self) -> Iterator[Point]:
        """Yield every point; mind ``count``."""
        yield from np.ndindex(*(len(axis.options) for axis in self.axes))

    def neighbours(self, point: Point) -> list[Point]:
        """Return the points that differ in one axis, by the option next to it in size among those of the same method,
        and those that move one axis up and another down.
        """
        steps = [self._steps(number, place) for number, place in enumerate(point)]
        found: dict[Point, None] = {}
        for number, (lower, higher) in enumerate(steps):
            found |= dict.fromkeys(_moved(point, {number: place}) for place in (*lower, *higher))
            for other, (_, up) in enumerate(steps):
                if other != number:
                    found |= dict.fromkeys(_moved(point, {number: down, other: to}) for down in lower for to in up)
        return list(found)

    def _steps(self, number: int, place: int) -> tuple[list[int], list[int]]:
        """Return the next smaller and next larger options of an axis, by the same method or at full precision."""
        own, options = self.axes[number].stored_bits, self.axes[number].options
        alike = [
            other
            for other, option in enumerate(options)
            if option.full or options[place].full or option.method == options[place].method
        ]
        order = sorted(alike, key=lambda other: own[other])
        lower = [other for other in order if own[other] < own[place]][-1:]
        higher = [other for other in order if own[other] > own[place]][:1]
        return lower, higher

    def content(self, point: Point) -> dict[str, Any]:
        """Return the content of an assignment file (docs/assignments.md) for ``point``."""
        parts: dict[str, Any] = {}
        units: dict[str, Any] = {}
        for axis, place in zip(self.axes, point, strict=True):
            setting = axis.options[place].setting
            if axis.by_number:
                parts.setdefault(axis.part, [])
                units[axis.name] = setting
            elif axis.where:
                parts.setdefault(axis.part, []).append({**axis.where, **setting})
            else:
                parts[axis.part] = setting
        return {"model": self.model, "parts": parts, **({"units": units} if units else {})}

    def label(self, point: Point) -> str:
        """Format a point for a person: ``vision gptq 4, language gptq 3``; widths alone if there are many axes."""
        named = zip(self.axes, point, strict=True)
        if len(self.axes) <= 6:
            return ", ".join(
                f"{axis.name} {axis.options[place].label or axis.options[place].bits}" for axis, place in named
            )
        return f"{self.granularity}: {self.bpw(point):.4f} bits per weight"


@dataclass(frozen=True)
class Budget:
    """A limit that the answer must keep, as ``text`` was asked for (``max_bpw=3.5``): exact bits, or a share of full precision.

    With a ``share`` the smallest point that keeps it is wanted, and ``bits`` are those of full precision.
    """

    text: str
    bits: int
    share: float | None = None

    @staticmethod
    def of_bpw(value: float, space: Space) -> Budget:
        """Return the budget of ``value`` exact bits per weight; ConfigError unless the space reaches it."""
        return Budget._checked("max_bpw", value, math.floor(value * space.parameters + 1e-6), space)

    @staticmethod
    def of_gb(value: float, space: Space) -> Budget:
        """Return the budget of ``value`` times 10**9 bytes; ConfigError unless the space reaches it."""
        return Budget._checked("max_gb", value, math.floor(value * BITS_PER_GB + 1e-6), space)

    @staticmethod
    def of_quality(value: float, space: Space) -> Budget:
        """Return the budget of at least the share ``value`` of full precision's score; ConfigError unless it is a share."""
        if not 0 < value <= 1:
            raise ConfigError(
                f"hydra.sweeper.min_quality={value:g}: is the share of full precision's score that is to be kept; choose a "
                "number above 0 and at most 1, such as 0.95."
            )
        return Budget(f"min_quality={value:g}", space.full_bits, value)

    @staticmethod
    def _checked(key: str, value: float, bits: int, space: Space) -> Budget:
        unit = space.parameters if key == "max_bpw" else BITS_PER_GB
        least, full = space.least_bits / unit, space.full_bits / unit
        choices = f"choose {_four_digits(least, math.ceil)} or more, and less than {_four_digits(full, math.floor)}"
        if not math.isfinite(value) or bits < space.least_bits:
            raise ConfigError(
                f"hydra.sweeper.{key}={value:g}: the lowest options of all axes weigh {least:.4g}; {choices}, or add lower "
                "bit-widths."
            )
        if bits >= space.full_bits:
            raise ConfigError(
                f"hydra.sweeper.{key}={value:g}: full precision weighs {full:.4g}, so nothing need be quantized; {choices}."
            )
        return Budget(f"{key}={value:g}", bits)


def _four_digits(value: float, towards: Callable[[float], int]) -> str:
    """Format ``value`` with four digits, rounded ``towards`` the numbers that a budget may be."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 3)
    return f"{towards(value / unit) * unit:.4g}"


def _nearest(axis: Axis, option: Option) -> int:
    if option in axis.options:
        return axis.options.index(option)
    order = sorted(range(len(axis.options)), key=lambda other: (axis.options[other].bits, other))
    return next((other for other in order if axis.options[other].bits >= option.bits), order[-1])


def _moved(point: Point, changes: Mapping[int, int]) -> Point:
    return tuple(changes.get(number, place) for number, place in enumerate(point))
