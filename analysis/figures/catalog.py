"""Build the figures: each maker reads a family of cells and yields panels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import BITS, METRIC, WHOLE
from analysis.cells.remarks import left_out
from analysis.cells.selections import assignment, of_method, warnings_of, whole
from analysis.figures.confidence import risk_coverage
from analysis.figures.plots import XY, Bars, Heatmap, Panel, Plot, Series, Space
from analysis.figures.transfer import transfer_plots, with_key_drawn
from analysis.measures.family import Family, families
from analysis.measures.frontier import Frontier
from analysis.measures.sensitivity import Sensitivity, with_common_groups
from analysis.measures.transfer import transfer
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS, part_order
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.reporting.table import WARNED

# Characters of a slug: with the rest of the file name, some file systems reject more.
LONGEST_SLUG = 120
# The figure that compares families; the others show one each.
TRANSFER = "transfer"
# The share of a grid of bit-widths that is measured, for it to be drawn as one: a part alone only fills an edge of it.
LEAST_FILLED = 0.5
# A family that cannot show a figure gives no panel.
Maker = Callable[[Family], Iterator[Panel]]


def figures(cells: Cells, metric: str | None = None, names: Sequence[str] = ()) -> list[Plot]:
    """Build the figures ``names`` (default: all) of every family that can show them, called ``NAME-MODEL-TASK-SOURCE``.

    Raises ValueError for an unknown figure, or if no family can show any.
    """
    unknown = set(names) - {*FIGURES, TRANSFER}
    if unknown:
        raise ValueError(f"unknown figures {', '.join(sorted(unknown))}: choose {', '.join([*FIGURES, TRANSFER])}")
    of_families = [name for name in names if name != TRANSFER]
    found = []
    if of_families or not names:
        found = [plot for family in families(cells, metric) for plot in plots(family, of_families)]
    if not names or TRANSFER in names:
        found += _of_transfer(cells, metric)
    if not found:
        lacking = "; ".join(f"{name} needs {NEEDS[name]}" for name in names or ["tradeoff"])
        raise ValueError(f"no cell can be shown: {lacking}")
    return found


def _of_transfer(cells: Cells, metric: str | None) -> list[Plot]:
    """Build the figure that compares families; empty if nothing of them can be compared."""
    try:
        return list(map(with_key_drawn, transfer_plots(transfer(cells, metric))))
    except ValueError:
        return []


def plots(family: Family, names: Sequence[str] = ()) -> list[Plot]:
    """Build those of the figures ``names`` (default: all) that ``family`` can show, with notes on cells that they leave out."""
    notes = list(left_out(family.cells.frame, family.cells.parts))
    return [
        Plot(
            f"{name}-{_slug(family.title)}",
            f"{FIGURES[name][0]}: {family.title}",
            panels,
            notes if name in OF_WHOLE_PARTS else [],
        )
        for name in names or FIGURES
        if (panels := list(FIGURES[name][1](family)))
    ]


def _slug(title: str) -> str:
    """Convert ``title`` to a file name; a digest keeps names unique if characters were dropped."""
    kept = "".join(letter if letter.isalnum() or letter in "_." else " " for letter in title)
    slug = "-".join(kept.replace("published", "").replace(".csv", "").split())
    if all(sign.isalnum() or sign in "_.-,() " for sign in title) and len(slug) <= LONGEST_SLUG:
        return slug
    return f"{slug[:LONGEST_SLUG]}-{digest(title)[:6]}"


def tradeoff(family: Family) -> Iterator[Panel]:
    series = []
    for one in family.frontiers:
        rows = one.rows
        interval = {name: rows[name].tolist() for name in ("low", "high") if name in rows}
        series.append(_sizes("", one.cells[one.cells["method"] != "none"], one, line=False, faint=True))
        series.append(_sizes(one.method, rows, one, **interval))
    if series:
        full = next((one.full for one in family.frontiers if one.full is not None), None)
        yield XY("", "bits per weight", family.quality.label, series, level=full)


def _sizes(label: str, rows: pd.DataFrame, one: Frontier, **look: Any) -> Series:
    """Convert cells of a frontier's method to points of quality over bits per weight."""
    names = [_named(row, one.metric) for _, row in rows.iterrows()]
    figures = (rows["bpw_paper"].tolist(), rows[one.quality.column].tolist())
    return Series(label, *figures, names=names, style=one.method, **look)


def parts(family: Family) -> Iterator[Panel]:
    """Yield a panel per part, quantized alone: a curve per method over the part's bits."""
    for told in _told(family):
        alone = told.whole_alone
        for part in _in_order(alone, "part"):
            rows = alone[alone["part"] == part]
            series = [_curve(method, rows[rows["method"] == method], told) for method in _in_order(rows, "method")]
            yield _bits_panel(f"{part} alone", family, series, told.full)


def groups(family: Family) -> Iterator[Panel]:
    """Yield a panel per part and method: a curve per block group (thirds of the part's blocks)."""
    yield from _narrowed(family, "blocks", BLOCK_GROUPS, "layers")


def layers(family: Family) -> Iterator[Panel]:
    """Yield a panel per part and method: a curve per layer kind (attention, MLP)."""
    yield from _narrowed(family, "layers", LAYER_KINDS, "blocks")


def _narrowed(family: Family, by: str, choices: Sequence[str], other: str) -> Iterator[Panel]:
    """Yield a panel per part and method, with a curve per one of ``choices`` in the column ``by``; ``other`` is whole."""
    for told in _told(family):
        rows = with_common_groups(told.alone)
        if rows.empty or not rows[by].isin(choices).any():
            continue
        rows = rows[rows[other] == WHOLE[other]]
        for method in _in_order(rows, "method"):
            for part in _in_order(rows[rows["method"] == method], "part"):
                of_part = rows[(rows["method"] == method) & (rows["part"] == part)]
                if not of_part[by].isin(choices).any():
                    continue
                shown = [choice for choice in (*choices, WHOLE[by]) if (of_part[by] == choice).any()]
                series = [
                    _curve("all" if choice == WHOLE[by] else choice, of_part[of_part[by] == choice], told)
                    for choice in shown
                ]
                yield _bits_panel(f"{part}, {method}", family, series, told.full)


def heatmaps(family: Family) -> Iterator[Panel]:
    """Yield heat maps of two parts against each other, the third at its highest bits (full precision if measured)."""
    for method in family.methods:
        frame = _whole_cells(family, method)
        named = [part for part in family.cells.parts if frame[f"{BITS}{part}"].nunique() > 1]
        for index, first in enumerate(named):
            for second in named[index + 1 :]:
                rest = [part for part in named if part not in (first, second)]
                held = frame
                for part in rest:
                    held = held[held[f"{BITS}{part}"] == held[f"{BITS}{part}"].max()]
                table = held.pivot_table(
                    f"{METRIC}{family.metric}", f"{BITS}{second}", f"{BITS}{first}", aggfunc="mean"
                )
                if min(table.shape) > 1 and table.notna().to_numpy().mean() >= LEAST_FILLED:
                    fixed = "".join(f", {part} {int(held[f'{BITS}{part}'].max())}" for part in rest)
                    yield Heatmap(
                        f"{method}{fixed}", f"{first} bits", f"{second} bits",
                        [f"{width:g}" for width in table.columns], [f"{width:g}" for width in table.index],
                        table.to_numpy().tolist(), family.quality.label, higher=family.quality.higher,
                    )  # fmt: skip


def importance(family: Family) -> Iterator[Panel]:
    found, _ = family.importance
    if not found:
        return
    labels = sorted({str(part) for one in found for part in one.table.index}, key=part_order)
    groups = []
    for one in found:
        table = one.table.reindex(labels)
        groups.append(
            Series(
                one.method, range(len(labels)), table["mean"].tolist(), table["low"].tolist(), table["high"].tolist()
            )
        )
    yield Bars("", "importance (of 100)", labels, groups)


def pairs(family: Family) -> Iterator[Panel]:
    """Yield heat maps of parts at equal bits: a part alone on the diagonal, two together beside it."""
    for method in family.methods:
        rows = _whole_cells(family, method)
        rows = rows[rows["method"] == method]
        bits = rows[[f"{BITS}{part}" for part in family.cells.parts]].to_numpy(dtype=float)
        score = rows[f"{METRIC}{family.metric}"].to_numpy(dtype=float)
        for width in sorted({width for line in bits for width in line if width < FULL_PRECISION_BITS}):
            at_most_two = ((bits == width) | (bits == FULL_PRECISION_BITS)).all(axis=1)
            low, names = bits == width, range(len(family.cells.parts))
            values = [
                [_mean(score[at_most_two & (low.sum(axis=1) == len({i, j})) & low[:, i] & low[:, j]]) for j in names]
                for i in names
            ]
            if sum(not math.isnan(value) for line in values for value in line) > len(names):
                yield Heatmap(
                    f"{method}, {width:g} bits", "part", "and part", family.cells.parts, family.cells.parts, values,
                    family.quality.label, higher=family.quality.higher,
                )  # fmt: skip


def space(family: Family) -> Iterator[Panel]:
    """Yield a 3D panel per method whose cells vary the bits of three parts, coloured by score."""
    for method in family.methods:
        rows = _whole_cells(family, method)
        varied = [part for part in family.cells.parts if rows[f"{BITS}{part}"].nunique() > 1]
        columns = [f"{BITS}{part}" for part in varied]
        if len(varied) == 3 and _filled(rows, columns) >= LEAST_FILLED / 2:
            yield Space(
                method, (f"{varied[0]} bits", f"{varied[1]} bits", f"{varied[2]} bits"),
                [tuple(point) for point in rows[columns].to_numpy(dtype=float)],
                rows[f"{METRIC}{family.metric}"].tolist(), family.quality.label,
                [_named(row, family.metric) for _, row in rows.iterrows()], higher=family.quality.higher,
            )  # fmt: skip


def interaction(family: Family) -> Iterator[Panel]:
    """Yield a panel per method: damage of two parts together against the sum of each alone; above the line, worse together."""
    for told in _told(family):
        if told.pairs.empty:
            continue
        pairs = told.pairs.assign(
            which=told.pairs["parts"].str.replace(r" \d+( g\d+| tensor| channel)?( \([^)]*\))?", "", regex=True)
        )
        for method in _in_order(pairs, "method"):
            rows = pairs[pairs["method"] == method]
            series = [
                Series(
                    which, group["sum"].tolist(), group["together"].tolist(), names=group["parts"].tolist(), line=False
                )
                for which, group in rows.groupby("which", sort=False)
            ]
            yield XY(method, "sum of damages alone", f"damage together ({family.quality.label})", series, diagonal=True)


FIGURES: dict[str, tuple[str, Maker]] = {
    "tradeoff": ("Quality against bits per weight", tradeoff),
    "parts": ("One part at a time", parts),
    "groups": ("Block groups", groups),
    "layers": ("Layer kinds", layers),
    "heatmaps": ("Two parts against each other", heatmaps),
    "pairs": ("Part by part at equal bits", pairs),
    "importance": ("Importance of the parts", importance),
    "space": ("Bits of all parts", space),
    "interaction": ("Do damages add up", interaction),
    "risk_coverage": ("Wrong answers among the most confident", risk_coverage),
}


# Figures that show a cell by the bits of its parts alone.
OF_WHOLE_PARTS = ("parts", "heatmaps", "pairs", "space")

# The cells that each figure needs, for the message if no family can show it.
NEEDS = {
    "tradeoff": "quantized cells: python -m mmq_sweeps -m method=gptq bits=2,3,4,8",
    "parts": "full precision and cells of one part: python -m mmq_sweeps -m component=vision,connector,language bits=3,4",
    "groups": "cells that narrow a part's blocks: component=language component.language.blocks=[front],[middle],[end]",
    "layers": "cells that narrow a part's layers: component=language component.language.layers=[attention],[mlp]",
    "heatmaps": "a grid over two parts: component.vision.bits=3,4,8 component.language.bits=3,4,8",
    "pairs": "cells that quantize two parts as a whole: component=vision,language,vision_language",
    "importance": "at least 20 cells of a method in which two parts have several bit-widths",
    "space": "a grid over three parts: component.vision.bits=3,8 component.connector.bits=3,8 component.language.bits=3,8",
    "interaction": "full precision, cells of two parts, and of each of them alone: component=vision,language,vision_language",
    "risk_coverage": "questions scored by task.metrics=[gqa_accuracy,ece,aurc]",
    TRANSFER: "cells of two models or tasks at the same assignments",
}


def _told(family: Family) -> Iterator[Sensitivity]:
    if family.sensitivity is not None:
        yield family.sensitivity


def _curve(label: str, rows: pd.DataFrame, told: Sensitivity) -> Series:
    """Convert ``rows`` of damages to a curve of scores over bits."""
    rows = rows.groupby("bits", as_index=False).first().sort_values("bits")
    sign = told.quality.sign
    interval = {}
    if "low" in rows:
        ends = [told.full - sign * rows[name] for name in (("high", "low") if told.quality.higher else ("low", "high"))]
        interval = {name: end.tolist() for name, end in zip(("low", "high"), ends, strict=True)}
    names = [f"{label} {bits} bits" for bits in rows["bits"]]
    return Series(label, rows["bits"].tolist(), (told.full - sign * rows["damage"]).tolist(), names=names, **interval)


def _bits_panel(title: str, family: Family, series: Sequence[Series], full: float) -> XY:
    widths = sorted({float(width) for one in series for width in one.x})
    return XY(title, "bits", family.quality.label, series, level=full, ticks=widths)


def _whole_cells(family: Family, method: str) -> pd.DataFrame:
    """Select the cells of ``method`` and full precision with a figure that quantize every part as a whole or not at all."""
    rows = of_method(family.cells.frame, method)
    rows = rows[rows[f"{METRIC}{family.metric}"].notna()]
    return rows[whole(rows, family.cells.parts)]


def _named(row: pd.Series, metric: str) -> str:
    """Describe a cell in words, with the warnings about its metric."""
    told = "\n".join(warnings_of(row, metric))
    return assignment(row) + (f"\n{WARNED} {told}" if told else "")


def _filled(rows: pd.DataFrame, columns: Sequence[str]) -> float:
    """Return which share of the combinations of all levels of ``columns`` is among ``rows``."""
    return len(rows[columns].drop_duplicates()) / math.prod(rows[column].nunique() for column in columns)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _in_order(rows: pd.DataFrame, column: str) -> list[str]:
    if rows.empty:
        return []
    return sorted(rows[column].unique(), key=part_order if column == "part" else str)
