"""The columns of all cells, as the page's scripts read them for its chart, its list and a pinned cell."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import ANSWERS, BITS, METRIC, WARNINGS
from analysis.cells.selections import assignment, loaders_shown, warnings_of
from analysis.measures.missing import again
from analysis.output import plain
from analysis.report.packing import pack
from mmq_sweeps.reporting.table import metric_label

SIZES = ("bpw_paper", "bpw_exact", "size_bytes")
# Significant digits of drawn numbers: more are invisible and enlarge the page.
DIGITS = 7
# Entries of its record that a pinned cell shows, beside its figures.
RECORD = ("status", "error", "created", "seconds", "settings", "variant", "provenance", "url")


def numbers_of(frame: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Map ``(id, where)`` of every cell to its number on the page, which is its row in ``frame``."""
    return {key: number for number, key in enumerate(zip(frame["id"], frame["where"], strict=True))}


def columns(
    cells: Cells,
    numbers: Mapping[tuple[str, str], int],
    families: Sequence[Cells],
    on_frontier: Collection[tuple[str, str]],
    more: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """Return every column by name, each as ``pack`` packs it, without those that are empty.

    ``numbers`` are those of ``numbers_of``; ``families`` are those with a section of their own; ``on_frontier`` has
    ``(id, where)`` of cells on a frontier. ``more`` are other columns, by cell id.
    """
    frame = cells.frame
    family: list[int | None] = [None] * len(frame)
    for number, one in enumerate(families):
        for key in zip(one.frame["id"], one.frame["where"], strict=True):
            family[numbers[key]] = number
    rows = [row for _, row in frame.iterrows()]
    ids = [str(one) for one in frame["id"]]
    warned = [name for name in cells.metrics if f"{WARNINGS}{name}" in frame]
    found: dict[str, Iterable[Any]] = {
        "id": ids,
        "family": family,
        "cell": [assignment(row) for row in rows],
        **{name: frame[name] for name in ("source", "model", "task", "method")},
        **{f"{BITS}{part}": frame[f"{BITS}{part}"].round(2) for part in cells.parts},
        "on frontier": ["yes" if key in on_frontier else "" for key in numbers],
        "warnings": [_warnings(row, warned) for row in rows],
        "loads in": [loaders_shown(row) for row in rows],
        "where": _templates(frame["where"], ids),
        "command": _templates((again(row) for row in rows), ids),
        **{name: frame[name] for name in RECORD if name in frame},
        **{name: _rounded(frame[name]) for name in SIZES if name in frame},
    }
    found |= {name: [rounded(values.get(own, np.nan)) for own in ids] for name, values in more.items()}
    found |= _answers(frame)
    for name in cells.metrics:
        for column in (f"{METRIC}{name}", f"low.{name}", f"high.{name}"):
            if column in frame:
                found[column] = _rounded(frame[column])
        if name in warned:
            found[f"{WARNINGS}{name}"] = frame[f"{WARNINGS}{name}"]
    if "created" in found:
        found["created"] = [_short_time(value) for value in found["created"]]
    packed = {name: pack([_missing(value) for value in values]) for name, values in found.items()}
    return {name: column for name, column in packed.items() if column is not None}


def _short_time(value: Any) -> Any:
    """Cut a time to seconds: ``2026-01-31 12:00:00 UTC``."""
    return TIME.sub(r"\1 \2 UTC", value) if isinstance(value, str) else value


TIME = re.compile(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|\+00:00)$")


def _missing(value: Any) -> Any:
    value = plain(value)
    return None if value is pd.NaT or value == "" else value


def _answers(frame: pd.DataFrame) -> dict[str, list[float | None]]:
    """Return the shares of empty and of equal answers, if a record tells of any."""
    found = {}
    for name, label in (("empty", "empty"), ("identical", "same answer")):
        if f"{ANSWERS}{name}" in frame and (frame[f"{ANSWERS}{name}"] > 0).any():
            found[label] = _rounded(frame[f"{ANSWERS}{name}"])
    return found


def _warnings(row: pd.Series, metrics: Sequence[str]) -> str:
    """Return a cell's warnings about all ``metrics`` in a line, to list and to search."""
    told = {name: warnings_of(row, name) for name in metrics}
    return "; ".join(f"{metric_label(name)}: {'; '.join(texts)}" for name, texts in told.items() if texts)


def _rounded(column: pd.Series) -> list[float | None]:
    return [rounded(value) for value in column.to_numpy(dtype=np.float64)]


def rounded(value: float) -> float | int | None:
    """Round to ``DIGITS`` significant digits; ``None`` for NaN and infinity."""
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short


def _templates(texts: Iterable[Any], ids: Sequence[str]) -> list[str]:
    """Replace each cell's id in its text by ``{id}``, so that texts are alike and pack well."""
    return [str(text).replace(own, "{id}") for text, own in zip(texts, ids, strict=True)]


def short_answers(answers: Mapping[int, Sequence[tuple[str, float | None]]]) -> dict[str, Any]:
    """Pack the answers of cells: each distinct text once, and by cell the number of its text and its score, item by item."""
    texts: dict[str, int] = {}
    said = {
        str(cell): [
            [texts.setdefault(text, len(texts)), None if score is None else rounded(score)] for text, score in own
        ]
        for cell, own in answers.items()
    }
    return {"texts": list(texts), "said": said}
