"""A figure's content, independent of its renderer: panels of numbers with labels.

Three renderers draw these: ``paper`` for PNG and PDF, ``interactive`` for HTML with hover texts, and the report's page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isnan

Numbers = Sequence[float]


@dataclass(frozen=True)
class Series:
    """Points of a curve. ``low`` and ``high`` are the 95% interval of ``y``; ``names`` are hover texts."""

    label: str
    x: Numbers
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    names: Sequence[str] = ()
    line: bool = True
    faint: bool = False
    # Series with the same style share colour, marker and dash in every panel; defaults to the label.
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
    """``values[row][column]``, NaN if missing. Bright is better: high values if ``higher``, else low."""

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
    """A bar per label in each of ``groups``, with its interval."""

    title: str
    y_label: str
    labels: Sequence[str]
    groups: Sequence[Series]


@dataclass(frozen=True)
class Space:
    """Points in three dimensions, coloured by ``values``. Bright is better: high values if ``higher``, else low."""

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
    """A figure: its file's ``name``, its ``title`` and its panels, drawn side by side."""

    name: str
    title: str
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default=())

    def colour_range(self) -> tuple[float, float]:
        """Return the range of the colour scale, shared by all panels: noise must not look like damage."""
        rows = [line for panel in self.panels if isinstance(panel, Heatmap) for line in panel.values]
        rows += [panel.values for panel in self.panels if isinstance(panel, Space)]
        values = [value for row in rows for value in row if not isnan(value)]
        return (min(values), max(values)) if values else (0.0, 1.0)
