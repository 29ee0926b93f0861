"""Cells of any source with their items, grouped into families of comparable cells."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from analysis.cells.columns import BESIDE, FAMILY, LOADS_IN, MAIN, METRIC
from analysis.cells.items import Book, Column, Items, Summary, stacked
from analysis.cells.selections import loaders_of, parts_in, quantized_elsewhere
from analysis.loads_in import kept
from analysis.progress import counted
from mmq_sweeps.metrics.intervals import Owners
from mmq_sweeps.reporting.compare import told_apart

T = TypeVar("T")
# Above this many cells, items are not read: they would take minutes, and gigabytes of memory.
MOST_SCORED = 5000


def _no_items(row: pd.Series) -> Items | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class History:
    """The provenance of cells: ``commands`` of sweeps, sentences on cells still ``lacking``, library ``versions``."""

    commands: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cells:
    """Cells from any source: ``frame`` is the table above, ``notes`` are sentences on oddities found while reading.

    ``items(row)`` reads a row's per-item predictions and scores, ``None`` if its source has none. ``history()`` is read
    lazily. ``copies`` has every row of the cells that several sources share, of which ``frame`` has the newest finished.
    ``book`` keeps what was made of items that were read.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    items: Callable[[pd.Series], Items | None] = field(default=_no_items, compare=False)
    history: Callable[[], History] = field(default=History, compare=False)
    copies: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    book: Book = field(default_factory=Book, compare=False, repr=False)

    @property
    def parts(self) -> list[str]:
        """Parts of any cell's model, vision first."""
        return parts_in(self.frame.columns)

    @property
    def metrics(self) -> list[str]:
        """Metrics of any cell; the one that most cells have as their main one is first."""
        named = [column.removeprefix(METRIC) for column in self.frame.columns if column.startswith(METRIC)]
        # The order of columns depends on the cells of other families that the same source holds.
        asked = self.frame[MAIN].dropna().mode() if MAIN in self.frame else pd.Series(dtype=object)
        return sorted(named, key=lambda name: asked.empty or name != asked.iloc[0])

    @property
    def first_metric(self) -> str:
        """The metric that cells are judged by unless another is asked for; ``none`` without any."""
        return (self.metrics or ["none"])[0]

    @property
    def finished(self) -> Cells:
        return self.of(self.frame[self.frame["status"] == "done"])

    def of(self, rows: pd.DataFrame) -> Cells:
        """Return the same cells restricted to ``rows``, without columns that are now empty."""
        return replace(self, frame=rows.dropna(axis=1, how="all").reset_index(drop=True))

    def loading_in(self, loader: str) -> Cells:
        """Return the cells that ``loader`` takes quantized, with a note on the others; see ``analysis/loads_in.py``."""
        finished = (self.frame["status"] == "done") & (self.frame["method"] != "none")
        known = [loaders_of(row) for row in self.frame.reindex(columns=[LOADS_IN]).to_dict("records")]
        mask, told = kept(loader, finished.tolist(), known)
        ids = self.frame["id"][mask]
        copies = self.copies if self.copies.empty else self.copies[self.copies["id"].isin(ids)]
        return replace(self.of(self.frame[mask]), notes=(*self.notes, told), copies=copies)

    def families(self) -> list[tuple[str, Cells]]:
        """Return ``(title, cells)`` per group of comparable cells.

        The title names model and task; the source if there are several; the settings that differ if groups would share it.
        """
        several = self.frame["source"].nunique() > 1
        settings = _joining(self.frame)
        found = []
        for (source, model, task), rows in self.frame.groupby(list(FAMILY), sort=True):
            title = f"{model}, {task}" + (f" ({source})" if several else "")
            alike = [rows for _, rows in rows.groupby(settings.loc[rows.index], sort=True)]
            told = told_apart([_settings(rows) for rows in alike])
            titled = [
                (title + (f" [{text}]" if len(alike) > 1 else ""), self.of(rows))
                for text, rows in zip(told, alike, strict=True)
            ]
            found += sorted(titled, key=lambda one: one[0])
        return found

    def each_family(self, make: Callable[[str, Cells], T], nothing: str) -> list[T]:
        """Call ``make`` with the title and the cells of every family of finished cells; return its results.

        A ValueError of ``make`` leaves its family out; if it raises for all, a ValueError says ``nothing``, and why.
        """
        found, reasons = [], []
        for title, family in self.finished.families():
            try:
                found.append(make(title, family))
            except ValueError as error:
                reasons.append(f"{title}: {error}")
        if not found:
            raise ValueError(f"{nothing}: {'; '.join(reasons)}")
        return found

    def higher_is_better(self, metric: str) -> bool:
        """Return true if higher values of ``metric`` are better. Raises ValueError if cells disagree; a family never does."""
        told = self.frame.get(f"higher.{metric}")
        said = set() if told is None else {bool(value) for value in told.dropna()}
        if len(said) > 1:
            raise ValueError(f"cells disagree on whether more of {metric} is better: compare within one family")
        return said != {False}

    def scores(self, rows: pd.DataFrame, metric: str) -> np.ndarray | None:
        """Return scores ``[cells, items]`` of ``rows``, with items in the same order for all.

        ``None`` unless all rows have the same items, or if there are more than ``MOST_SCORED`` rows.
        """
        if len(rows) > MOST_SCORED:
            return None
        found: list[Column | None] = []
        for scores in self.summaries(rows, self.book.scores):
            found.append(scores.get(metric))
            if found[-1] is None:
                return None
        return stacked(found)

    def owners(self, rows: pd.DataFrame, metric: str) -> Owners:
        """Return which items of ``scores`` are drawn together; None if every item is drawn by itself."""
        for scores in self.summaries(rows.iloc[:1], self.book.scores):
            first: Column | None = scores.get(metric)
            return None if first is None else first.owners
        return None

    def summaries(self, rows: pd.DataFrame, summary: Summary) -> Iterator[Any]:
        """Yield the ``summary`` of the items of each row, or of None; the items of a row are read once."""
        where = rows["where"] if "where" in rows else [""] * len(rows)
        named = zip(where, rows["id"], strict=True)
        for place, cell in enumerate(counted(named, "items of cells", len(rows))):
            yield self.book.get(cell, lambda place=place: self.items(rows.iloc[place]), summary)  # type: ignore[misc]

    def by_item(self) -> pd.DataFrame:
        """Return a row per cell and item: ``cell``, ``item``, ``prediction`` and ``metric.NAME``; empty without items."""
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


def _joining(frame: pd.DataFrame) -> pd.Series:
    """Return each row's ``setting``; a cell quantized elsewhere has that of the one full-precision model beside it."""
    settings = frame.get("setting", pd.Series("", frame.index)).fillna("")
    elsewhere = quantized_elsewhere(frame)
    if BESIDE not in frame or not elsewhere.any():
        return settings
    own = settings[~elsewhere].groupby([frame.loc[~elsewhere, name] for name in (*FAMILY, BESIDE)])
    only = {key: found.iloc[0] for key, found in own if found.nunique() == 1}
    keys = frame.loc[elsewhere, [*FAMILY, BESIDE]].itertuples(index=False, name=None)
    settings = settings.copy()
    settings.loc[elsewhere] = [only.get(key, setting) for key, setting in zip(keys, settings[elsewhere], strict=True)]
    return settings


def _settings(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the settings that all ``rows`` share; empty if their source does not report them."""
    if not (elsewhere := quantized_elsewhere(rows)).all():
        rows = rows[~elsewhere]  # Those have another checkpoint.
    told = rows["settings"].dropna() if "settings" in rows else pd.Series(dtype=object)
    return {} if told.empty else dict(json.loads(told.iloc[0]))
