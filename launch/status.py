"""``python -m launch status``: what a sweep has come to, from any machine that sees its store.

It only reads: somebody who may not write to the store can watch as well.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launch import sweeps
from launch.snapshot import DONE, FAILED, QUEUED, RUNNING, Look, Snapshot
from mmq_sweeps.store import Store
from mmq_sweeps.table import output_console
from mmq_sweeps.trackers import address

REFRESH_SECONDS = 2.0
# Rows of groups and of workers that a person is shown; --json has all.
SHOWN = 12
STATES = (QUEUED, RUNNING, DONE, FAILED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", help="the store's folder (runs)")
    parser.add_argument("--sweep", help="a sweep's id or the first letters of it; the latest if left out")
    parser.add_argument("--watch", action="store_true", help="look again and again until all cells have ended")
    parser.add_argument("--all", action="store_true", help="a line for each sweep of the store instead")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, with every cell")


def run(arguments: argparse.Namespace) -> int:
    store = Store.reading(arguments.store)
    if arguments.all:
        return _all(store, arguments.json)
    look = Look(store, sweeps.find(store.root, arguments.sweep))
    if arguments.watch and not arguments.json:
        watch(look, output_console())
        return 0
    now = look()
    if arguments.json:
        _tell(as_json(now))
    else:
        console = output_console()
        console.print(table(now))
        tracker = sweeps.read(store.root, now.sweep).sweep.settings.get("tracker", {})
        if page := address(store.root / "wandb", tracker):
            console.print(f"W&B: {page} (group {now.sweep})", soft_wrap=True, highlight=False, markup=False)
    return 0


def watch(look: Look, console: Console) -> None:
    """Show the table until every cell has ended: on a terminal in place; elsewhere its headline whenever that changes."""
    now = look()
    if console.is_terminal:
        with Live(table(now), console=console, auto_refresh=False) as live:
            while not now.ended:
                time.sleep(REFRESH_SECONDS)
                now = look()
                live.update(table(now), refresh=True)
        return
    counted = ""
    while True:
        if counted != (counted := _counts(now)):
            sys.stdout.write(f"{counted}\n")
            sys.stdout.flush()
        if now.ended:
            break
        time.sleep(REFRESH_SECONDS)
        now = look()
    console.print(table(now))


def table(now: Snapshot) -> RenderableType:
    """The whole of a sweep for a person."""
    shown: list[RenderableType] = [_headline(now)]
    if now.groups:
        shown += [Text(), _groups(now)]
    if now.workers:
        shown += [Text(), _workers(now)]
    return Group(*shown)


def _headline(now: Snapshot) -> Text:
    lines = [_counts(now)]
    if now.failures:
        lines.append("failed: " + ", ".join(f"{count} {name}" for name, count in now.failures.items()))
    lines.append(_end(now))
    return Text("\n".join(lines))


def _counts(now: Snapshot) -> str:
    counts = ", ".join(f"{now.count(state)} {state}" for state in STATES)
    return f"sweep {now.sweep}: {len(now.cells)} cells: {counts}"


def _end(now: Snapshot) -> str:
    if now.ended:
        return "ended"
    if not any(worker.running for worker in now.workers) and not now.count(RUNNING):
        return "no worker runs; python -m launch retry runs what is missing or failed"
    if now.seconds_left is None:
        return "ends: not known before the first cell has ended"
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + now.seconds_left))
    return f"ends in about {timedelta(seconds=round(now.seconds_left))}, at {at}"


def _groups(now: Snapshot) -> Table:
    drawn = _empty("group", "", *STATES)
    # What is under way first, then what is to come, then what has ended.
    order = sorted(
        range(len(now.groups)),
        key=lambda index: (not now.groups[index].count(RUNNING), not now.groups[index].count(QUEUED), index),
    )
    for index in order[:SHOWN]:
        group = now.groups[index]
        drawn.add_row(str(index), group.label, *(str(group.count(state) or "") for state in STATES))
    if len(order) > SHOWN:
        drawn.add_row("", f"and {len(order) - SHOWN} more groups")
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
        drawn.add_row(worker.name, where, worker.state, at, str(worker.done), str(worker.failed))
    if len(now.workers) > SHOWN:
        drawn.add_row(f"and {len(now.workers) - SHOWN} more")
    return drawn


def _empty(*columns: str) -> Table:
    drawn = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    numbers = {*STATES, "group"}
    for name in columns:
        drawn.add_column(name, justify="right" if name in numbers else "left")
    return drawn


def _all(store: Store, json_asked: bool) -> int:
    found = [Look(store, one.id)() for one in sweeps.listed(store.root)]
    if json_asked:
        _tell([{key: value for key, value in as_json(now).items() if key not in ("list", "groups")} for now in found])
        return 0
    drawn = _empty("sweep", "launched", "cells", *STATES, "command")
    for now in found:
        counts = (str(now.count(state)) for state in STATES)
        drawn.add_row(now.sweep, now.created[:16], str(len(now.cells)), *counts, now.command)
    output_console().print(drawn)
    return 0


def as_json(now: Snapshot) -> dict[str, Any]:
    """The same for a program."""
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
        "list": [asdict(cell) for cell in now.cells],
    }


def _tell(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
