"""What a figure shows, apart from how it is drawn: panels of numbers with labels.

Two renderers draw these: ``paper`` for PNG and PDF, ``interactive`` for a page that tells a cell when it is pointed at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan

Numbers = Sequence[float]


@dataclass(frozen=True)
class Series:
    """Points that belong together. ``low`` and ``high`` are the 95% interval of ``y``; ``names`` are shown on pointing."""

    label: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    names: Sequence[str] = ()
    line: bool = True
    faint: bool = False
    # Series of one style have one colour, marker and dash, in every panel of a figure; by default the label decides.
    style: str = ""


@dataclass(frozen=True)
class XY:
    """Curves or points over two axes. ``level`` is a horizontal line (full precision); ``diagonal`` draws x = y."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    level: float | None = None
    diagonal: bool = False
    ticks: Numbers = ()


@dataclass(frozen=True)
class Heatmap:
    """``values[row][column]``; a missing one is NaN. Bright is better: ``higher`` values or lower."""

    title: str
    x_label: str
    y_label: str
    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Numbers]
    value_label: str
    higher: bool = True


@dataclass(frozen=True)
class Bars:
    """One bar a ``label`` in each of ``groups``, with its interval."""

    title: str
    y_label: str
    labels: Sequence[str]
    groups: Sequence[Series]


@dataclass(frozen=True)
class Space:
    """Points in three dimensions, coloured by ``values``. Bright is better: ``higher`` or lower values."""

    title: str
    labels: tuple[str, str, str]
    points: Sequence[tuple[float, float, float]]
    values: Numbers
    value_label: str
    names: Sequence[str] = ()
    higher: bool = True


Panel = XY | Heatmap | Bars | Space


@dataclass(frozen=True)
class Plot:
    """A figure: its file's ``name``, its ``title`` and its panels, side by side."""

    name: str
    title: str
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default=())

    def colour_range(self) -> tuple[float, float]:
        """The lowest and the highest value that a colour stands for, alike in all panels: noise is not to look like damage."""
        rows = [line for panel in self.panels if isinstance(panel, Heatmap) for line in panel.values]
        rows += [panel.values for panel in self.panels if isinstance(panel, Space)]
        values = [value for row in rows for value in row if not isnan(value)]
        return (min(values), max(values)) if values else (0.0, 1.0)
