"""Draw the state of a sweep: a headline, its groups of cells, and its workers."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from launch import sweep_file
from launch.monitor.sweep_state import DONE, FAILED, QUEUED, REFUSED, RUNNING, Snapshot
from launch.slurm import jobs

# Maximum rows of groups and of workers; --json has all.
SHOWN = 12
STATES = (QUEUED, RUNNING, DONE, FAILED)


def states_of(*sweeps: Snapshot) -> tuple[str, ...]:
    """Return the states that are counted of ``sweeps``: ``refused`` only if one of them was."""
    return (*STATES, REFUSED) if any(now.refused for now in sweeps) else STATES


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
    lines = [counts(now)]
    if now.failures:
        lines.append("failed: " + ", ".join(f"{count:,} {name}" for name, count in now.failures.items()))
    if now.refused:
        lines.append(f"refused: {why_refused(now)}")
    if now.jobs.queued or now.jobs.failed or now.jobs.unknown:
        lines.append(f"jobs: {now.jobs.summary()}")
    lines.append(_end(now))
    lines += jobs.told(now.jobs.failed)
    return Text("\n".join(lines))


def counts(now: Snapshot) -> str:
    """Count the cells of a sweep by state, in one line."""
    counts = ", ".join(f"{now.count(state):,} {state}" for state in states_of(now))
    ended = now.count(DONE) + now.count(FAILED)
    share = f" ({100 * ended // len(now.cells)} % ended)" if now.cells else ""
    return f"sweep {now.sweep}: {len(now.cells):,} cells: {counts}{share}"


def why_refused(now: Snapshot) -> str:
    """Return the first problem for which a sweep was refused, and how many there are besides; ``--json`` has all."""
    more = f" (and {len(now.refused) - 1} more)" if len(now.refused) > 1 else ""
    return f"{now.refused[0]}{more}"


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
    drawn = empty("group", "", *states_of(now))
    # Running groups first, then queued, then ended.
    order = sorted(
        range(len(now.groups)),
        key=lambda index: (not now.groups[index].count(RUNNING), not now.groups[index].count(QUEUED), index),
    )
    for index in order[:SHOWN]:
        group = now.groups[index]
        add_row(drawn, str(index), group.label, *(str(group.count(state) or "") for state in states_of(now)))
    if len(order) > SHOWN:
        add_row(drawn, "", f"and {len(order) - SHOWN} more groups")
    return drawn


def _workers(now: Snapshot) -> Table:
    drawn = empty("worker", "where", "state", "at", "done", "failed")
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
        add_row(drawn, worker.name, where, worker.state, at, str(worker.done), str(worker.failed))
    if len(now.workers) > SHOWN:
        add_row(drawn, f"and {len(now.workers) - SHOWN} more")
    return drawn


def empty(*columns: str) -> Table:
    """Return a table without rows; counts are aligned right."""
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    numbers = {*STATES, REFUSED, "group"}
    for name in columns:
        drawn.add_column(name, justify="right" if name in numbers else "left")
    return drawn


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text: names and commands may contain rich markup or emoji codes."""
    table.add_row(*map(Text, cells))


def as_json(now: Snapshot) -> dict[str, Any]:
    """Return the snapshot as plain values."""
    return {
        "sweep": now.sweep,
        "command": now.command,
        "created": now.created,
        "cells": {"total": len(now.cells), **{state: now.count(state) for state in states_of(now)}},
        "refused": list(now.refused),
        "failures": now.failures,
        "seconds_left": now.seconds_left,
        "groups": [
            {"label": group.label, "cells": len(group.cells), **{state: group.count(state) for state in states_of(now)}}
            for group in now.groups
        ],
        "workers": [asdict(worker) for worker in now.workers],
        "jobs": now.jobs.as_json(),
        "list": [asdict(cell) for cell in now.cells],
    }
