"""The result of a sweep as rows, for a program, and as a table, for a person."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mmq_sweeps.cell import bits_label, digest
from mmq_sweeps.record import Record

# A table that is not on a terminal is not cut to 80 columns.
FILE_WIDTH = 200
METRIC_LABELS = {"cider": "CIDEr", "cider_d": "CIDEr-D", "meteor": "METEOR", "rouge_l": "ROUGE-L", "spice": "SPICE"}


def rows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row a record, from the most bits per weight to the fewest, failures last.

    A metric has its value, its interval and, where the full-precision record of the same model and task is among
    ``records``, its ``difference`` from that.
    """
    records = list(records)
    baselines = {_family(record): record for record in records if record.baseline and record.done}
    return sorted((_row(record, baselines.get(_family(record))) for record in records), key=_order)


def _row(record: Record, baseline: Record | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": record.id,
        "status": record.status,
        **record.names,
        "bits": {part: bits_label(selection) for part, selection in record.cell["parts"].items()},
    }
    if not record.done:
        return {**row, "error": {key: (record.error or {}).get(key, "") for key in ("class", "message")}}
    metrics = {}
    for name, metric in record.metrics.items():
        metrics[name] = {"value": metric["value"], "interval": metric["interval"]}
        if baseline is not None and name in baseline.metrics:
            metrics[name]["difference"] = metric["value"] - baseline.metrics[name]["value"]
    total = record.size["total"]
    return {
        **row,
        "metrics": metrics,
        "bpw_paper": total["bpw_paper"],
        "bpw_exact": total["bpw_exact"],
        "size_bytes": total["size_bytes"],
        "seconds": sum(record.seconds.values()),
    }


def _family(record: Record) -> str:
    return digest([record.cell["model"], record.cell["task"]])


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    bpw = -row["bpw_paper"] if "bpw_paper" in row else math.inf
    return row["model"], row["task"], bpw, row["method"], sorted(row["bits"].items())


def draw(table_rows: list[dict[str, Any]], title: str | None = None) -> Table:
    """The finished rows as a table; a column a part that any row quantizes."""
    # Narrow enough for a terminal of 80 columns.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True
    )
    parts = sorted({part for row in table_rows for part in row["bits"]}, key=_part_order)
    metrics = list(dict.fromkeys(name for row in table_rows for name in row.get("metrics", {})))
    families = {(row["model"], row["task"]) for row in table_rows}
    leading = ["method"] if len(families) < 2 else ["model", "task", "method"]
    for name in leading:
        table.add_column(name)
    for name in parts:
        table.add_column(name, justify="right")
    for name in metrics:
        table.add_column(METRIC_LABELS.get(name, name), justify="right")
        table.add_column("vs\nfull", justify="right")
    for name in ("bpw\npaper", "bpw\nexact", "size\nMB", "time\ns"):
        table.add_column(name, justify="right")
    for row in table_rows:
        if row["status"] == "done":
            table.add_row(*(row[name] for name in leading), *_cells(row, parts, metrics))
    return table


def _cells(row: dict[str, Any], parts: list[str], metrics: list[str]) -> list[str]:
    shown = [row["bits"].get(part, "16") for part in parts]
    for name in metrics:
        metric = row["metrics"].get(name)
        shown.append("" if metric is None else f"{metric['value']:.4f}")
        difference = None if metric is None else metric.get("difference")
        shown.append("" if difference is None or not row["bits"] else f"{difference:+.4f}")
    shown += [f"{row['bpw_paper']:.2f}", f"{row['bpw_exact']:.2f}"]
    return [*shown, f"{row['size_bytes'] / 1e6:.2f}", f"{row['seconds']:.1f}"]


def _part_order(part: str) -> tuple[int, str]:
    known = ("vision", "connector", "language")
    return (known.index(part) if part in known else len(known)), part


def output_console() -> Console:
    """Standard output: colours only on a terminal, wide where it is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)
