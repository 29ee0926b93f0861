"""Concatenate the tables of several sources: deduplicate cells, report conflicts, tell variants of a method apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells.columns import BITS, FAMILY, METRIC, VARIANT
from analysis.cells.items import Items
from analysis.cells.table import Cells, History, _no_items
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.reporting.compare import ROUNDING, conflict_sentence, with_variants
from mmq_sweeps.reporting.counts import counted

# Conflicts that get a note of their own.
CONFLICTS_TOLD = 5


def joined(tables: Sequence[Cells]) -> Cells:
    """Concatenate ``tables`` and deduplicate their cells; a cell with conflicting results gets a note."""
    # The last of equal cells wins: put tables with items last.
    tables = sorted(tables, key=lambda table: table.items is not _no_items)
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    notes = [note for table in tables for note in table.notes]
    by_source: dict[str, Callable[[pd.Series], Items | None]] = {}
    for table in tables:
        by_source |= dict.fromkeys(table.frame["where"], table.items)
    kept, conflicts = _deduplicated(frame)
    copies = frame[frame.duplicated("id", keep=False)].reset_index(drop=True)
    return Cells(
        _with_end_parts(_with_variants_named(kept)),
        (*notes, *conflicts),
        lambda row: by_source[row["where"]](row),
        lambda: _together([table.history() for table in tables]),
        copies,
    )


def _together(histories: Sequence[History]) -> History:
    return History(
        *(
            tuple(dict.fromkeys(line for one in histories for line in getattr(one, what.name)))
            for what in fields(History)
        )
    )


def _with_end_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Say of every cell that embeddings and head have full precision, in families where a cell quantizes them."""
    groups = [name for name in (*FAMILY, "setting") if name in frame]
    for part in END_PARTS:
        if f"{BITS}{part}" not in frame:
            continue
        here = frame[f"{BITS}{part}"].notna().groupby([frame[name] for name in groups], dropna=False).transform("any")
        untold = here & frame[f"{BITS}{part}"].isna()
        frame = frame.copy()
        for column, value in end_part(part, FULL_PRECISION_BITS).items():
            frame.loc[untold, column] = value
        frame.loc[untold, f"weights.{part}"] = 0
    return frame


def end_part(part: str, bits: int) -> dict[str, Any]:
    """Return the columns of a part of a single tensor, which has no blocks and layer kinds."""
    return {f"{BITS}{part}": bits, **{f"{name}.{part}": "" for name in ("blocks", "layers", "group")}}


def _with_variants_named(frame: pd.DataFrame) -> pd.DataFrame:
    """Split a method whose cells differ in its fields into several: ``gptq method.group_size=64``."""
    if VARIANT not in frame:
        return frame
    grouped = frame[frame[VARIANT].notna() & (frame["method"] != "none")].groupby(["model", "task", "method"])
    named = frame["method"].copy()
    for _, rows in grouped:
        if rows[VARIANT].nunique() > 1:
            told = {text: json.loads(text) for text in rows[VARIANT].unique()}
            names = dict(
                zip(told, with_variants([(rows["method"].iloc[0], one) for one in told.values()]), strict=True)
            )
            named.loc[rows.index] = rows[VARIANT].map(names)
    return frame.assign(method=named)


def conflicts(copies: pd.DataFrame) -> Iterator[tuple[str, str, float, pd.DataFrame]]:
    """Yield cells measured with different results: id, the metric that differs most, the difference, the rows.

    The difference is infinite if only some have a value.
    """
    figures = [column for column in copies.columns if column.startswith(METRIC)]
    if copies.empty or not figures:
        return
    for cell, rows in copies[copies["status"] == "done"].groupby("id", sort=False):
        values = rows[figures]
        spread = values.max() - values.min()
        spread = spread.mask(values.isna().any() & values.notna().any(), np.inf)
        # Tolerate differences from formatting or summation order.
        real = spread[spread > ROUNDING * values.abs().max()]
        if len(real):
            name = str(real.idxmax())
            yield str(cell), name.removeprefix(METRIC), float(real[name]), rows


def _deduplicated(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    found = list(conflicts(frame[frame.duplicated("id", keep=False)]))
    notes = [
        conflict_sentence(cell, len(rows), metric, spread, rows["where"].tolist())
        for cell, metric, spread, rows in found[:CONFLICTS_TOLD]
    ]
    if len(found) > CONFLICTS_TOLD:
        notes.append(
            f"{counted(len(found) - CONFLICTS_TOLD, 'more cell was', 'more cells were')} "
            "measured several times with different results"
        )
    # A finished record wins over a failed one, even if older.
    order = [name for name in ("done", "created") if name == "done" or name in frame]
    newest = frame.assign(done=frame["status"] == "done").sort_values(order, kind="stable", na_position="first")
    newest = newest.drop(columns="done")
    kept = newest.drop_duplicates("id", keep="last").sort_index().reset_index(drop=True)
    if "url" in kept:
        known = newest.dropna(subset="url").drop_duplicates("id", keep="last").set_index("id")["url"]
        kept["url"] = kept["url"].fillna(kept["id"].map(known))
    return kept, notes
