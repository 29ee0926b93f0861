"""Data of the first screen of a family: its metrics, its sizes, and each cell's share of full precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import METRIC
from analysis.cells.items import Column as Scores
from analysis.cells.items import stacked
from analysis.cells.table import MOST_SCORED
from analysis.measures.family import Family
from analysis.measures.frontier import non_dominated, resampled_means
from analysis.measures.quality import Quality
from analysis.report.columns import SIZES, rounded

BUDGET, KEEP = 4.0, 0.98
# How a size is said: the unit, and the selector's words.
UNITS = {
    "bpw_paper": ("bits per weight", "bits per weight (paper)"),
    "bpw_exact": ("exact bits per weight", "bits per weight (exact)"),
    "size_bytes": ("MB", "MB"),
}


def overview(family: Family, numbers: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """Return the family's content for the page's scripts; ``numbers`` are those of the cells on the page.

    ``shares`` maps a metric to the 95% interval of the share of full precision of every cell that can be the answer to a
    budget: the items are resampled, the same for the cell and for full precision.
    """
    frame = family.cells.frame
    metrics = [family.metric, *(name for name in family.cells.metrics if name != family.metric)]
    qualities = {name: Quality.of(family.cells, name) for name in metrics if frame[f"{METRIC}{name}"].notna().any()}
    sizes = [name for name in SIZES if name in frame and frame[name].notna().any()]
    full = frame[frame["method"] == "none"]
    model, task = frame[["model", "task"]].iloc[0]
    return {
        "title": family.title,
        "model": model,
        "task": task,
        "parts": family.cells.parts,
        "methods": family.methods,
        "budget": BUDGET,
        "keep": KEEP,
        "metrics": [
            {"name": name, "label": quality.label, "higher": quality.higher, "full": _median(full[quality.column])}
            for name, quality in qualities.items()
        ],
        "sizes": [
            {"name": name, "unit": UNITS[name][0], "label": UNITS[name][1], "full": _median(full[name])}
            for name in sizes
        ],
        "shares": _shares(family.cells, qualities, sizes, numbers),
    }


def _median(values: pd.Series) -> float | None:
    known = values.dropna()
    return None if known.empty else rounded(float(known.median()))


def _shares(
    cells: Cells, qualities: Mapping[str, Quality], sizes: list[str], numbers: Mapping[tuple[str, str], int]
) -> dict[str, dict[int, list[float | None]]]:
    full = next(iter(qualities.values())).baseline(cells.frame)
    if full is None or len(cells.frame) > MOST_SCORED:
        return {}
    chosen = {name: answers(cells.frame, quality, sizes) for name, quality in qualities.items()}
    rows = sorted({full}.union(*chosen.values()))
    # Items that were read before are not read again.
    scores = dict(zip(rows, cells.summaries(cells.frame.loc[rows], cells.book.scores), strict=True))
    found = {}
    for name, quality in qualities.items():
        own = share_intervals(scores, full, sorted(chosen[name]), cells.frame[quality.column], name)
        keys = {row: (cells.frame["id"][row], cells.frame["where"][row]) for row in own}
        found[name] = {numbers[keys[row]]: [rounded(low), rounded(high)] for row, (low, high) in own.items()}
    return {name: own for name, own in found.items() if own}


def answers(frame: pd.DataFrame, quality: Quality, sizes: list[str]) -> set[int]:
    """Return the rows that can be the answer to a budget of one of ``sizes``, among some of the methods.

    They are on the frontier of their own method: a cell that one of its method beats is never the answer.
    """
    found: set[int] = set()
    for size in sizes:
        known = frame[frame[quality.column].notna() & frame[size].notna()]
        for _, rows in known.groupby("method", observed=True):
            mask = non_dominated(rows[size].to_numpy(dtype=np.float64), quality.score(rows))
            found |= set(rows.index[mask])
    return found


def share_intervals(
    scores: Mapping[int, Mapping[str, Scores]], full: int, rows: list[int], figures: pd.Series, metric: str
) -> dict[int, tuple[float, float]]:
    """Return the 95% interval of each row's share of full precision, over paired draws of the items.

    Rows without the items of full precision are left out, and so are figures that are no mean of their items.
    """
    baseline = scores[full].get(metric)
    if baseline is None:
        return {}
    pairs = {row: stacked([baseline, scores[row].get(metric)]) for row in rows if row != full}
    alike = [row for row, pair in pairs.items() if pair is not None]
    if not alike:
        return {}
    table = np.stack([baseline.values, *(pair[1] for pair in pairs.values() if pair is not None)])
    means = np.isclose(table.mean(axis=1), figures[[full, *alike]].to_numpy(dtype=np.float64))
    draws = resampled_means(table, baseline.owners)
    if not means[0] or not (draws[:, 0] > 0).all():
        return {}
    low, high = np.percentile(draws[:, 1:] / draws[:, :1], (2.5, 97.5), axis=0)
    return {row: (float(low[place]), float(high[place])) for place, row in enumerate(alike) if means[place + 1]}
