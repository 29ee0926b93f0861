"""Finished cells beside each other: differences on the same items, and the settings that tell cells apart."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mmq_sweeps.metrics import MetricResult, paired_difference
from mmq_sweeps.store.record import Record

# Per item of a finished cell, as ``Store.items`` reads them.
Items = Sequence[dict[str, Any]]
# Figures closer than this share of their size are the same figure, written or summed in another order.
ROUNDING = 1e-9
# How much of a title settings may take.
MOST_FIELDS, LONGEST_VALUE = 4, 40


def differences(baseline: Record, baseline_items: Items, record: Record, items: Items) -> dict[str, dict[str, Any]]:
    """``{metric: {"difference", "difference_interval", "significant"}}`` of ``record`` from ``baseline``.

    Metrics that one of the two does not have are left out. If the two are over different items, ``{"not_compared":
    reason}`` stands for a metric.
    """
    ours, theirs = _results(record, items), _results(baseline, baseline_items)
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(ours.keys() & theirs.keys()):
        try:
            paired = paired_difference(theirs[name], ours[name])
        except ValueError as error:
            found[name] = {"not_compared": str(error)}
            continue
        found[name] = {
            "difference": paired.value,
            "difference_interval": list(paired.interval),
            "significant": paired.significant,
        }
    return found


def _results(record: Record, items: Items) -> dict[str, MetricResult]:
    return {
        name: MetricResult(
            name=name,
            value=metric["value"],
            per_item={item["id"]: item["scores"][name] for item in items if name in item["scores"]},
            interval=(metric["interval"][0], metric["interval"][1]),
            higher_is_better=metric.get("higher_is_better", True),
            totals=_totals(name, items),
        )
        for name, metric in record.metrics.items()
        if metric["value"] is not None
    }


def _totals(name: str, items: Items) -> Any:
    """The counts behind a figure that is no mean of items (BLEU, METEOR); ``None`` for one that is."""
    rows = [item["totals"][name] for item in items if name in item.get("totals", {})]
    return np.array(rows, dtype=np.float64) if rows else None


def differ(first: float | None, second: float | None) -> bool:
    """Whether two figures differ by more than rounding; two missing ones do not."""
    known = [value is not None and not math.isnan(value) for value in (first, second)]
    if not all(known):
        return known[0] != known[1]
    return not math.isclose(first, second, rel_tol=ROUNDING, abs_tol=1e-12)  # type: ignore[arg-type]


def conflict(cell_id: str, records: Sequence[Record], places: Sequence[str]) -> str | None:
    """A sentence if ``records`` of one cell, read from ``places``, have different results; else ``None``."""
    finished = [record for record in records if record.done]
    worst, spread = "", 0.0
    for name in dict.fromkeys(name for record in finished for name in record.metrics):
        values = [record.metrics.get(name, {}).get("value") for record in finished]
        if any(differ(values[0], value) for value in values[1:]):
            known = [value for value in values if value is not None]
            apart = max(known) - min(known) if known else 0.0
            if not worst or apart > spread:
                worst, spread = name, apart
    return conflict_sentence(cell_id, len(finished), worst, spread, places) if worst else None


def conflict_sentence(cell_id: str, count: int, metric: str, spread: float, places: Sequence[str]) -> str:
    return (
        f"cell {cell_id} was measured {count} times with different results ({metric} differs by {spread:.4g}); "
        f"the newest is shown: {', '.join(sorted(set(places)))}"
    )


def settings(cell: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of a cell's model and task as the command line names them: ``{"task.limit": 8}``.

    Cells that differ in any of them are not comparable. A metric of which less is better is a field as well: what is
    better must be the same in all cells that are compared.
    """
    found = dict(_flat("model", cell["model"])) | dict(_flat("task", cell["task"]))
    lower = sorted(name for name, metric in metrics.items() if not metric.get("higher_is_better", True))
    return found | ({"lower is better": lower} if lower else {})


def variant(cell: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a cell's method and calibration as the command line names them: ``{"method.group_size": 64}``."""
    found = dict(_flat("method", cell.get("method") or {}))
    target = str(found.pop("method._target_", ""))
    if "." in target and not target.startswith("mmq_sweeps."):
        found["method._target_"] = target  # Two classes of a user's own may go by one name.
    return found | dict(_flat("calibration", cell.get("calibration") or {}))


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        yield key, value


def told_apart(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of ``several`` settings the fields in which not all are alike: ``task.limit=8, task.prompt="a photo of"``.

    No two are the same text; empty for one alone.
    """
    keys = [
        key
        for key in dict.fromkeys(key for one in several for key in one)
        if len({json.dumps(one.get(key), sort_keys=True) for one in several}) > 1
    ]
    more = f" and {len(keys) - MOST_FIELDS} more fields" if len(keys) > MOST_FIELDS else ""
    texts = [", ".join(_shown(key, one[key]) for key in keys[:MOST_FIELDS] if key in one) + more for one in several]
    if len(set(texts)) < len(texts):
        texts = [f"{text} #{number}".strip() for number, text in enumerate(texts, 1)]
    return texts


def _shown(key: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value and not any(sign in value for sign in " ,\"'=[]{}"):
        text = value
    return f"{key}={text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + '…'}"


def with_variants(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Names for ``(method, variant)``: with the fields in which those of one method differ, ``gptq method.group_size=64``."""
    named: list[str] = []
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for method, fields in methods:
        by_method.setdefault(method, []).append(fields)
    differing = {
        method: [
            key
            for key in dict.fromkeys(key for one in several for key in one)
            if len({json.dumps(one.get(key), sort_keys=True) for one in several}) > 1
        ]
        for method, several in by_method.items()
    }
    for method, fields in methods:
        named.append(method + "".join(f" {key}={fields[key]}" for key in differing[method] if key in fields))
    return named
