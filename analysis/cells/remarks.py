"""Sentences on cells that a view leaves out or that carry warnings."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from analysis.cells.columns import DEFINITION, WARNINGS
from analysis.cells.selections import mixed, mixes_methods, quantized_elsewhere, whole
from mmq_sweeps.reporting.table import definition_note


def warned(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """Yield a sentence on how many cells carry a warning about ``metric``, if any do."""
    number = int(rows[f"{WARNINGS}{metric}"].notna().sum()) if f"{WARNINGS}{metric}" in rows else 0
    if number:
        yield f"{number} of {len(rows)} cells carry a warning about {metric}, which the audit tells"


def defined(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """Yield a sentence on the script that ``metric`` equals, or that cells differ in it, if their records say it."""
    if f"{DEFINITION}{metric}" in rows:
        yield from definition_note(metric, rows[f"{DEFINITION}{metric}"].dropna())


def left_out(rows: pd.DataFrame, parts: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on the cells that ``whole`` leaves out, if there are any."""
    several = pd.Series(data=False, index=rows.index)
    for part in parts:
        several |= mixed(rows, part)
    elsewhere = quantized_elsewhere(rows)
    number = int((~whole(rows, parts) & ~several & ~elsewhere).sum())
    if elsewhere.any():
        yield f"{int(elsewhere.sum())} of {len(rows)} cells were quantized elsewhere and are left out here"
    if number:
        yield (
            f"{number} of {len(rows)} cells quantize only some blocks or layers of a part, or give a part a group size of "
            "its own, and are left out here"
        )
    if several.any():
        yield (
            f"{int(several.sum())} of {len(rows)} cells give the units of a part several bit-widths, or choose them by "
            "number, and are left out here"
        )


def other_methods(family: pd.DataFrame, method: str) -> Iterator[str]:
    """Yield a sentence on the cells that mix ``method`` with others, which are no cells of it, if there are any."""
    if mixes_methods(method):
        return
    named = re.compile(rf"(^|, ){re.escape(method.split(' ')[0])} \(")
    number = sum(mixes_methods(name) and named.search(name) is not None for name in family["method"])
    if number:
        yield f"{number} cells mix {method} with another method and are left out here"
