"""Cells from a store of this project's own records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import BITS, FULL_PRECISION_BITS, METRIC, Cells, Items
from mmq_sweeps.cell import BLOCK_GROUPS, LAYER_KINDS
from mmq_sweeps.record import Record
from mmq_sweeps.store import Store


def load(folder: Path) -> Cells:
    """Every cell of the store in ``folder``; one that is being written while this reads counts as not there yet."""
    if not (folder / "cells").is_dir():
        raise FileNotFoundError(f"--source {folder}: is no store (it has no folder 'cells'); run a sweep first")
    notes: list[str] = []
    store = Store(folder.absolute(), say=notes.append)
    records = store.records()
    if not records:
        raise ValueError(
            f"--source {folder}: the store holds no finished cell yet; run a sweep with store.dir={folder}"
        )
    rows = [_row(record, store) for record in records]
    failed = sum(not record.done for record in records)
    if failed:
        notes.append(f"{failed} of {len(records)} cells in {folder} failed and are left out of figures")
    return Cells(pd.DataFrame(rows), tuple(notes), lambda row: _items(store, row))


def _row(record: Record, store: Store) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": record.id,
        "source": "store",
        "status": record.status,
        **record.names,
        "created": record.created,
        "where": str(store.record_path(record.id)),
        "seconds": sum(record.seconds.values()),
        "error": (record.error or {}).get("class"),
    }
    for part in record.cell["model"]["parts"]:
        selection = record.cell["parts"].get(part)
        row[f"{BITS}{part}"] = selection["bits"] if selection else FULL_PRECISION_BITS
        row[f"blocks.{part}"] = _in_order(selection["blocks"], BLOCK_GROUPS) if selection else ""
        row[f"layers.{part}"] = _in_order(selection["layers"], LAYER_KINDS) if selection else ""
    for part, size in record.size.get("parts", {}).items():
        row[f"weights.{part}"] = size["quantized_weights"]
    for name, metric in record.metrics.items():
        row[f"{METRIC}{name}"] = metric["value"]
        row[f"low.{name}"], row[f"high.{name}"] = metric["interval"]
        row[f"count.{name}"] = metric["count"]
    for name in ("bpw_paper", "bpw_exact", "size_bytes"):
        row[name] = record.size.get("total", {}).get(name)
    return row


def _in_order(chosen: list[str], order: tuple[str, ...]) -> str:
    return "+".join(sorted(chosen, key=order.index))


def _items(store: Store, row: pd.Series) -> Items | None:
    return store.items(str(row["id"])) if row["status"] == "done" else None
