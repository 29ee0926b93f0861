"""One metric of one cell: its value, the score of every item, and a 95% interval."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmq_sweeps.metrics.base import Floats


@dataclass(frozen=True)
class MetricResult:
    """A metric's figure over the items of ``per_item``.

    ``totals`` ``[N, S]`` are the counts that make ``value`` where it is not the mean of ``per_item`` (BLEU, METEOR,
    recall over both directions), in the order of ``per_item``; ``paired_difference`` needs them there.
    ``by_type`` holds the figure of each kind of item where the scorer was given kinds.
    """

    name: str
    value: float
    per_item: dict[str, float]
    interval: tuple[float, float]
    higher_is_better: bool
    by_type: dict[str, float] = field(default_factory=dict)
    totals: Floats | None = field(default=None, repr=False, compare=False)

    @property
    def count(self) -> int:
        """How many items the value is over."""
        return len(self.per_item)
