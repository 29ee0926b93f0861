"""Draw figures as HTML pages that show a cell on hover. Pages need no network; the plotting library is inlined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.figures.paper import COLOURS
from analysis.figures.plots import XY, Bars, Heatmap, Plot, Series, Space

SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "dot")
PANEL_PIXELS = 420
COLUMNS = 3
POINTED = "%{text}<br>%{x:.3f}, %{y:.4f}<extra></extra>"


def save(plot: Plot, folder: Path) -> Path:
    """Write ``NAME.html`` to ``folder``; return its path."""
    path = folder / f"{plot.name}.html"
    draw(plot).write_html(path, include_plotlyjs="inline", full_html=True, div_id=plot.name)
    return path


def draw(plot: Plot) -> go.Figure:
    columns = min(COLUMNS, len(plot.panels))
    rows = -(-len(plot.panels) // columns)
    kinds = [{"type": "scene" if isinstance(panel, Space) else "xy"} for panel in plot.panels]
    specs = [(kinds + [None] * columns)[row * columns : (row + 1) * columns] for row in range(rows)]
    figure = make_subplots(rows, columns, specs=specs, subplot_titles=[panel.title for panel in plot.panels])
    legend = Legend()
    for number, panel in enumerate(plot.panels):
        DRAW[type(panel)](figure, panel, number // columns + 1, number % columns + 1, legend)
    curves = [panel for panel in plot.panels if isinstance(panel, XY)]
    if len(curves) == len(plot.panels) and len({panel.y_label for panel in curves}) == 1:
        figure.update_yaxes(matches="y")  # A small effect must not look like a large one.
    low, high = plot.colour_range()
    figure.update_traces({"zmin": low, "zmax": high}, selector={"type": "heatmap"})
    figure.update_traces({"marker": {"cmin": low, "cmax": high}}, selector={"type": "scatter3d"})
    figure.update_layout(title=plot.title, height=rows * PANEL_PIXELS + 100, template="plotly_white")
    return figure


@dataclass
class Legend:
    """The number of each style, and the styles already in the legend."""

    numbers: dict[str, int] = field(default_factory=dict)
    shown: set[str] = field(default_factory=set)

    def number(self, one: Series) -> int:
        return self.numbers.setdefault(one.style or one.label, len(self.numbers)) % len(COLOURS)

    def enter(self, one: Series) -> bool:
        """Return true for the first labelled series of a style, and mark the style as shown."""
        style = one.style or one.label
        new = bool(one.label) and style not in self.shown
        if new:
            self.shown.add(style)
        return new


def _draw_xy(figure: go.Figure, panel: XY, row: int, column: int, legend: Legend) -> None:
    for one in panel.series:
        number = legend.number(one)
        error = None
        if one.low is not None and one.high is not None:
            above = [high - y for high, y in zip(one.high, one.y, strict=True)]
            below = [y - low for low, y in zip(one.low, one.y, strict=True)]
            error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
        figure.add_trace(
            go.Scatter(
                x=list(one.x), y=list(one.y), error_y=error, mode="lines+markers" if one.line else "markers",
                name=one.label or one.style, legendgroup=one.style or one.label, showlegend=legend.enter(one),
                text=list(one.names) or None, hovertemplate=POINTED if one.names else None,
                opacity=0.35 if one.faint else 1, line={"color": COLOURS[number], "dash": DASHES[number]},
                marker={"symbol": SYMBOLS[number], "size": 5 if one.faint else 8, "color": COLOURS[number]},
            ),
            row, column,
        )  # fmt: skip
    if panel.level is not None:
        figure.add_hline(
            panel.level, row=row, col=column, line={"dash": "dot", "color": "#666"}, annotation_text="full precision"
        )
    if panel.diagonal:
        both = [*panel.series[0].x, *panel.series[0].y]
        ends = [min(both), max(both)]
        figure.add_trace(
            go.Scatter(x=ends, y=ends, mode="lines", line={"dash": "dot", "color": "#666"}, showlegend=False),
            row,
            column,
        )
    figure.update_xaxes(title_text=panel.x_label, tickvals=list(panel.ticks) or None, row=row, col=column)
    figure.update_yaxes(title_text=panel.y_label, row=row, col=column)


def _colours(panel: Heatmap | Space) -> str:
    """Return the colour map in which bright is better."""
    return "Cividis" if panel.higher else "Cividis_r"


def _draw_heatmap(figure: go.Figure, panel: Heatmap, row: int, column: int, _legend: Legend) -> None:
    shared = {
        "colorscale": _colours(panel),
        "showscale": (row, column) == (1, 1),
        "colorbar": {"title": panel.value_label},
    }
    figure.add_trace(
        go.Heatmap(x=list(panel.columns), y=list(panel.rows), z=[list(line) for line in panel.values], **shared),
        row,
        column,
    )
    figure.update_xaxes(title_text=panel.x_label, type="category", row=row, col=column)
    figure.update_yaxes(title_text=panel.y_label, type="category", row=row, col=column)


def _draw_bars(figure: go.Figure, panel: Bars, row: int, column: int, legend: Legend) -> None:
    for one in panel.groups:
        error = None
        if one.low is not None and one.high is not None:
            above = [max(high - y, 0) for high, y in zip(one.high, one.y, strict=True)]
            below = [max(y - low, 0) for low, y in zip(one.low, one.y, strict=True)]
            error = {"type": "data", "symmetric": False, "array": above, "arrayminus": below}
        colour = COLOURS[legend.number(one)]
        figure.add_trace(
            go.Bar(x=list(panel.labels), y=list(one.y), error_y=error, name=one.label, marker_color=colour), row, column
        )
    figure.update_yaxes(title_text=panel.y_label, row=row, col=column)


def _draw_space(figure: go.Figure, panel: Space, row: int, column: int, _legend: Legend) -> None:
    x, y, z = zip(*panel.points, strict=True)
    marker = {
        "size": 4,
        "color": list(panel.values),
        "colorscale": _colours(panel),
        "colorbar": {"title": panel.value_label},
    }
    marker["showscale"] = (row, column) == (1, 1)
    figure.add_trace(
        go.Scatter3d(
            x=x, y=y, z=z, mode="markers", marker=marker, text=list(panel.names), showlegend=False,
            customdata=list(panel.values), hovertemplate="%{text}<br>%{customdata:.4f}<extra></extra>",
        ),
        row, column,
    )  # fmt: skip
    titles = {f"{axis}axis_title_text": label for axis, label in zip("xyz", panel.labels, strict=True)}
    figure.update_scenes(titles, row=row, col=column)


DRAW: dict[type, Callable[[go.Figure, Any, int, int, Legend], None]] = {
    XY: _draw_xy,
    Heatmap: _draw_heatmap,
    Bars: _draw_bars,
    Space: _draw_space,
}
