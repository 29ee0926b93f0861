"""Compare two cells of one model and task, item by item."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from analysis.tables.records import Stored
from mmq_sweeps.errors import unknown
from mmq_sweeps.reporting.compare import all_differences, differ, families_of, results_of, settings
from mmq_sweeps.reporting.table import rows, title

# An answer counts as right from this score on: VQA's accuracy gives less if only some people said the same.
RIGHT = 1.0
# Metrics whose score of an item says whether its answer is right.
JUDGING = ("accuracy", "recall_at_")
# Most settings that an error names.
SETTINGS_NAMED = 6


@dataclass(frozen=True)
class Side:
    """One of the two cells: its record, its title in words, and its items by id, in the order of the task."""

    stored: Stored
    title: str
    items: Mapping[str, Mapping[str, Any]]

    @property
    def id(self) -> str:
        return self.stored.record.id

    def figure(self, metric: str) -> Mapping[str, Any]:
        return self.stored.record.metrics[metric]


@dataclass(frozen=True)
class Difference:
    """The second cell's metric less the first's, with a 95% interval from paired draws of items.

    ``better``, ``worse`` and ``alike`` count items by the sign of their change. ``flips`` are ``(right to wrong, wrong to
    right)``, None unless a score of the metric says whether an answer is right. ``not_compared`` is the reason if the cells
    were measured on different items.
    """

    metric: str
    higher_is_better: bool
    value: float | None = None
    interval: tuple[float, float] | None = None
    better: int = 0
    worse: int = 0
    alike: int = 0
    flips: tuple[int, int] | None = None
    not_compared: str = ""

    @property
    def significant(self) -> bool:
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)


@dataclass(frozen=True)
class Change:
    """An item whose score or answer changed, with the answers and scores of both cells."""

    id: str
    answers: tuple[str, str]
    scores: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.scores[1] - self.scores[0]


@dataclass(frozen=True)
class Comparison:
    """Two cells compared: every metric that both have, and the items that changed most by ``metric``.

    ``shared`` is the number of items that both were measured on, ``changed`` of which have another answer (of a retriever: find
    another item first).
    """

    family: str
    sides: tuple[Side, Side]
    differences: Sequence[Difference]
    metric: str
    shared: int
    changed: int
    most: Sequence[Change]


def compare(stored: Mapping[str, Stored], first: Stored, second: Stored, metric: str | None, most: int) -> Comparison:
    """Compare ``first`` with ``second``, two of the cells ``stored``; ``metric`` (default: the task's first) ranks items.

    Raises ValueError if the two are one cell, one failed, or they differ in model, task or settings.
    """
    _check(stored, first, second)
    told = rows([first.record, second.record], lambda _: [])
    titles = {row["id"]: title(row) for row in told}
    sides = (
        Side(first, titles[first.record.id], _by_id(first)),
        Side(second, titles[second.record.id], _by_id(second)),
    )
    shared = [item for item in sides[0].items if item in sides[1].items]
    both = [name for name in first.record.metrics if name in second.record.metrics]
    if not both:
        raise ValueError(f"cells {first.record.id} and {second.record.id}: have no metric in common")
    if metric is not None and metric not in both:
        raise ValueError(f"--metric: {unknown('metric', metric, both)}")
    ranked = metric or both[0]
    return Comparison(
        told[0]["family"],
        sides,
        _differences(sides, both),
        ranked,
        len(shared),
        sum(_said(_answer(sides[0], item)) != _said(_answer(sides[1], item)) for item in shared),
        _most(sides, shared, ranked)[:most],
    )


def _check(stored: Mapping[str, Stored], first: Stored, second: Stored) -> None:
    if first.record.id == second.record.id:
        raise ValueError(f"cell {first.record.id}: both are this cell; name another to compare it with")
    for one in (first, second):
        if not one.record.done:
            error = (one.record.error or {}).get("class")
            raise ValueError(f"cell {one.record.id}: failed with {error}, so there is nothing to compare")
    families = families_of({cell_id: one.record.cell for cell_id, one in stored.items()})
    if families[first.record.id] != families[second.record.id]:
        raise ValueError(
            f"cells {first.record.id} and {second.record.id}: are not comparable, they differ in "
            + "; ".join(_unlike(first, second))
        )


def _unlike(first: Stored, second: Stored) -> list[str]:
    """Name the settings of model and task that differ, with both values."""
    both = [settings(one.record.cell, {}) for one in (first, second)]
    named = [
        f"{what} ({first.record.names[what]} against {second.record.names[what]})"
        for what in ("model", "task")
        if first.record.names[what] != second.record.names[what]
    ]
    keys = [key for key in dict.fromkeys([*both[0], *both[1]]) if both[0].get(key) != both[1].get(key)]
    # Of another model or task nearly every setting differs.
    if not named:
        named = [f"{key} ({both[0].get(key)} against {both[1].get(key)})" for key in keys[:SETTINGS_NAMED]]
        named += [f"{len(keys) - SETTINGS_NAMED} more settings"] if len(keys) > SETTINGS_NAMED else []
    return named


def _by_id(one: Stored) -> dict[str, Mapping[str, Any]]:
    return {str(item["id"]): item for item in one.items()}


def _answer(side: Side, item: str) -> str:
    return str(side.items[item].get("prediction", ""))


def _said(answer: str) -> str:
    """Return the answer in the form in which two are compared: of a retriever, the item that it finds first."""
    with suppress(ValueError, KeyError, TypeError, IndexError):
        return str(json.loads(answer)["first"][0])
    return answer.strip()


def _differences(sides: tuple[Side, Side], metrics: Sequence[str]) -> list[Difference]:
    records = [side.stored.record for side in sides]
    items = [list(side.items.values()) for side in sides]
    told = all_differences(records[0], items[0], [records[1]], lambda _: items[1])[records[1].id]  # type: ignore[arg-type, return-value]
    results = [results_of(record, own) for record, own in zip(records, items, strict=True)]  # type: ignore[arg-type]
    return [_difference(name, told.get(name), [one.get(name) for one in results]) for name in metrics]


def _difference(name: str, told: Mapping[str, Any] | None, results: Sequence[Any]) -> Difference:
    first, second = results
    if told is None or first is None or second is None:
        return Difference(name, True, not_compared=f"{name}: one of the cells has no value")
    higher = first.higher_is_better
    if "not_compared" in told:
        return Difference(name, higher, not_compared=told["not_compared"])
    pairs = [(first.per_item[item], second.per_item[item]) for item in first.per_item]
    moved = [(after - before) * (1 if higher else -1) for before, after in pairs if differ(before, after)]
    better = sum(change > 0 for change in moved)
    return Difference(
        name,
        higher,
        told["difference"],
        (told["difference_interval"][0], told["difference_interval"][1]),
        better,
        len(moved) - better,
        len(pairs) - len(moved),
        _flips(name, higher, pairs),
    )


def _flips(name: str, higher: bool, pairs: Sequence[tuple[float, float]]) -> tuple[int, int] | None:
    """Count the items that were right and are wrong, and the other way round; None if a score does not tell.

    A metric of which less is better counts errors or risks: its ones are no right answers.
    """
    if not higher:
        return None
    if not any(word in name for word in JUDGING) and not {score for pair in pairs for score in pair} <= {0.0, 1.0}:
        return None
    judged = [(before >= RIGHT, after >= RIGHT) for before, after in pairs]
    return judged.count((True, False)), judged.count((False, True))


def _most(sides: tuple[Side, Side], shared: Sequence[str], metric: str) -> list[Change]:
    """Return the items that changed, the largest change of score first, then those of which only the answer changed."""
    found = []
    for item in shared:
        scores = tuple(side.items[item].get("scores", {}).get(metric) for side in sides)
        answers = (_answer(sides[0], item), _answer(sides[1], item))
        if None in scores or not (differ(*scores) or answers[0] != answers[1]):
            continue
        found.append(Change(item, answers, (float(scores[0]), float(scores[1]))))
    return sorted(found, key=lambda change: -abs(change.difference) if math.isfinite(change.difference) else 0.0)
