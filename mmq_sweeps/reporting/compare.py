"""Compare finished cells: paired differences on the same items, and the settings that distinguish cells."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.assignment import method_name, part_order, rules_in
from mmq_sweeps.identity.cell import QUANTIZED, Cell, digest, is_quantized_elsewhere
from mmq_sweeps.metrics import MetricResult, paired_differences
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.store.record import Record

if TYPE_CHECKING:
    from mmq_sweeps.metrics.intervals import PairedDifference

# As loaded by ``Store.items``.
Items = Sequence[dict[str, Any]]
# Relative tolerance: closer values differ only by formatting or by the order of summation.
ROUNDING = 1e-9
# Cells whose items are held at a time while they are compared.
COMPARED_AT_ONCE = 64
# Limits on settings in a title: fields, and characters per field.
MOST_FIELDS, LONGEST_VALUE = 4, 40
# The fields of a planned model that say which checkpoint it is.
OF_CHECKPOINT = ("checkpoint", "revision", "files", QUANTIZED)


def family_of(cell: Mapping[str, Any]) -> str:
    """Return the digest that comparable cells share: of their model and task."""
    return digest([cell["model"], cell["task"]])


def families_of(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the family of each cell by id, given the effective configurations.

    A checkpoint that is quantized elsewhere is in the family of the full-precision model that it differs from in nothing but
    the checkpoint, if ``cells`` have exactly one.
    """
    found = {cell_id: family_of(cell) for cell_id, cell in cells.items()}
    beside: dict[str, set[str]] = {}
    for cell_id, cell in cells.items():
        if not is_quantized_elsewhere(cell):
            beside.setdefault(beside_of(cell), set()).add(found[cell_id])
    for cell_id, cell in cells.items():
        families = beside.get(beside_of(cell), set())
        if is_quantized_elsewhere(cell) and len(families) == 1:
            found[cell_id] = next(iter(families))
    return found


def beside_of(cell: Mapping[str, Any]) -> str:
    """Return a digest of model and task without the checkpoint."""
    model = {name: value for name, value in cell["model"].items() if name not in OF_CHECKPOINT}
    return digest([model, cell["task"]])


def all_differences(
    baseline: Record, baseline_items: Items, records: Sequence[Record], items: Callable[[str], Items]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return ``{metric: {"difference", "difference_interval", "significant"}}`` of ``records`` minus ``baseline``, by id.

    Only metrics of both are compared. A metric over different items gets ``{"not_compared": reason}`` instead. ``items`` loads
    the items of a cell. A few cells at a time share the draws of items: thousands of them take seconds and little memory.
    """
    theirs = results_of(baseline, baseline_items)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for start in range(0, len(records), COMPARED_AT_ONCE):
        block = records[start : start + COMPARED_AT_ONCE]
        ours = {record.id: results_of(record, items(record.id)) for record in block}
        told: dict[str, dict[str, dict[str, Any]]] = {cell_id: {} for cell_id in ours}
        for name, full in sorted(theirs.items()):
            having = [cell_id for cell_id, results in ours.items() if name in results]
            paired = paired_differences(full, [ours[cell_id][name] for cell_id in having])
            for cell_id, one in zip(having, paired, strict=True):
                told[cell_id][name] = _told(one)
        found |= told
    return found


def _told(paired: PairedDifference | ValueError) -> dict[str, Any]:
    if isinstance(paired, ValueError):
        return {"not_compared": str(paired)}
    return {
        "difference": paired.value,
        "difference_interval": list(paired.interval),
        "significant": paired.significant,
    }


def results_of(record: Record, items: Items) -> dict[str, MetricResult]:
    """Return the metrics of a finished record with the scores of its ``items``, by name."""
    return {
        name: MetricResult(
            name=name,
            value=metric["value"],
            per_item={item["id"]: item["scores"][name] for item in items if name in item["scores"]},
            interval=(metric["interval"][0], metric["interval"][1]),
            higher_is_better=metric.get("higher_is_better", True),
            totals=_totals(name, items),
            groups={item["id"]: item["group"] for item in items if "group" in item},
        )
        for name, metric in record.metrics.items()
        if metric["value"] is not None
    }


def _totals(name: str, items: Items) -> Any:
    """Return the counts per item behind a corpus metric (BLEU, METEOR); None for a metric that is a mean over items."""
    rows = [item["totals"][name] for item in items if name in item.get("totals", {})]
    return np.array(rows, dtype=np.float64) if rows else None


def differ(first: float | None, second: float | None) -> bool:
    """Return True if two values differ by more than rounding. Missing values (None or NaN) equal each other."""
    known = [value is not None and not math.isnan(value) for value in (first, second)]
    if not all(known):
        return known[0] != known[1]
    return not math.isclose(first, second, rel_tol=ROUNDING, abs_tol=1e-12)  # type: ignore[arg-type]


def conflict(cell_id: str, records: Sequence[Record], places: Sequence[str]) -> str | None:
    """Return a sentence if ``records`` of the same cell, read from ``places``, have different results; else None."""
    finished = [record for record in records if record.done]
    worst, spread = "", 0.0
    for name in dict.fromkeys(name for record in finished for name in record.metrics):
        values = [record.metrics.get(name, {}).get("value") for record in finished]
        if any(differ(values[0], value) for value in values[1:]):
            known = [value for value in values if value is not None and not math.isnan(value)]
            apart = max(known) - min(known) if len(known) == len(values) else math.inf
            if not worst or apart > spread:
                worst, spread = name, apart
    return conflict_sentence(cell_id, len(finished), worst, spread, places) if worst else None


def conflict_sentence(cell_id: str, count: int, metric: str, spread: float, places: Sequence[str]) -> str:
    """Format the warning of ``conflict``.

    ``spread`` is the largest minus the smallest value of ``metric``; infinite if it has a value in some records only.
    """
    apart = f"differs by {spread:.4g}" if math.isfinite(spread) else "has a value in some and none in others"
    return (
        f"cell {cell_id} was measured {counted(count, 'time')} with different results ({metric} {apart}); "
        f"the newest is shown: {', '.join(sorted(set(places)))}"
    )


def settings(cell: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten a cell's model and task to command-line keys: ``{"task.limit": 8}``.

    Cells that differ in any of these are not comparable. The list of lower-is-better metrics is included, because compared
    cells must agree on the direction of a metric.
    """
    found = dict(_flat("model", cell["model"])) | dict(_flat("task", cell["task"]))
    lower = sorted(name for name, metric in metrics.items() if not metric.get("higher_is_better", True))
    return found | ({"lower is better": lower} if lower else {})


def variant(cell: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a cell's method and calibration to command-line keys: ``{"method.group_size": 64}``.

    The fields of a method that only some units have stand under its name: ``{"gptq.group_size": 64}``. A cell that is quantized
    elsewhere has its checkpoint.
    """
    if is_quantized_elsewhere(cell):
        return {"model.checkpoint": cell["model"]["checkpoint"]}
    found = _fields("method", cell.get("method") or {})
    for key, method in _own_methods(cell):
        found |= _fields(key, method)
    return found | dict(_flat("calibration", cell.get("calibration") or {}))


def _own_methods(cell: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every method beside the cell's first one, with its name; a second of the same name is ``gptq#2``."""
    seen: list[Mapping[str, Any]] = []
    names: Counter[str] = Counter()
    for part in sorted(cell.get("parts") or {}, key=part_order):
        for rule in rules_in(cell["parts"][part]):
            if "method" in rule and rule["method"] not in seen:
                seen.append(rule["method"])
                name = method_name(rule["method"]["_target_"])
                names[name] += 1
                yield name if names[name] == 1 else f"{name}#{names[name]}", rule["method"]


def _fields(key: str, method: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(_flat(key, method))
    target = str(found.pop(f"{key}._target_", ""))
    if "." in target and not target.startswith("mmq_sweeps."):
        found[f"{key}._target_"] = target  # Two classes of users may share a display name.
    return found


def _flat(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{key}.{name}", inner)
    else:
        yield key, value


def told_apart(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """Describe each of ``several`` settings by the fields that differ: ``task.limit=8, task.prompt="a photo of"``.

    All texts are distinct, by a number if necessary. A single setting gives an empty text. If more than ``MOST_FIELDS``
    differ, those that tell the settings apart are named.
    """
    values = {
        key: [json.dumps(one[key], sort_keys=True) if key in one else "" for one in several]
        for key in dict.fromkeys(key for one in several for key in one)
    }
    values = {key: column for key, column in values.items() if len(set(column)) > 1}
    more = f" and {len(values) - MOST_FIELDS} more fields" if len(values) > MOST_FIELDS else ""
    keys = _telling(values)
    texts = [", ".join(_shown(key, one[key]) for key in keys if key in one) + more for one in several]
    if len(set(texts)) < len(texts):
        texts = [f"{text} #{number}".strip() for number, text in enumerate(texts, 1)]
    return texts


def _telling(values: Mapping[str, Sequence[str]]) -> list[str]:
    """Return at most ``MOST_FIELDS`` keys: each the one that splits most of the settings that those before it leave alike.

    ``values`` has a value for every setting.
    """
    count = max(map(len, values.values()), default=0)
    alike = [""] * count
    chosen: list[str] = []
    while len(chosen) < min(MOST_FIELDS, len(values)):
        left = [key for key in values if key not in chosen]
        best = max(left, key=lambda key: len(set(zip(alike, values[key], strict=True))))
        alike = [f"{one}\0{value}" for one, value in zip(alike, values[best], strict=True)]
        chosen.append(best)
    return [key for key in values if key in chosen]


def distinct_titles(cells: Sequence[Cell]) -> dict[str, str]:
    """Map each cell's id to its title for progress lines, with whatever else tells the ``cells`` of a sweep apart.

    As in ``gptq vision 3 language 3, method.group_size=64``; model and task are named if several give one title.
    """
    titles = {cell.id: cell.title() for cell in cells}
    for name in ("model", "task"):
        for alike in _alike(cells, titles):
            if len({cell.names[name] for cell in alike}) > 1:
                titles |= {cell.id: f"{titles[cell.id]}, {cell.names[name]}" for cell in alike}
    for alike in _alike(cells, titles):
        told = told_apart([variant(cell.effective) | settings(cell.effective, {}) for cell in alike])
        titles |= {cell.id: f"{titles[cell.id]}, {text}" for cell, text in zip(alike, told, strict=True) if text}
    return titles


def _alike(cells: Sequence[Cell], titles: Mapping[str, str]) -> list[list[Cell]]:
    """Return the cells that share their title with another cell, in groups."""
    return [alike for alike in grouped(cells, lambda cell: titles[cell.id]).values() if len(alike) > 1]


def _shown(key: str, value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and value and not any(sign in value for sign in " ,\"'=[]{}"):
        text = value
    return f"{key}={text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + '…'}"


def with_variants(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """Label pairs ``(method, variant)``, adding the fields in which variants differ: ``gptq method.group_size=64``."""
    differing = {
        method: [
            key
            for key in dict.fromkeys(key for _, one in several for key in one)
            if len({json.dumps(one.get(key), sort_keys=True) for _, one in several}) > 1
        ]
        for method, several in grouped(methods, lambda pair: pair[0]).items()
    }
    return [
        method + "".join(f" {key}={fields[key]}" for key in differing[method] if key in fields)
        for method, fields in methods
    ]
