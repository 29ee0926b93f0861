"""Flips: the share of items that a cell answers differently than full precision.

An average hides them, since answers that turn right cancel those that turn wrong (arXiv 2609.24322, 2407.09141).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.cells import Cells, Items
from analysis.cells.table import MOST_SCORED
from analysis.measures.quality import Quality
from mmq_sweeps.metrics.answers.normalize import words_of_answer
from mmq_sweeps.metrics.intervals import owners_of, resample
from mmq_sweeps.metrics.names import metric_names
from mmq_sweeps.reporting.counts import counted

COLUMNS = ("flips", "flips_low", "flips_high", "lost", "gained", "flipped", "items")
_PERCENTILES = (2.5, 97.5)
# Why a cell is not compared: it has no answers by item, or answers other items.
WITHOUT, UNLIKE = "without answers by item", "with other items than full precision"


@dataclass(frozen=True)
class Flips:
    """Flips of a family's cells against its full-precision cell ``full``; ``table`` has a row per cell, by id.

    * ``flips`` with its 95% interval ``flips_low``, ``flips_high``: the share of items with another answer than at full
      precision. Captions are compared by text, answers to questions normalized as VQA's script does, retrieval by the item
      that a query finds first.
    * ``lost``, ``gained``: of the flipped items, the share that was right and is wrong now, and the reverse; NaN without
      flips. If ``graded``, ``metric`` has no right and wrong for an item (CIDEr): the share whose score fell, and rose.
    * ``flipped``, ``items``: the counts.

    Cells that cannot be compared are missing from the table, and ``notes`` say why.
    """

    title: str
    metric: str
    full: str
    graded: bool
    table: pd.DataFrame
    notes: tuple[str, ...] = ()


def flips(cells: Cells, metric: str | None = None) -> list[Flips]:
    """Compute the flips of every family of finished cells, judged by ``metric``, by default the family's first.

    Raises ValueError if no family has a full-precision cell with items to compare with.
    """
    return cells.each_family(lambda title, family: flips_of(family, metric, title), "no flips can be counted")


def flips_of(family: Cells, metric: str | None = None, title: str = "") -> Flips:
    """Compute the flips of one family; raises ValueError if there is no full precision to compare with, or no metric."""
    metric = metric or family.first_metric
    if metric not in family.metrics:
        raise ValueError(f"has no metric {metric!r}; it has {', '.join(family.metrics) or 'none'}")
    full = family.frame[family.frame["method"] == "none"]
    if full.empty:
        raise ValueError("has no full-precision cell; run method=none")
    others = family.frame[family.frame["method"] != "none"]
    if len(others) > MOST_SCORED:
        raise ValueError(f"has more than {MOST_SCORED:,} cells, whose items are not read")
    answered = ((str(row["id"]), _answered(family.items(row))) for _, row in full.iterrows())
    full_id, baseline = next((found for found in answered if found[1] is not None), ("", None))
    if baseline is None:
        raise ValueError("has no answers by item at full precision")
    reader = _Reader(baseline, Quality.of(family, _judge(family.metrics, metric)))
    found = dict(zip(map(str, others["id"]), family.summaries(others, reader.flags_of), strict=True))
    flags = {cell_id: own for cell_id, own in found.items() if not isinstance(own, str)}
    reasons = [own for own in found.values() if isinstance(own, str)]
    counts = [(reasons.count(reason), reason) for reason in (WITHOUT, UNLIKE) if reason in reasons]
    notes = [f"{counted(count, 'cell')} {reason} left out" for count, reason in counts]
    if not found:
        notes = ["no cell but full precision: no answers to compare with it"]
    return Flips(title, reader.quality.metric, full_id, reader.graded, reader.table(flags), tuple(notes))


def _judge(metrics: Sequence[str], metric: str) -> str:
    """Return the metric that says which answers are right: ``metric``, unless only another of ``metrics`` knows."""
    right = [name for name in metrics if name in metric_names("answers")]
    return metric if metric in right or not right else right[0]


def _answered(items: Items | None) -> Items | None:
    """Return ``items`` if they hold answers; None if there are none, or a likelihood stands in their place."""
    if not items or any(item.get("prediction") is None for item in items):
        return None
    return None if '"log_likelihood"' in str(items[0]["prediction"]) else items


@dataclass
class _Reader:
    """Compares cells with ``baseline`` one by one, so that only three flags per item are kept of each."""

    baseline: Items
    quality: Quality

    def __post_init__(self) -> None:
        self._items = [str(item["id"]) for item in self.baseline]
        self._answers = [str(item["prediction"]) for item in self.baseline]
        self._ranked = all(map(_is_rank, self._answers))
        self._groups = {str(item["id"]): str(item["group"]) for item in self.baseline if "group" in item}
        self._asked = self.quality.metric in metric_names("answers")
        self._scores = [item.get("scores", {}).get(self.quality.metric) for item in self.baseline]

    @property
    def graded(self) -> bool:
        """True if an item is not right or wrong by the metric, but more or less so."""
        return not self._ranked and not self._asked

    def flags_of(self, items: Items | None) -> np.ndarray | str:
        """Return flags ``[items, 3]``, flipped, lost and gained, of a cell's answers; or why it is not compared."""
        answered = _answered(items)
        if answered is None:
            return WITHOUT
        by_id = {str(item["id"]): item for item in answered}
        if by_id.keys() != set(self._items):
            return UNLIKE
        return self._compared([by_id[item] for item in self._items])

    def _compared(self, items: Items) -> np.ndarray:
        """Return flags ``[items, 3]``: flipped, lost, gained."""
        flags = np.zeros((len(items), 3))
        for place, (item, before) in enumerate(zip(items, self._answers, strict=True)):
            after = str(item["prediction"])
            score = item.get("scores", {}).get(self.quality.metric)
            # Some metrics tell answers apart that are the same words, such as -5 and 5.
            told_apart = self._asked and score != self._scores[place]
            if after == before or (self._said(after) == self._said(before) and not told_apart):
                continue
            was, now = self._judged(before, self._scores[place]), self._judged(after, score)
            # A comparison with NaN is false.
            flags[place] = 1, was > now, now > was
        return flags

    def _said(self, answer: str) -> str:
        """Return the answer in the form in which two are compared."""
        if self._ranked:
            return next(iter(json.loads(answer).get("first", ())), "")
        return words_of_answer(answer) if self._asked else answer.strip()

    def _judged(self, answer: str, score: float | None) -> float:
        """Return how good an answer is: 1 or 0 if it is right or wrong, else its score; NaN if it has none."""
        if self._ranked:
            return float(json.loads(answer)["rank"] == 0)
        if score is None:
            return math.nan
        return self.quality.sign * score if self.graded else float(score >= 1)

    def table(self, by_cell: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """Return the table of ``Flips`` of the flags of every cell."""
        if not by_cell:
            return pd.DataFrame(columns=list(COLUMNS), index=pd.Index([], name="id"), dtype=np.float64)
        flags = np.stack(list(by_cell.values()), axis=-1)
        flipped, lost, gained = flags.sum(axis=0)
        shares = np.full((2, len(by_cell)), np.nan)
        np.divide((lost, gained), flipped, out=shares, where=flipped > 0)
        low, high = self._interval(flags[:, 0])
        count = len(self._items)
        columns = (flipped / count, low, high, *shares, flipped.astype(int), np.full(len(by_cell), count))
        return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)), index=pd.Index(list(by_cell), name="id"))

    def _interval(self, flipped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the 95% interval of each cell over drawn items; those that share an image are drawn together."""
        owner = _owners(self._items) if self._ranked else owners_of(self._items, self._groups)
        owner = np.arange(len(self._items)) if owner is None else owner
        totals = np.zeros((owner.max() + 1, flipped.shape[1] + 1))
        np.add.at(totals, owner, np.column_stack([flipped, np.ones(len(flipped))]))
        drawn = resample(totals)
        low, high = np.percentile(drawn[:, :-1] / drawn[:, -1:], _PERCENTILES, axis=0)
        return low, high


def _is_rank(text: str) -> bool:
    return text.startswith("{") and '"rank"' in text and '"first"' in text


def _owners(items: Sequence[str]) -> np.ndarray:
    """Return the number of each item's image; the texts of an image are ``IMAGE/0``, ``IMAGE/1``, ..."""
    known = set(items)
    images = [owner if (owner := item.rpartition("/")[0]) in known else item for item in items]
    places = {image: place for place, image in enumerate(dict.fromkeys(images))}
    return np.array([places[image] for image in images])
