"""Load cells from a store.

Access is read-only: a sweep may be writing to the store, and it may belong to another user.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Cells, History, Items
from analysis.cells.columns import (
    ANSWERS,
    BESIDE,
    BITS,
    DEFINITION,
    LOADS_IN,
    MAIN,
    METRIC,
    SELECTION,
    VARIANT,
    WARNINGS,
)
from analysis.cells.merging import end_part
from analysis.cells.remarks import failed_cells
from analysis.load import cache
from analysis.load import overrides as commands
from analysis.load.overrides import assigned, overrides
from analysis.tables.records import opened
from mmq_sweeps.identity import assignment, loads_in
from mmq_sweeps.identity import cell as cells
from mmq_sweeps.identity.assignment import (
    BLOCK_GROUPS,
    FULL_PRECISION_BITS,
    LAYER_KINDS,
    is_mixed,
    mean_bits,
    mean_width,
)
from mmq_sweeps.identity.cell import digest, is_quantized_elsewhere
from mmq_sweeps.reporting import compare
from mmq_sweeps.reporting.compare import beside_of, settings, variant
from mmq_sweeps.reporting.counts import counted, out_of
from mmq_sweeps.store.record import CorruptRecordError, Record
from mmq_sweeps.store.store import Store

# The source files that determine a row's contents: a change to any of them invalidates the cache.
READERS = (Path(__file__), *(Path(str(module.__file__)) for module in (commands, assignment, cells, compare, loads_in)))
# Libraries whose version can change a cell's outputs.
RESULTS_DEPEND_ON = ("mmq_sweeps", "torch", "transformers", "tokenizers", "pillow")
# Columns of long texts with few distinct values.
SHARED = ("settings", "provenance", "overrides")
# Unreadable records that a note lists by name.
SHOWN = 3


def load(folder: Path) -> Cells:
    """Load every cell of the store in ``folder``, without those still being written.

    Raises FileNotFoundError if ``folder`` is not a store, ValueError if it has no readable record.
    """
    store = opened(folder)
    table, notes = _table(store)
    if table.empty:
        broken = f" ({notes[0]})" if notes else ""
        raise ValueError(
            f"--source {folder}: the store holds no finished cell yet{broken}; run a sweep with store.dir={folder}"
        )
    raced = table["settings"].str.contains('"task.sample.', regex=False)
    if raced.any() and not raced.all():
        notes.append(f"{counted(int(raced.sum()), 'cell')} on some items alone, as in races of a search, left out")
        table = table[~raced].reset_index(drop=True)
    notes += failed_cells(table, str(folder))
    return Cells(table, tuple(notes), lambda row: _items(store, row), lambda: _history(store, table["id"]))


def row_of(record: Record, where: str) -> dict[str, Any]:
    """Convert ``record`` to a row of the table of cells; ``where`` is its file or URL."""
    row: dict[str, Any] = {
        "id": record.id,
        "source": "store",
        "status": record.status,
        **record.names,
        "setting": _setting(record),
        BESIDE: beside_of(record.cell)[:8],
        "settings": json.dumps(settings(record.cell, record.metrics), sort_keys=True),
        VARIANT: json.dumps(variant(record.cell), sort_keys=True),
        "overrides": overrides(record.cell, record.names),
        "assigned": assigned(record.id, record.cell),
        "provenance": json.dumps(_provenance(record), sort_keys=True),
        "created": record.created,
        "where": where,
        "seconds": sum(record.seconds.values()),
        "missing": (record.notes.get("missing") or {}).get("items", 0),
        "error": (record.error or {}).get("class"),
    }
    if record.metrics:
        row[MAIN] = next(iter(record.metrics))
    sizes = record.size.get("parts", {})
    for part in dict.fromkeys([*record.cell["model"]["parts"], *record.cell["parts"]]):
        row |= _of_part(part, record.cell["parts"].get(part), sizes.get(part))
        if is_quantized_elsewhere(record.cell) and (width := mean_width(sizes.get(part))) is not None:
            row[f"{BITS}{part}"] = width
    for name, metric in record.metrics.items():
        row[f"{METRIC}{name}"] = metric["value"]
        row[f"low.{name}"], row[f"high.{name}"] = metric["interval"]
        row[f"count.{name}"] = metric["count"]
        row[f"higher.{name}"] = metric.get("higher_is_better", True)
        if metric.get("definition"):
            row[f"{DEFINITION}{name}"] = metric["definition"]
        if metric.get("warnings"):
            row[f"{WARNINGS}{name}"] = "\n".join(metric["warnings"])
    for name in ("bpw_paper", "bpw_exact", "size_bytes"):
        row[name] = record.size.get("total", {}).get(name)
    row |= {f"{ANSWERS}{name}": value for name, value in record.answers.items()}
    row[LOADS_IN] = loads_in.joined(record.loads_in) if record.loads_in else None
    return row


def _of_part(part: str, selection: Mapping[str, Any] | None, size: Mapping[str, Any] | None) -> dict[str, Any]:
    row = end_part(part, FULL_PRECISION_BITS)
    if selection is not None:
        row[f"{BITS}{part}"] = mean_bits(selection, size)
        if is_mixed(selection):
            row[f"{SELECTION}{part}"] = json.dumps(selection, sort_keys=True)
        else:
            row[f"blocks.{part}"] = _in_order(selection.get("blocks", []), BLOCK_GROUPS)
            row[f"layers.{part}"] = _in_order(selection.get("layers", []), LAYER_KINDS)
            row[f"group.{part}"] = str(selection.get("group_size") or "")
    if size is not None:
        row[f"weights.{part}"] = size["quantized_weights"]
    return row


def _table(store: Store) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of all readable records, oldest first, and notes; unchanged records come from the cache."""
    kept_at = cache.path_of(store.root, READERS)
    kept, stamps = cache.read(kept_at), _stamps(store)
    current = pd.DataFrame(columns=["id", cache.STAMP])
    if kept is not None:
        current = kept[kept["id"].map(stamps) == kept[cache.STAMP]]
    known = set(current["id"])
    rows, broken = _read(store, {cell_id: stamp for cell_id, stamp in stamps.items() if cell_id not in known})
    if not rows and kept is not None and len(current) == len(kept):
        return current.drop(columns=cache.STAMP), broken
    table = pd.DataFrame(rows) if current.empty else pd.concat([current, pd.DataFrame(rows)], ignore_index=True)
    if table.empty:
        return table, broken
    table = table.sort_values(["created", "id"], kind="stable", ignore_index=True)
    # As categories, each distinct text is stored once.
    table = table.astype(dict.fromkeys(SHARED, "category"))
    refused = cache.write(kept_at, table)
    return table.drop(columns=cache.STAMP), broken + ([refused] if refused else [])


def _stamps(store: Store) -> dict[str, str]:
    """Return every record's stamp by cell id. Call before reading the records: a stamp must not be newer than its row."""
    found = {}
    cells = str(store.root / "cells")
    with os.scandir(cells) as folders:
        for folder in folders:
            try:
                found[folder.name] = cache.stamp(f"{cells}/{folder.name}/record.json")
            except (FileNotFoundError, NotADirectoryError):
                continue  # Still being written.
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
    """Hash the full model and task configuration, and the metrics of which lower is better: equal in comparable cells."""
    lower = sorted(name for name, metric in record.metrics.items() if not metric.get("higher_is_better", True))
    return digest([record.cell["model"], record.cell["task"], *([lower] if lower else [])])[:8]


def _provenance(record: Record) -> dict[str, Any]:
    """Return the record's notes on images, processor and generation, and library versions; no counts, no timings."""
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
    """Format a record's ``versions`` as ``name version, name version``."""
    return ", ".join(f"{name} {version}" for name, version in sorted(content.items()) if version)


def _history(store: Store, measured: pd.Series) -> History:
    """Collect the commands that filled the store, the cells that they left unmeasured, and the library versions."""
    commands, lacking = [], []
    present = set(measured)
    for path in sorted((store.root / "sweeps").glob("*/sweep.json")):
        try:
            told = json.loads(path.read_text())
            asked, command = set(told["cells"]), str(told["command"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # The history is informational: skip sweeps that cannot be read.
        commands.append(command)
        if missing := asked - present:
            lacking.append(
                f"{out_of(len(missing), len(asked), 'cell', 'has', 'have')} no record yet: run {command} again"
            )
    versions = set()
    for cell_id in present:
        try:
            content = json.loads(store.record_path(cell_id).read_text())["versions"]
        except (OSError, ValueError, KeyError):
            continue
        versions.add(versions_of(content))
    return History(tuple(dict.fromkeys(commands)), tuple(lacking), tuple(sorted(versions)))
