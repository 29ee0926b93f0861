"""Check that the cells' records are comparable: items, images, settings, scripts, copies."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from analysis.audit.finding import Told, joined, listed
from analysis.cells import Cells
from analysis.cells.columns import DEFINITION, WARNINGS
from analysis.cells.merging import conflicts
from analysis.cells.selections import assignment, warnings_of
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import metric_label


def fewer_items(rows: pd.DataFrame, metrics: Iterable[str]) -> Iterator[Told]:
    """Report cells measured on fewer items than the family's maximum or than ``task.limit``."""
    told: dict[str, str] = {}
    for name in metrics:
        if f"count.{name}" not in rows:
            continue
        counts = rows[f"count.{name}"]
        limits = rows["settings"].map(_limit) if "settings" in rows else pd.Series(np.nan, rows.index)
        asked = np.fmax(limits.to_numpy(dtype=np.float64), float(counts.max()))
        for (_, row), count, most in zip(rows.iterrows(), counts, asked, strict=True):
            if count < most:
                told.setdefault(
                    row["id"],
                    f"{assignment(row)}: {metric_label(name)} over {count:.0f} of {counted(int(most), 'item')}",
                )
    if "missing" in rows:
        for _, row in rows[rows["missing"].fillna(0) > 0].iterrows():
            told.setdefault(
                row["id"], f"{assignment(row)}: {counted(int(row['missing']), 'item was', 'items were')} left out"
            )
    if told:
        names = listed(list(told.values()))
        yield (
            "fewer items",
            f"{counted(len(told), 'cell was', 'cells were')} measured on fewer items than asked: {names}",
            len(told),
            len(rows),
        )


def _limit(settings: Any) -> float:
    told = json.loads(settings).get("task.limit") if isinstance(settings, str) else None
    return float(told) if isinstance(told, int | float) else np.nan


def warned(rows: pd.DataFrame, metrics: Iterable[str]) -> Iterator[Told]:
    """Report cells whose figures carry warnings."""
    told: dict[str, list[str]] = {}
    for name in metrics:
        if f"{WARNINGS}{name}" in rows:
            for _, row in rows[rows[f"{WARNINGS}{name}"].notna()].iterrows():
                texts = ", ".join(warnings_of(row, name))
                told.setdefault(row["id"], []).append(f"{assignment(row)}, {metric_label(name)}: {texts}")
    if told:
        names = listed(["; ".join(texts) for texts in told.values()])
        yield "warnings", f"{counted(len(told), 'cell carries', 'cells carry')} warnings: {names}", len(told), len(rows)


def unlike_records(rows: pd.DataFrame) -> Iterator[Told]:
    """Report records of a family that differ in images, processor or generation settings; library versions may differ."""
    if "provenance" not in rows:
        return
    told = [json.loads(text) if isinstance(text, str) else {} for text in rows["provenance"]]
    for key in dict.fromkeys(key for one in told for key in one if key != "versions"):
        groups = Counter(json.dumps(one[key], sort_keys=True) for one in told if key in one)
        if len(groups) > 1:
            (_, most), *rest = groups.most_common()
            others = sum(number for _, number in rest)
            have = f"{counted(most, 'cell has', 'cells have')} one, {counted(others, 'other')} another"
            sentence = f"{key} differs between the records: {have}; they are not comparable"
            yield "records differ", sentence, others, len(rows)


def unlike_definitions(rows: pd.DataFrame, metrics: Iterable[str]) -> Iterator[Told]:
    """Report metrics that cells of a family computed as different scripts do."""
    for name in metrics:
        counts = rows.get(f"{DEFINITION}{name}", pd.Series(dtype=object)).value_counts()
        if len(counts) > 1:
            told = "; ".join(f"{counted(number, 'cell')} by {script}" for script, number in counts.items())
            others = int(counts.iloc[1:].sum())
            yield (
                "records differ",
                f"{metric_label(name)} is computed by different scripts: {told}; not comparable",
                others,
                len(rows),
            )


def copies(cells: Cells) -> Iterator[tuple[str, Told]]:
    """Yield the family and the finding of each cell whose copies differ in results or in their records."""
    if cells.copies.empty:
        return
    results = {cell: (metric, spread) for cell, metric, spread, _ in conflicts(cells.copies)}
    count = cells.copies["id"].nunique()
    for cell, rows in cells.copies[cells.copies["status"] == "done"].groupby("id", sort=False):
        unlike = list(_unlike_copies(rows))
        if cell not in results and not [key for key in unlike if not key.startswith("versions.")]:
            continue
        metric, spread = results.get(str(cell), ("", 0.0))
        apart = f"differs by {spread:.4g}" if np.isfinite(spread) else "has a value in some and none in others"
        told = [f"{metric_label(metric)} {apart}"] if metric else []
        told += [f"their records differ in {joined(unlike)}"] if unlike else []
        places = ", ".join(sorted(set(rows["where"])))
        row = rows.iloc[0]
        sentence = (
            f"cell {cell} ({assignment(row)}) has {len(rows)} records: {'; '.join(told)}; the newest is shown: {places}"
        )
        yield f"{row['model']}, {row['task']}", ("measured twice", sentence, 1, count)


def _unlike_copies(rows: pd.DataFrame) -> Iterator[str]:
    if "provenance" not in rows:
        return
    told = [json.loads(text) for text in rows["provenance"] if isinstance(text, str)]
    flat = [{**{key: value for key, value in one.items() if key != "versions"}, **_versions(one)} for one in told]
    for key in dict.fromkeys(key for one in flat for key in one):
        if len({json.dumps(one[key], sort_keys=True) for one in flat if key in one}) > 1:
            yield key


def _versions(told: dict[str, Any]) -> dict[str, Any]:
    return {f"versions.{name}": version for name, version in told.get("versions", {}).items()}
