"""One metric of one cell: its value, the score of every item, and a 95% interval."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmq_sweeps.metrics.base import Floats


@dataclass(frozen=True)
class MetricResult:
    """A metric's figure over the items of ``per_item``.

    ``totals`` ``[N, S]`` are the counts that make ``value`` where it is not the mean of ``per_item`` (BLEU, METEOR,
    recall over both directions), in the order of ``per_item``; ``paired_difference`` needs them there.
    ``by_type`` holds the figure of each kind of item where the scorer was given kinds. ``definition`` names the published
    script that the figure equals, where several go by one name. ``warnings`` are short sentences that say why the figure
    means less than it seems, and must be shown beside it.
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

    @property
    def count(self) -> int:
        """How many items the value is over."""
        return len(self.per_item)

    def warned(self, *warnings: str) -> MetricResult:
        """The same result with ``warnings`` beside those that it has, each once."""
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *warnings))))
