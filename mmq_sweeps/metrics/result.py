"""Result of one metric for one cell: its value, the score of every item, and a 95% interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmq_sweeps.metrics.base import Floats


@dataclass(frozen=True)
class Alike:
    """How alike a cell's answers are, as shares of its items.

    ``empty`` have no answer; ``identical`` have the ``commonest`` answer, which is not empty, and ``expected`` would if all
    were right. In retrieval, an answer is the item that a query finds first, in the direction that repeats itself more.
    """

    empty: float
    identical: float
    expected: float
    commonest: str = ""


@dataclass(frozen=True)
class MetricResult:
    """A metric's figure over the items of ``per_item``.

    ``totals`` ``[N, S]`` are the counts behind a ``value`` that is not the mean of ``per_item`` (BLEU, METEOR, recall
    over both directions), in the order of ``per_item``; ``paired_difference`` needs them. ``by_type`` holds the figure
    of each kind of item, if the scorer knows kinds. ``definition`` names the published script that the figure equals,
    if several share the name. ``warnings`` are short sentences on why the figure means less than it seems; show them
    beside it. ``alike`` says how alike the answers behind the figure are, if there are answers. ``groups`` says what items
    share, such as a picture, if some share it: they are drawn together.
    """

    name: str
    value: float
    per_item: dict[str, float]
    interval: tuple[float, float]
    higher_is_better: bool
    by_type: dict[str, float] = field(default_factory=dict)
    totals: Floats | None = field(default=None, repr=False, compare=False)
    definition: str = ""
    warnings: tuple[str, ...] = ()
    alike: Alike | None = None
    groups: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def count(self) -> int:
        """Number of items behind the value."""
        return len(self.per_item)

    def warned(self, *warnings: str) -> MetricResult:
        """Return the result with ``warnings`` added, without duplicates."""
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *warnings))))
