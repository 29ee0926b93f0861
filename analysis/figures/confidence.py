"""Figure of how well cells know which of their answers are right."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.cells.selections import assignment
from analysis.figures.plots import XY, Panel, Series
from analysis.measures.family import Family
from mmq_sweeps.metrics.probability.confidence import risk_coverage as curve_of

AURC = "aurc"
# More curves than these cannot be told apart, and more points than these are not seen.
MOST_CURVES, MOST_POINTS = 8, 40


def risk_coverage(family: Family) -> Iterator[Panel]:
    """Yield the share of wrong answers among the most confident ones, over how many are kept: full precision and frontier.

    Cells need the metric ``aurc``, whose items hold confidence and error.
    """
    series = []
    for label, totals in _measured(family):
        coverage, risk = curve_of(totals)
        places = np.unique(np.linspace(0, len(risk) - 1, min(len(risk), MOST_POINTS)).astype(int))
        series.append(Series(label, coverage[places].tolist(), risk[places].tolist()))
        if len(series) == MOST_CURVES:
            break
    if series:
        yield XY("", "share of questions answered, most confident first", "share wrong", series)


def _measured(family: Family) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield full precision, then the cells on a frontier from the most bits to the fewest, with the totals of ``aurc``."""
    frame = family.cells.frame
    on_frontier = {cell_id for one in family.frontiers for cell_id in one.rows["id"]}
    full, others = frame["method"] == "none", frame["id"].isin(on_frontier) & (frame["method"] != "none")
    rows = [
        frame[full].iloc[:1],
        frame[others].sort_values("bpw_paper", ascending=False) if others.any() else frame[:0],
    ]
    for row in (row for part in rows for _, row in part.iterrows()):
        totals = [item["totals"][AURC] for item in family.cells.items(row) or () if AURC in item.get("totals", {})]
        if totals:
            yield assignment(row), totals
