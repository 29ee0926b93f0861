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
from launch.monitor.findings import HIGHEST_PLOT, LEAST_PLOT, best_so_far, has_plot, wrapped
from launch.monitor.plot import plot
from launch.monitor.sweep_state import DONE, FAILED, QUEUED, REFUSED, RUNNING, Snapshot
from launch.slurm import jobs
from mmq_sweeps.reporting.counts import counted

# Maximum rows of groups and of workers; --json has all.
SHOWN = 12
# Beside a plot, at most so many workers.
FEW = 4
# Lines of a table beside its rows: a blank one, head and rule.
HEADS = 3
STATES = (QUEUED, RUNNING, DONE, FAILED)


def states_of(*sweeps: Snapshot) -> tuple[str, ...]:
    """Return the states that are counted of ``sweeps``: ``refused`` only if one of them was."""
    return (*STATES, REFUSED) if any(now.refused for now in sweeps) else STATES


def show(now: Snapshot, console: Console, max_bpw: float | None = None) -> None:
    """Print the whole sweep; lines are not wrapped, so that commands and paths can be copied."""
    console.print(_headline(now), soft_wrap=True)
    for text in best_so_far(now.results, max_bpw, now.ended):
        console.print(Text(text), soft_wrap=True)
    console.print(Group(*_tables(now, SHOWN, SHOWN)))


def table(now: Snapshot, width: int, height: int, max_bpw: float | None = None) -> RenderableType:
    """Return the sweep as a renderable of at most ``height`` lines, with a plot of the newest results if there is room.

    The headline comes first, then workers, the plot, and groups.
    """
    best = wrapped(best_so_far(now.results, max_bpw, now.ended), width)
    head = [*_headline(now).split("\n"), *best][: max(1, height - 1)]
    for line in head:
        line.truncate(width, overflow="ellipsis")
    left = height - len(head) - 1
    plots = has_plot(now.results, width, left)
    workers = _fitting(len(now.workers), left - (LEAST_PLOT + 1) * plots, FEW if plots else SHOWN)
    left -= _lines(len(now.workers), workers)
    drawn = plot(now.results[0], width, min(left - 1, HIGHEST_PLOT), max_bpw) if plots else None
    left -= len(drawn.split("\n")) + 1 if drawn is not None else 0
    groups = _fitting(len(now.groups), left, SHOWN)
    shown: list[RenderableType] = [*head]
    if drawn is not None:
        shown += [Text(), drawn]
    return Group(*shown, *_tables(now, groups, workers, whole=False))


def _fitting(count: int, room: int, most: int) -> int:
    """Return how many of ``count`` rows to show, at most ``most``, so that the table fits into ``room`` lines."""
    return next((rows for rows in range(min(count, most), 0, -1) if _lines(count, rows) <= room), 0)


def _lines(count: int, rows: int) -> int:
    """Return the lines of a table that shows ``rows`` of ``count``; one line says how many there are besides."""
    return HEADS + rows + (rows < count) if rows else 0


def _tables(now: Snapshot, groups: int, workers: int, whole: bool = True) -> list[RenderableType]:
    """Return the tables with this many rows; ``whole`` texts are wrapped, others cut at the edge of the screen."""
    shown: list[RenderableType] = []
    if now.groups and groups:
        shown += [Text(), _groups(now, groups)]
    if now.workers and workers:
        shown += [Text(), _workers(now, workers)]
    if not whole:
        for column in (column for drawn in shown if isinstance(drawn, Table) for column in drawn.columns):
            column.no_wrap, column.overflow = True, "ellipsis"
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
    return f"sweep {now.sweep}: {counted(len(now.cells), 'cell')}: {counts}{share}"


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


def _groups(now: Snapshot, most: int) -> Table:
    drawn = empty("group", "", *states_of(now))
    # Running groups first, then queued, then ended.
    order = sorted(
        range(len(now.groups)),
        key=lambda index: (not now.groups[index].count(RUNNING), not now.groups[index].count(QUEUED), index),
    )
    for index in order[:most]:
        group = now.groups[index]
        add_row(drawn, str(index), group.label, *(str(group.count(state) or "") for state in states_of(now)))
    if len(order) > most:
        add_row(drawn, "", f"and {len(order) - most} more groups")
    return drawn


def _workers(now: Snapshot, most: int) -> Table:
    drawn = empty("worker", "where", "state", "at", "done", "failed")
    alive = [worker for worker in now.workers if worker.running]
    ended = [worker for worker in now.workers if not worker.running]
    for worker in [*alive, *reversed(ended)][:most]:
        gpus = f" gpu {worker.gpus}" if worker.gpus else ""
        at = worker.reason or ""
        if worker.running:
            stage = worker.stage
            at = " ".join(filter(None, [worker.cell, worker.title])) or "starts"
            at += f", {stage['name']} {stage['done']}/{stage['total']}" if stage else ""
        job = f" job {worker.job}" if worker.job else ""
        where = f"{worker.owner.host}{job or f' process {worker.owner.pid}'}{gpus}"
        add_row(drawn, worker.name, where, worker.state, at, str(worker.done), str(worker.failed))
    if len(now.workers) > most:
        add_row(drawn, f"and {len(now.workers) - most} more")
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


def as_json(now: Snapshot, max_bpw: float | None = None) -> dict[str, Any]:
    """Return the snapshot as plain values; ``best`` of each result is the best cell within ``max_bpw``."""
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
        "results": [found.as_json(max_bpw) for found in now.results],
        "list": [asdict(cell) for cell in now.cells],
    }
