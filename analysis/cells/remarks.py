"""Sentences on cells that a view leaves out or that carry warnings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from analysis.cells.columns import DEFINITION, WARNINGS
from analysis.cells.selections import any_mixed, mixes_methods, quantized_elsewhere, whole
from mmq_sweeps.reporting.counts import are, counted, out_of
from mmq_sweeps.reporting.table import definition_note, metric_label


def failed_cells(rows: pd.DataFrame, place: str) -> Iterator[str]:
    """Yield a sentence on how many cells of the source at ``place`` failed, if any did."""
    if failed := int((rows["status"] != "done").sum()):
        yield f"{failed} of {counted(len(rows), 'cell')} in {place} failed and {are(failed)} left out of figures"


def warned(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """Yield a sentence on how many cells carry a warning about ``metric``, if any do."""
    number = int(rows[f"{WARNINGS}{metric}"].notna().sum()) if f"{WARNINGS}{metric}" in rows else 0
    if number:
        carry = out_of(number, len(rows), "cell", "carries", "carry")
        yield f"{carry} a warning about {metric_label(metric)}, which the audit tells"


def defined(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """Yield a sentence on the script that ``metric`` equals, or that cells differ in it, if their records say it."""
    if f"{DEFINITION}{metric}" in rows:
        yield from definition_note(metric, rows[f"{DEFINITION}{metric}"].dropna())


def left_out(rows: pd.DataFrame, parts: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on the cells that ``whole`` leaves out, if there are any."""
    several = any_mixed(rows, parts)
    elsewhere = quantized_elsewhere(rows)
    number = int((~whole(rows, parts) & ~several & ~elsewhere).sum())
    for count, verbs in ((int(elsewhere.sum()), ELSEWHERE), (number, NARROWED), (int(several.sum()), SEVERAL)):
        if count:
            yield f"{out_of(count, len(rows), 'cell', *verbs)} and {are(count)} left out here"


# Reasons to leave cells out, for one cell and for several.
ELSEWHERE = ("was quantized elsewhere", "were quantized elsewhere")
NARROWED = (
    "quantizes only some blocks or layers of a part, or gives a part a group size of its own,",
    "quantize only some blocks or layers of a part, or give a part a group size of its own,",
)
SEVERAL = (
    "gives the units of a part several bit-widths, or chooses them by number,",
    "give the units of a part several bit-widths, or choose them by number,",
)


def other_methods(family: pd.DataFrame, method: str) -> Iterator[str]:
    """Yield a sentence on the cells that mix ``method`` with others, which are no cells of it, if there are any."""
    if mixes_methods(method):
        return
    named = re.compile(rf"(^|, ){re.escape(method.split(' ')[0])} \(")
    number = sum(mixes_methods(name) and named.search(name) is not None for name in family["method"])
    if number:
        yield f"{counted(number, 'cell mixes', 'cells mix')} {method} with another method and {are(number)} left out here"
