"""The result of a sweep as rows, for a program, and as a table, for a person."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from mmq_sweeps.cell import bits_label, digest
from mmq_sweeps.compare import Items, differences
from mmq_sweeps.record import Record

# A table that is not on a terminal is not cut to 80 columns.
FILE_WIDTH = 200
SIGNIFICANT = "*"
FOOTNOTE = f"{SIGNIFICANT} differs from full precision (paired 95% bootstrap interval without zero)"
METRIC_LABELS = {
    "cider": "CIDEr",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "spice": "SPICE",
    "gqa_accuracy": "acc.",
    "vqa_accuracy": "acc.",
    "recall_mean": "R@mean",
    **{
        f"{prefix}recall_at_{rank}": f"{shown}@{rank}"
        for prefix, shown in (("", "R"), ("text_", "TR"), ("image_", "IR"))
        for rank in (1, 5, 10)
    },
}
# Where there are more metrics than these, only the first is shown beside its difference from full precision.
COMPARED = 3


def rows(records: Iterable[Record], items: Callable[[str], Items]) -> list[dict[str, Any]]:
    """One row a record, from the most bits per weight to the fewest, failures last.

    A metric has its value, its interval and, where the full-precision record of the same model and task is among
    ``records``, its ``difference`` from that with a paired interval. ``items`` reads a cell's items by its id.
    """
    records = list(records)
    baselines = {_family(record): record for record in records if record.baseline and record.done}
    read = functools.cache(items)
    return sorted((_row(record, baselines.get(_family(record)), read) for record in records), key=_order)


def _row(record: Record, baseline: Record | None, items: Callable[[str], Items]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": record.id,
        "status": record.status,
        **record.names,
        "bits": {part: bits_label(selection) for part, selection in record.cell["parts"].items()},
    }
    if not record.done:
        return {**row, "error": {key: (record.error or {}).get(key, "") for key in ("class", "message")}}
    metrics = {
        name: {"value": metric["value"], "interval": metric["interval"]} for name, metric in record.metrics.items()
    }
    if baseline is not None and baseline is not record:
        for name, difference in differences(baseline, items(baseline.id), record, items(record.id)).items():
            metrics[name] |= difference
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


def show(table_rows: list[dict[str, Any]], console: Console) -> None:
    """Print the finished rows, and below them what a mark means."""
    console.print(draw(table_rows))
    if any(metric.get("significant") for row in table_rows for metric in row.get("metrics", {}).values()):
        console.print(FOOTNOTE, soft_wrap=True, markup=False, highlight=False)


def draw(table_rows: list[dict[str, Any]]) -> Table:
    """The finished rows as a table; a column a part that any row quantizes."""
    # Narrow enough for a terminal of 80 columns.
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
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
        if name in _compared(metrics):
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
        if name in _compared(metrics):
            shown.append("" if metric is None or "difference" not in metric else _difference(metric))
    shown += [f"{row['bpw_paper']:.2f}", f"{row['bpw_exact']:.2f}"]
    return [*shown, f"{row['size_bytes'] / 1e6:.2f}", f"{row['seconds']:.1f}"]


def _compared(metrics: list[str]) -> list[str]:
    return metrics if len(metrics) <= COMPARED else metrics[:1]


def _difference(metric: dict[str, Any]) -> str:
    return f"{metric['difference']:+.4f}{SIGNIFICANT if metric['significant'] else ' '}"


def _part_order(part: str) -> tuple[int, str]:
    known = ("vision", "connector", "language")
    return (known.index(part) if part in known else len(known)), part


def output_console() -> Console:
    """Standard output: colours only on a terminal, wide where it is a file."""
    console = Console()
    return console if console.is_terminal else Console(width=FILE_WIDTH)
