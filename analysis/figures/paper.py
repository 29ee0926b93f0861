"""Draw figures for a paper: PNG and PDF, in column and page width.

Colours are Okabe and Ito's, distinguishable with any colour vision. Each series also has its own marker and dash, so figures
stay readable in greyscale. Fonts are embedded as type 42 outlines, which journals accept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.plots import XY, Bars, Heatmap, Panel, Plot, Series, Space

COLUMN_INCHES = {"column": 3.3, "page": 6.9}
PANEL_INCHES = 2.4
# Of an entry of the legend, in inches: its mark with the space around it, and a letter.
LEGEND_MARK, LEGEND_LETTER = 0.5, 0.05
DPI = 300
# Heat maps up to MOST_WRITTEN fields show values as text; tick labels beyond LONG_LABEL characters are rotated.
MOST_WRITTEN, LONG_LABEL = 25, 4
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
FULL_PRECISION = "full precision"
SETTINGS = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
    "ytick.labelsize": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3,
    "grid.linewidth": 0.5, "lines.linewidth": 1.2, "lines.markersize": 4, "legend.frameon": False,
    "pdf.fonttype": 42, "ps.fonttype": 42, "savefig.bbox": "tight", "savefig.pad_inches": 0.03,
}  # fmt: skip


def save(plot: Plot, folder: Path) -> list[Path]:
    """Draw ``plot`` at both widths to ``folder``: ``NAME-column.png``, ``NAME-page.pdf`` and so on; return the paths."""
    written = []
    with mpl.rc_context(SETTINGS):
        for width, inches in COLUMN_INCHES.items():
            figure = draw(plot, inches)
            for kind in ("png", "pdf"):
                path = folder / f"{plot.name}-{width}.{kind}"
                # Reproducible files: no date, no library version.
                metadata = (
                    {"CreationDate": None, "Producer": None, "Creator": None} if kind == "pdf" else {"Software": None}
                )
                figure.savefig(path, dpi=DPI, metadata=metadata)
                written.append(path)
    return written


def draw(plot: Plot, inches: float) -> Figure:
    """Draw ``plot`` with as many panels per row as fit into ``inches``."""
    columns = max(1, min(len(plot.panels), int(inches // 2.2)))
    rows = -(-len(plot.panels) // columns)
    figure = Figure(figsize=(inches, rows * PANEL_INCHES + 0.3), layout="constrained")
    styles = _styles(plot)
    for number, panel in enumerate(plot.panels):
        axes: Any = figure.add_subplot(rows, columns, number + 1, projection="3d" if isinstance(panel, Space) else None)
        DRAW[type(panel)](axes, panel, styles)
        axes.set_title(panel.title)
    _share_ranges(figure, plot)
    _share_labels(figure.axes, plot.panels, columns)
    _share_colours(figure, plot)
    _legend(figure)
    return figure


def _share_ranges(figure: Figure, plot: Plot) -> None:
    """Give curves of the same quantity the same range: a small effect must not look like a large one."""
    curves = [panel for panel in plot.panels if isinstance(panel, XY)]
    if len(curves) < len(plot.panels):
        return
    for axis, labels in (("x", {panel.x_label for panel in curves}), ("y", {panel.y_label for panel in curves})):
        if len(labels) == 1:
            limits = [getattr(axes, f"get_{axis}lim")() for axes in figure.axes]
            for axes in figure.axes:
                getattr(axes, f"set_{axis}lim")(min(low for low, _ in limits), max(high for _, high in limits))


def _share_labels(drawn: Sequence[Axes], panels: Sequence[Panel], columns: int) -> None:
    """Label an axis once for a row or column of panels that have it in common."""
    for number, (axes, panel) in enumerate(zip(drawn, panels, strict=True)):
        below = panels[number + columns] if number + columns < len(panels) else None
        left = panels[number - 1] if number % columns else None
        if below is not None and _axis(panel, "x") == _axis(below, "x") is not None:
            axes.set_xlabel("")
            axes.tick_params(axis="x", labelbottom=False)
        if left is not None and _axis(panel, "y") == _axis(left, "y") is not None:
            axes.set_ylabel("")
            axes.tick_params(axis="y", labelleft=False)


def _axis(panel: Panel, axis: str) -> tuple[Any, ...] | None:
    """Return the labels and ticks of an axis, equal for panels that share it; None if it is the panel's own."""
    if isinstance(panel, Heatmap):
        return (panel.x_label, *panel.columns) if axis == "x" else (panel.y_label, *panel.rows)
    if isinstance(panel, XY):
        return (panel.x_label, *panel.ticks) if axis == "x" else (panel.y_label,)
    return None


def _share_colours(figure: Figure, plot: Plot) -> None:
    """Share the colour scale and its bar between panels."""
    images = [axes.images[0] for axes in figure.axes if axes.images]
    low, high = plot.colour_range()
    spaces = [axes for axes in figure.axes if axes.name == "3d"]
    for axes in spaces:
        axes.collections[0].set_clim(low, high)
    if spaces:
        label = next(panel.value_label for panel in plot.panels if isinstance(panel, Space))
        figure.colorbar(spaces[0].collections[0], ax=spaces, label=label, aspect=30, pad=0.08, shrink=0.85)
    higher = all(panel.higher for panel in plot.panels if isinstance(panel, Heatmap | Space))
    for image in images:
        image.set_clim(low, high)
        _write_values(image.axes, image.get_array(), (low + high) / 2, higher)
    if images:
        label = next(panel.value_label for panel in plot.panels if isinstance(panel, Heatmap))
        figure.colorbar(images[0], ax=[image.axes for image in images], label=label, aspect=30)


def _colours(panel: Heatmap | Space) -> str:
    """Return the colour map in which bright is better."""
    return "cividis" if panel.higher else "cividis_r"


def _write_values(axes: Axes, values: Any, middle: float, higher: bool) -> None:
    """Write values into the fields of a small heat map: numbers are more precise than colours."""
    if values.size > MOST_WRITTEN:
        return
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if np.isfinite(value):
                colour = "black" if (value > middle) == higher else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)


def _styles(plot: Plot) -> dict[str, int]:
    """Number the styles in order of first use."""
    named: dict[str, int] = {}
    for panel in plot.panels:
        series = panel.series if isinstance(panel, XY) else panel.groups if isinstance(panel, Bars) else ()
        for one in series:
            named.setdefault(one.style or one.label, len(named))
    return named


def _look(one: Series, styles: dict[str, int]) -> dict[str, Any]:
    number = styles[one.style or one.label] % len(COLOURS)
    look = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": DASHES[number] if one.line else "none"}
    return {**look, "alpha": 0.25, "markersize": 2, "markeredgewidth": 0} if one.faint else look


def _draw_xy(axes: Axes, panel: XY, styles: dict[str, int]) -> None:
    for one in panel.series:
        look = _look(one, styles)
        axes.plot(one.x, one.y, label=one.label or None, **look)
        if one.low is not None and one.high is not None:
            axes.fill_between(one.x, one.low, one.high, color=look["color"], alpha=0.15, linewidth=0)
    if panel.level is not None:
        axes.axhline(panel.level, color="0.4", linestyle=":", linewidth=1, label=FULL_PRECISION)
    if panel.diagonal:
        low, high = axes.get_xlim()
        axes.axline((low, low), (high, high), color="0.4", linestyle=":", linewidth=1, label="damages add up")
    if panel.ticks:
        axes.set_xticks(list(panel.ticks), [f"{width:g}" for width in panel.ticks])
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)


def _draw_heatmap(axes: Axes, panel: Heatmap, _styles: dict[str, int]) -> None:
    values = np.array(panel.values, dtype=np.float64)
    axes.imshow(values, cmap=_colours(panel), aspect="auto", origin="lower")
    longest = max(map(len, panel.columns))
    axes.set_xticks(range(len(panel.columns)), panel.columns, rotation=30 if longest > LONG_LABEL else 0)
    axes.set_yticks(range(len(panel.rows)), panel.rows)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(visible=False)


def _draw_bars(axes: Axes, panel: Bars, styles: dict[str, int]) -> None:
    width = 0.8 / max(len(panel.groups), 1)
    for number, one in enumerate(panel.groups):
        place = np.arange(len(panel.labels)) + (number - (len(panel.groups) - 1) / 2) * width
        figures = np.array(one.y, dtype=np.float64)
        error = None
        if one.low is not None and one.high is not None:
            # A bootstrap interval need not contain the estimate itself.
            error = np.clip([figures - np.array(one.low), np.array(one.high) - figures], 0, None)
        hatch = ("", "///", "...", "xxx", "\\\\\\")[styles[one.style or one.label] % 5]
        colour = COLOURS[styles[one.style or one.label] % len(COLOURS)]
        axes.bar(
            place, figures, width * 0.95, yerr=error, capsize=2, label=one.label, color=colour, alpha=0.85,
            hatch=hatch, edgecolor="white", error_kw={"linewidth": 0.8},
        )  # fmt: skip
    axes.set_xticks(range(len(panel.labels)), panel.labels)
    axes.set_ylabel(panel.y_label)


def _draw_space(axes: Any, panel: Space, _styles: dict[str, int]) -> None:
    """Draw points with the bit-widths of each part at equal distances: 16 is far from the others."""
    points = np.array(panel.points, dtype=np.float64)
    places = []
    for name, label, values in zip(("x", "y", "z"), panel.labels, points.T, strict=True):
        widths, place = np.unique(values, return_inverse=True)
        places.append(place)
        getattr(axes, f"set_{name}label")(label, labelpad=-6)
        getattr(axes, f"set_{name}ticks")(range(len(widths)), [f"{width:g}" for width in widths])
        axes.tick_params(axis=name, pad=-3)
    axes.scatter(*places, c=panel.values, cmap=_colours(panel), s=10, depthshade=False)
    # Room for the labels, which the layout does not know.
    axes.set_box_aspect(None, zoom=0.9)


DRAW: dict[type, Callable[[Any, Any, dict[str, int]], None]] = {
    XY: _draw_xy,
    Heatmap: _draw_heatmap,
    Bars: _draw_bars,
    Space: _draw_space,
}


def _legend(figure: Figure) -> None:
    """Draw a shared legend below all panels."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        widest = LEGEND_MARK + LEGEND_LETTER * max(map(len, named))
        columns = max(1, int(figure.get_figwidth() // widest))
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=min(columns, len(named)))
