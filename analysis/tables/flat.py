"""A store as CSV: a line for every cell, finished or failed, with every figure that the table shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mmq_sweeps.identity.assignment import part_order

FIRST = ("id", "status", "family", "model", "task", "method", "label")
LAST = ("bpw_paper", "bpw_exact", "size_bytes", "seconds", "loads_in", "error", "message")


def csv_text(table_rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as CSV; numbers are written in full, and a failed cell has its bits and its error's class."""
    parts = sorted({part for row in table_rows for part in row["bits"]}, key=part_order)
    lines = [_flat(row, parts) for row in table_rows]
    figures = dict.fromkeys(name for line in lines for name in line if name not in (*FIRST, *LAST))
    text = io.StringIO()
    writer = csv.DictWriter(text, [*FIRST, *figures, *LAST], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(row: dict[str, Any], parts: Sequence[str]) -> dict[str, Any]:
    flat = {name: row[name] for name in (*FIRST, *LAST[:4]) if name in row}
    flat |= {f"bits.{part}": row["bits"].get(part, "16") for part in parts}
    flat["loads_in"] = "+".join(row.get("loads_in", ()))
    if "error" in row:
        flat |= {"error": row["error"]["class"], "message": row["error"]["message"]}
    for name, metric in row.get("metrics", {}).items():
        flat[f"metric.{name}"] = metric["value"]
        flat |= dict(zip((f"low.{name}", f"high.{name}"), metric["interval"] or (), strict=False))
        if "difference" in metric:
            flat[f"difference.{name}"] = metric["difference"]
            flat |= dict(
                zip((f"difference_low.{name}", f"difference_high.{name}"), metric["difference_interval"], strict=True)
            )
        flat[f"warnings.{name}"] = "; ".join(metric.get("warnings", ()))
    return flat
