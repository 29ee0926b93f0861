"""Cells from a store of this project's own records.

Reading changes nothing in a store: a sweep may be writing it, and it may belong to somebody else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import BITS, FULL_PRECISION_BITS, METRIC, VARIANT, WARNINGS, Cells, History, Items
from analysis.load import cache
from analysis.load import overrides as commands
from analysis.load.overrides import overrides
from mmq_sweeps.identity import cell as cells
from mmq_sweeps.identity.cell import BLOCK_GROUPS, LAYER_KINDS, digest
from mmq_sweeps.reporting import compare
from mmq_sweeps.reporting.compare import settings, variant
from mmq_sweeps.store.record import CorruptRecordError, Record
from mmq_sweeps.store.store import Store

# The source files that say what a row holds; a table that others made is not read from the cache.
READERS = (Path(__file__), *(Path(str(module.__file__)) for module in (commands, cells, compare)))
# Libraries between an image and an answer.
RESULTS_DEPEND_ON = ("mmq_sweeps", "torch", "transformers", "tokenizers", "pillow")
# Columns that most cells of a store have in common.
SHARED = ("settings", "provenance", "overrides")
# Names of unreadable records that a note has room for.
SHOWN = 3


def load(folder: Path) -> Cells:
    """Every cell of the store in ``folder``; one that is being written while this reads counts as not there yet."""
    if not (folder / "cells").is_dir():
        raise FileNotFoundError(f"--source {folder}: is no store (it has no folder 'cells'); run a sweep first")
    store = Store.reading(folder)
    table, notes = _table(store)
    if table.empty:
        broken = f" ({notes[0]})" if notes else ""
        raise ValueError(
            f"--source {folder}: the store holds no finished cell yet{broken}; run a sweep with store.dir={folder}"
        )
    failed = int((table["status"] != "done").sum())
    if failed:
        notes.append(f"{failed} of {len(table)} cells in {folder} failed and are left out of figures")
    return Cells(table, tuple(notes), lambda row: _items(store, row), lambda: _history(store, table["id"]))


def row_of(record: Record, where: str) -> dict[str, Any]:
    """The row of the table that ``record`` makes, ``where`` being its file or address."""
    row: dict[str, Any] = {
        "id": record.id,
        "source": "store",
        "status": record.status,
        **record.names,
        "setting": _setting(record),
        "settings": json.dumps(settings(record.cell, record.metrics), sort_keys=True),
        VARIANT: json.dumps(variant(record.cell), sort_keys=True),
        "overrides": overrides(record.cell, record.names),
        "provenance": json.dumps(_provenance(record), sort_keys=True),
        "created": record.created,
        "where": where,
        "seconds": sum(record.seconds.values()),
        "missing": (record.notes.get("missing") or {}).get("items", 0),
        "error": (record.error or {}).get("class"),
    }
    for part in record.cell["model"]["parts"]:
        selection = record.cell["parts"].get(part)
        row[f"{BITS}{part}"] = selection["bits"] if selection else FULL_PRECISION_BITS
        row[f"blocks.{part}"] = _in_order(selection["blocks"], BLOCK_GROUPS) if selection else ""
        row[f"layers.{part}"] = _in_order(selection["layers"], LAYER_KINDS) if selection else ""
        row[f"group.{part}"] = str(selection.get("group_size") or "") if selection else ""
    for part, size in record.size.get("parts", {}).items():
        row[f"weights.{part}"] = size["quantized_weights"]
    for name, metric in record.metrics.items():
        row[f"{METRIC}{name}"] = metric["value"]
        row[f"low.{name}"], row[f"high.{name}"] = metric["interval"]
        row[f"count.{name}"] = metric["count"]
        row[f"higher.{name}"] = metric.get("higher_is_better", True)
        if metric.get("warnings"):
            row[f"{WARNINGS}{name}"] = "\n".join(metric["warnings"])
    for name in ("bpw_paper", "bpw_exact", "size_bytes"):
        row[name] = record.size.get("total", {}).get(name)
    return row


def _table(store: Store) -> tuple[pd.DataFrame, list[str]]:
    """The rows of all readable records, oldest first: those that have not changed from the cache."""
    kept_at = cache.path_of(store.root, READERS)
    kept, stamps = cache.read(kept_at), _stamps(store)
    current = pd.DataFrame(columns=["id", cache.STAMP])
    if kept is not None:
        current = kept[kept["id"].map(stamps) == kept[cache.STAMP]]
    unread = stamps.keys() - set(current["id"])
    rows, broken = _read(store, {cell_id: stamps[cell_id] for cell_id in unread})
    if not rows and kept is not None and len(current) == len(kept):
        return current.drop(columns=cache.STAMP), broken
    table = pd.DataFrame(rows) if current.empty else pd.concat([current, pd.DataFrame(rows)], ignore_index=True)
    if table.empty:
        return table, broken
    table = table.sort_values(["created", "id"], kind="stable", ignore_index=True)
    # A few long texts of many rows: each is held, and written, once.
    table = table.astype(dict.fromkeys(SHARED, "category"))
    refused = cache.write(kept_at, table)
    return table.drop(columns=cache.STAMP), broken + ([refused] if refused else [])


def _stamps(store: Store) -> dict[str, str]:
    """The stamp of every record, by its cell. Taken before the records are read, so that none can be newer than its row."""
    found = {}
    cells = str(store.root / "cells")
    with os.scandir(cells) as folders:
        for folder in folders:
            try:
                found[folder.name] = cache.stamp(f"{cells}/{folder.name}/record.json")
            except (FileNotFoundError, NotADirectoryError):
                continue  # It is being written.
    return found


def _read(store: Store, stamps: Mapping[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    rows, broken = [], []
    for cell_id, stamp in stamps.items():
        path = store.record_path(cell_id)
        try:
            record = Record.from_json(path.read_text())
        except FileNotFoundError:
            continue
        except (CorruptRecordError, UnicodeDecodeError) as error:
            broken.append(f"{path} {error}")
            continue
        rows.append({**row_of(record, str(path)), cache.STAMP: stamp})
    if not broken:
        return rows, []
    more = f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else ""
    told = f"left out: {'; '.join(sorted(broken)[:SHOWN])}{more}; run the sweep again to measure anew"
    return rows, [told]


def _setting(record: Record) -> str:
    """Alike in cells that are comparable: those of one model and task, and of one meaning of better."""
    lower = sorted(name for name, metric in record.metrics.items() if not metric.get("higher_is_better", True))
    return digest([record.cell["model"], record.cell["task"], *([lower] if lower else [])])[:8]


def _provenance(record: Record) -> dict[str, Any]:
    """What the record tells of how it came about, beside its configuration and what only counts or times."""
    told = {key: value for key, value in record.notes.items() if key not in ("solver", "missing")}
    versions = {name: version for name, version in record.versions.items() if name in RESULTS_DEPEND_ON}
    return {**told, **({"versions": versions} if versions else {})}


def _in_order(chosen: list[str], order: tuple[str, ...]) -> str:
    return "+".join(sorted(chosen, key=order.index))


def _items(store: Store, row: pd.Series) -> Items | None:
    if row["status"] != "done":
        return None
    try:
        return store.items(str(row["id"]))
    except FileNotFoundError:
        return None


def versions_of(content: Mapping[str, Any]) -> str:
    """A record's ``versions`` in words."""
    return ", ".join(f"{name} {version}" for name, version in sorted(content.items()) if version)


def _history(store: Store, measured: pd.Series) -> History:
    """The commands that filled the store, the cells that they asked for in vain, and the versions that ran."""
    commands, lacking = [], []
    present = set(measured)
    for path in sorted((store.root / "sweeps").glob("*/sweep.json")):
        try:
            told = json.loads(path.read_text())
            # Of a sweep from before the store was migrated only the plan has all cells.
            asked, command = {*told["cells"], *(one for group in told["plan"] for one in group)}, str(told["command"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Notes for people; a sweep that cannot be read back is none that can be told about.
        commands.append(command)
        if missing := asked - present:
            lacking.append(f"{len(missing)} of {len(asked)} cells have no record yet: run {command} again")
    versions = set()
    for cell_id in present:
        try:
            content = json.loads(store.record_path(cell_id).read_text())["versions"]
        except (OSError, ValueError, KeyError):
            continue
        versions.add(versions_of(content))
    return History(tuple(dict.fromkeys(commands)), tuple(lacking), tuple(sorted(versions)))
