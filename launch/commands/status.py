"""``python -m launch status``: show the state of a sweep, on any machine that sees its store.

Only reads, so that users without write access to the store can watch as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch import sweep_file
from launch.monitor.sweep_state import DONE, FAILED, QUEUED, RUNNING, Snapshot, SweepReader
from launch.slurm import jobs
from mmq_sweeps.reporting.table import output_console
from mmq_sweeps.reporting.trackers import address
from mmq_sweeps.store.store import Store

REFRESH_SECONDS = 2.0
SETTLED_LOOKS = 3
# Maximum rows of groups and of workers; --json has all.
SHOWN = 12
STATES = (QUEUED, RUNNING, DONE, FAILED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", help="the store's folder (runs)")
    parser.add_argument("--sweep", help="a sweep's id or the first letters of it; the latest if left out")
    parser.add_argument("--watch", action="store_true", help="look again and again until all cells or jobs have ended")
    parser.add_argument("--all", action="store_true", help="a line for each sweep of the store instead")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, with every cell")


def run(arguments: argparse.Namespace) -> int:
    store = Store.reading(arguments.store)
    if arguments.all:
        return _all(store, arguments.json)
    look = SweepReader(store, sweep_file.find(store.root, arguments.sweep))
    if arguments.watch and not arguments.json:
        return 0 if watch(look, output_console()).ended else 1
    now = look()
    if arguments.json:
        _tell(as_json(now))
    else:
        console = output_console()
        show(now, console)
        tracker = sweep_file.read(store.root, now.sweep).sweep.settings.get("tracker", {})
        if page := address(store.root / "wandb", tracker):
            console.print(f"W&B: {page} (group {now.sweep})", soft_wrap=True, highlight=False, markup=False)
    return 0


def watch(look: SweepReader, console: Console) -> Snapshot:
    """Show the table until all cells or all jobs have ended, and return the last snapshot.

    On a terminal the table is updated in place; elsewhere its headline is printed whenever it changes.
    """
    now = look()
    seen = _until_over(look, now)
    if console.is_terminal:
        with Live(table(now), console=console, auto_refresh=False) as live:
            for now in seen:
                live.update(table(now), refresh=True)
        return now
    counted = ""
    for now in seen:
        if counted != (counted := _counts(now)):
            sys.stdout.write(f"{counted}\n")
            sys.stdout.flush()
    show(now, console)
    return now


def _until_over(look: SweepReader, now: Snapshot) -> Iterator[Snapshot]:
    """Yield ``now`` and later snapshots until all cells or all jobs have ended."""
    settled = 0
    while True:
        yield now
        # A job leaves the queue shortly before its last record is visible on other machines.
        settled = settled + 1 if now.jobs.failed and now.jobs.gone and not now.running else 0
        if now.ended or settled > SETTLED_LOOKS:
            return
        time.sleep(REFRESH_SECONDS)
        now = look()


def show(now: Snapshot, console: Console) -> None:
    """Print the whole sweep; lines are not wrapped, so that commands and paths can be copied."""
    console.print(_headline(now), soft_wrap=True)
    console.print(Group(*_tables(now)))


def table(now: Snapshot) -> RenderableType:
    """Return the whole sweep as a renderable for live display."""
    return Group(_headline(now), *_tables(now))


def _tables(now: Snapshot) -> list[RenderableType]:
    shown: list[RenderableType] = []
    if now.groups:
        shown += [Text(), _groups(now)]
    if now.workers:
        shown += [Text(), _workers(now)]
    return shown


def _headline(now: Snapshot) -> Text:
    lines = [_counts(now)]
    if now.failures:
        lines.append("failed: " + ", ".join(f"{count:,} {name}" for name, count in now.failures.items()))
    if now.jobs.queued or now.jobs.failed or now.jobs.unknown:
        lines.append(f"jobs: {now.jobs.summary()}")
    lines.append(_end(now))
    lines += jobs.told(now.jobs.failed)
    return Text("\n".join(lines))


def _counts(now: Snapshot) -> str:
    counts = ", ".join(f"{now.count(state):,} {state}" for state in STATES)
    ended = now.count(DONE) + now.count(FAILED)
    share = f" ({100 * ended // len(now.cells)} % ended)" if now.cells else ""
    return f"sweep {now.sweep}: {len(now.cells):,} cells: {counts}{share}"


def _end(now: Snapshot) -> str:
    if now.ended:
        return "ended"
    if not now.running:
        return _waits(now)
    if now.seconds_left is None:
        return "ends: not known before the first cell has ended"
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + now.seconds_left))
    return f"ends in about {timedelta(seconds=round(now.seconds_left))}, at {at}"


def _waits(now: Snapshot) -> str:
    """Explain why no worker runs, and how to resume if necessary."""
    if any(job.state == "RUNNING" for job in now.jobs.queued):
        return "no worker has begun; a job that runs starts its workers"
    if now.jobs.queued:
        return "queued: no worker runs before SLURM starts a job"
    if now.jobs.unknown is not None:
        return "no worker runs; whether jobs are queued is not known on this machine"
    return f"no worker runs; {sweep_file.command('retry', now.root, now.sweep)} runs what is missing or failed"


def _groups(now: Snapshot) -> Table:
    drawn = _empty("group", "", *STATES)
    # Running groups first, then queued, then ended.
    order = sorted(
        range(len(now.groups)),
        key=lambda index: (not now.groups[index].count(RUNNING), not now.groups[index].count(QUEUED), index),
    )
    for index in order[:SHOWN]:
        group = now.groups[index]
        _row(drawn, str(index), group.label, *(str(group.count(state) or "") for state in STATES))
    if len(order) > SHOWN:
        _row(drawn, "", f"and {len(order) - SHOWN} more groups")
    return drawn


def _workers(now: Snapshot) -> Table:
    drawn = _empty("worker", "where", "state", "at", "done", "failed")
    alive = [worker for worker in now.workers if worker.running]
    ended = [worker for worker in now.workers if not worker.running]
    for worker in [*alive, *reversed(ended)][:SHOWN]:
        gpus = f" gpu {worker.gpus}" if worker.gpus else ""
        at = worker.reason or ""
        if worker.running:
            stage = worker.stage
            at = " ".join(filter(None, [worker.cell, worker.title])) or "starts"
            at += f", {stage['name']} {stage['done']}/{stage['total']}" if stage else ""
        job = f" job {worker.job}" if worker.job else ""
        where = f"{worker.owner.host}{job or f' process {worker.owner.pid}'}{gpus}"
        _row(drawn, worker.name, where, worker.state, at, str(worker.done), str(worker.failed))
    if len(now.workers) > SHOWN:
        _row(drawn, f"and {len(now.workers) - SHOWN} more")
    return drawn


def _empty(*columns: str) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    numbers = {*STATES, "group"}
    for name in columns:
        drawn.add_column(name, justify="right" if name in numbers else "left")
    return drawn


def _row(table: Table, *cells: str) -> None:
    """Add a row of plain text: names and commands may contain rich markup or emoji codes."""
    table.add_row(*map(Text, cells))


def _all(store: Store, json_asked: bool) -> int:
    found = [SweepReader(store, one.id)() for one in sweep_file.listed(store.root)]
    if json_asked:
        _tell([{key: value for key, value in as_json(now).items() if key not in ("list", "groups")} for now in found])
        return 0
    drawn = _empty("sweep", "launched", "cells", *STATES, "command")
    for now in found:
        counts = (f"{now.count(state):,}" for state in STATES)
        _row(drawn, now.sweep, now.created[:16], f"{len(now.cells):,}", *counts, now.command)
    output_console().print(drawn)
    return 0


def as_json(now: Snapshot) -> dict[str, Any]:
    """Return the snapshot as plain values."""
    return {
        "sweep": now.sweep,
        "command": now.command,
        "created": now.created,
        "cells": {"total": len(now.cells), **{state: now.count(state) for state in STATES}},
        "failures": now.failures,
        "seconds_left": now.seconds_left,
        "groups": [
            {"label": group.label, "cells": len(group.cells), **{state: group.count(state) for state in STATES}}
            for group in now.groups
        ],
        "workers": [asdict(worker) for worker in now.workers],
        "jobs": now.jobs.as_json(),
        "list": [asdict(cell) for cell in now.cells],
    }


def _tell(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
