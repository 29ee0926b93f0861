"""The table that everything here works on: one row a cell, whatever it was read from.

| column | meaning |
|---|---|
| ``id``, ``source`` | the cell, and what it was read from |
| ``model``, ``task``, ``method`` | names; ``method`` is ``none`` at full precision |
| ``bits.PART`` | bits of the part's quantized linears: 16 where none is quantized, missing where the model has no such part |
| ``blocks.PART``, ``layers.PART`` | what of a part is quantized, joined by ``+``; empty where nothing is |
| ``weights.PART`` | weights of the part that are quantized |
| ``bpw_paper``, ``bpw_exact`` | bits per weight; exact only where it is known |
| ``metric.NAME``, ``low.NAME``, ``high.NAME`` | the figure and its 95% interval over items, where there is one |
| ``created``, ``where`` | when, and the file or address it came from |
| ``setting`` | a hash of the model's and the task's whole configuration; cells that differ in it are not compared |
| ``variant`` | the method's fields and its calibration, as JSON; where cells of one method differ in any, ``method`` says so |
| ``url`` | the page of its W&B run, where that is known |

What a source says beyond that is kept under the name it has there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

FULL_PRECISION_BITS = 16
PARTS = ("vision", "connector", "language")
BITS, METRIC = "bits.", "metric."
# A group of cells that can be compared: the same model and task from the same source.
FAMILY = ("source", "model", "task", "setting")
VARIANT = "variant"

# Of more cells than these the items are not read: they would take minutes, and gigabytes of memory.
MOST_SCORED = 5000

Items = Sequence[dict[str, Any]]


def _no_items(row: pd.Series) -> Items | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class History:
    """How cells came to be: the ``commands``, sentences on the cells that they left ``lacking``, the ``versions`` that ran."""

    commands: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cells:
    """``frame`` is the table above. ``notes`` are sentences on what was found odd while reading.

    ``items`` reads the per-item predictions and scores of a row, ``None`` where its source has none. ``history`` is read
    when it is asked for.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    items: Callable[[pd.Series], Items | None] = field(default=_no_items, compare=False)
    history: Callable[[], History] = field(default=History, compare=False)

    @property
    def parts(self) -> list[str]:
        """The parts that any cell's model has, vision first."""
        named = [column.removeprefix(BITS) for column in self.frame.columns if column.startswith(BITS)]
        return sorted(named, key=part_order)

    @property
    def metrics(self) -> list[str]:
        return [column.removeprefix(METRIC) for column in self.frame.columns if column.startswith(METRIC)]

    def of(self, rows: pd.DataFrame) -> Cells:
        """The same source with fewer ``rows``; columns that have become empty are left out."""
        return replace(self, frame=rows.dropna(axis=1, how="all").reset_index(drop=True))

    def families(self) -> list[tuple[str, Cells]]:
        """The groups of comparable cells, by a title: model and task, and what else tells them apart."""
        several = self.frame["source"].nunique() > 1
        named = list(FAMILY[:3])
        settings = self.frame.get("setting", pd.Series("", self.frame.index)).fillna("")
        found = []
        for (source, model, task), rows in self.frame.groupby(named, sort=True):
            title = f"{model}, {task}" + (f" ({source})" if several else "")
            split = rows.groupby(settings.loc[rows.index], sort=True)
            for setting, alike in split:
                found.append((title + (f" [{setting}]" if split.ngroups > 1 else ""), self.of(alike)))
        return found

    def scores(self, rows: pd.DataFrame, metric: str) -> np.ndarray | None:
        """Scores ``[cells, items]`` of ``rows`` in one order of items; ``None`` unless all have the same items.

        ``None`` as well of more than ``MOST_SCORED`` cells.
        """
        if len(rows) > MOST_SCORED:
            return None
        columns: list[dict[str, float]] = []
        for _, row in rows.iterrows():
            # Of retrieval some metrics are over images, some over texts.
            scored = {
                item["id"]: item["scores"][metric] for item in self.items(row) or () if metric in item.get("scores", {})
            }
            if not scored:
                return None
            columns.append(scored)
        if not columns or any(column.keys() != columns[0].keys() for column in columns):
            return None
        return np.array([[column[item] for item in columns[0]] for column in columns], dtype=np.float64)

    def by_item(self) -> pd.DataFrame:
        """One row a cell and item, of the cells that have any: ``cell``, ``item``, ``prediction`` and ``metric.NAME``."""
        rows = [
            {
                "cell": row["id"],
                "item": item["id"],
                "prediction": item.get("prediction"),
                **{f"{METRIC}{name}": value for name, value in item.get("scores", {}).items()},
            }
            for _, row in self.frame.iterrows()
            for item in self.items(row) or ()
        ]
        return pd.DataFrame(rows)


def part_order(part: str) -> tuple[int, str]:
    return (PARTS.index(part) if part in PARTS else len(PARTS)), part


def assignment(row: pd.Series) -> str:
    """``gptq vision 3 connector 4 language 8``: the cell in words; narrowed selections are in brackets."""
    told = []
    for column in sorted(
        (name for name in row.index if name.startswith(BITS)), key=lambda c: part_order(c[len(BITS) :])
    ):
        part, bits = column.removeprefix(BITS), row[column]
        if pd.isna(bits) or bits == FULL_PRECISION_BITS:
            continue
        narrowed = [row.get(f"{what}.{part}") for what in ("blocks", "layers")]
        shown = " ".join(
            text
            for text, all_of in zip(narrowed, ("front+middle+end", "attention+mlp"), strict=True)
            if isinstance(text, str) and text not in ("", all_of)
        )
        told.append(f"{part} {int(bits)}" + (f" ({shown})" if shown else ""))
    return f"{row['method']} {' '.join(told)}" if told else "full precision"


def joined(tables: Sequence[Cells]) -> Cells:
    """All ``tables`` as one. A cell that two of them hold alike is there once; one that they hold differently is noted."""
    # Of cells alike the last is kept: rather one with items than its mirror without.
    tables = sorted(tables, key=lambda table: table.items is not _no_items)
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    notes = [note for table in tables for note in table.notes]
    by_source: dict[str, Callable[[pd.Series], Items | None]] = {}
    for table in tables:
        by_source |= dict.fromkeys(table.frame["where"], table.items)
    kept, conflicts = _deduplicated(frame)
    return Cells(
        _with_variants_named(kept),
        (*notes, *conflicts),
        lambda row: by_source[row["where"]](row),
        lambda: _together([table.history() for table in tables]),
    )


def _together(histories: Sequence[History]) -> History:
    return History(
        *(
            tuple(dict.fromkeys(line for one in histories for line in getattr(one, what.name)))
            for what in fields(History)
        )
    )


def _with_variants_named(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells of one method that differ in its fields are cells of several: ``gptq method.group_size=64``."""
    if VARIANT not in frame:
        return frame
    grouped = frame[frame[VARIANT].notna() & (frame["method"] != "none")].groupby(["model", "task", "method"])
    named = frame["method"].copy()
    for (_, _, method), rows in grouped:
        if rows[VARIANT].nunique() == 1:
            continue
        told = {text: json.loads(text) for text in rows[VARIANT].unique()}
        differing = [
            key
            for key in dict.fromkeys(key for one in told.values() for key in one)
            if len({json.dumps(one.get(key)) for one in told.values()}) > 1
        ]
        suffix = {text: "".join(f" {key}={one[key]}" for key in differing if key in one) for text, one in told.items()}
        named.loc[rows.index] = method + rows[VARIANT].map(suffix)
    return frame.assign(method=named)


def _deduplicated(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    figures = [column for column in frame.columns if column.startswith(METRIC)]
    notes = []
    for cell, rows in frame[frame.duplicated("id", keep=False)].groupby("id", sort=False):
        spread = rows[figures].max() - rows[figures].min()
        if (spread > 0).any():
            name = str(spread.idxmax()).removeprefix(METRIC)
            notes.append(
                f"cell {cell} was measured {len(rows)} times with different results ({name} differs by "
                f"{spread.max():.4g}); the newest is shown: {', '.join(sorted(set(rows['where'])))}"
            )
    # A finished cell counts before one that failed, whichever is newer.
    order = [name for name in ("done", "created") if name == "done" or name in frame]
    newest = frame.assign(done=frame["status"] == "done").sort_values(order, kind="stable", na_position="first")
    newest = newest.drop(columns="done")
    kept = newest.drop_duplicates("id", keep="last").sort_index().reset_index(drop=True)
    if "url" in kept:
        known = newest.dropna(subset="url").drop_duplicates("id", keep="last").set_index("id")["url"]
        kept["url"] = kept["url"].fillna(kept["id"].map(known))
    return kept, notes
