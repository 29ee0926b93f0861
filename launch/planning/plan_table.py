"""Show a plan as tables or as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from launch.planning.estimate import Estimate
from launch.planning.plan import Plan, passes, quantizations
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import line, output_console, plain_table


def describe(plan: Plan, estimated: Estimate | None, root: Path) -> dict[str, Any]:
    """Return the shown content as plain values; work counts cover pending cells only."""
    work = quantizations(plan.pending)
    return {
        "store": str(root),
        "sweep": plan.sweep.id,
        "configurations": plan.asked,
        "cells": len(plan.sweep.cells),
        "done": plan.done,
        "pending": len(plan.pending),
        "again": len(plan.redo),
        "part_quantizations": vars(work),
        "part_passes": {part: vars(work) for part, work in passes(plan.pending).items()},
        "jobs": len(plan.batches),
        "cells_by_job": [len(group) for group in plan.batches],
        "estimate": estimated and vars(estimated),
    }


def show_plan(plan: Plan, estimated: Estimate | None, root: Path) -> None:
    """Print the plan, as JSON if the sweep's output is JSON."""
    told, console = describe(plan, estimated, root), output_console()
    if plan.sweep.settings["output"] == "json":
        console.out(json.dumps(told, indent=1), highlight=False)
        return
    console.print(_cells(told), _work(told), sep="\n")
    for text in (_jobs(told), _estimated(told), f"store: {root}", "dry run: nothing was run, submitted or written"):
        line(console, text)


def _cells(told: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    rows = (
        ("configurations", told["configurations"], ""),
        ("distinct cells", told["cells"], "with the full-precision cell of each model and task"),
        ("already done", told["done"], ""),
        ("to run", told["pending"], f"{told['again']:,} of them again" if told["again"] else ""),
    )
    for name, count, remark in rows:
        table.add_row(name, f"{count:,}", remark)
    return table


def _work(told: dict[str, Any]) -> Table:
    table = plain_table("", ">needed", ">each cell alone")
    rows = {"quantizations of a part": told["part_quantizations"]}
    rows |= {f"evaluation passes of {part}": work for part, work in told["part_passes"].items()}
    for name, work in rows.items():
        # Text, since part names come from the model's yaml and may look like markup.
        table.add_row(Text(name), f"{work['needed']:,}", f"{work['naive']:,}")
    return table


def _jobs(told: dict[str, Any]) -> str:
    sizes = told["cells_by_job"]
    if not sizes:
        return "jobs: none"
    each = f"{sizes[0]:,}" if len(set(sizes)) == 1 else f"{min(sizes):,} to {max(sizes):,}"
    return f"jobs: {len(sizes):,}, of {each} cells"


def _estimated(told: dict[str, Any]) -> str:
    found = told["estimate"]
    if not told["pending"]:
        return "estimate: nothing to do"
    if found is None:
        return "estimate: none, there are no earlier records of these models and tasks"
    without = told["pending"] - found["cells"]
    return (
        f"estimate: {duration(found['seconds'])} on one worker and {told_size(found['size_bytes'])} for records and packed "
        f"weights, from {found['records']:,} earlier records of the same model and task"
        + (f"; {counted(without, 'cell has', 'cells have')} none, not counted" if without else "")
        + "".join(f"; quantizing by {method} is not counted, it has no record" for method in found["methods_without"])
    )


def duration(seconds: float) -> str:
    """Format seconds as ``45 s``, ``12 min``, ``3 h 20 min`` or ``2 d 4 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def told_size(size_bytes: int) -> str:
    """Format bytes as ``12.3 MB`` or ``4.56 GB``."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
