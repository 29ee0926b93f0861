"""``python -m launch status``: show the state of a sweep, on any machine that sees its store.

Only reads, so that users without write access to the store can watch as well.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.live import Live

from launch import sweep_file
from launch.commands import add_sweep, print_json
from launch.monitor.state_table import add_row, as_json, counts, empty, show, states_of, table, why_refused
from launch.monitor.sweep_state import Snapshot, SweepReader
from mmq_sweeps.errors import BITS, check_ranges
from mmq_sweeps.reporting.table import line, output_console
from mmq_sweeps.reporting.trackers import address
from mmq_sweeps.store.store import Store

RANGES = {"max_bpw": BITS}
REFRESH_SECONDS = 2.0
SETTLED_LOOKS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep(parser)
    parser.add_argument("--watch", action="store_true", help="look again and again until all cells or jobs have ended")
    parser.add_argument("--max-bpw", type=float, help="show the best cell of at most so many bits per weight")
    parser.add_argument("--all", action="store_true", help="a line for each sweep of the store instead")
    parser.add_argument("--json", action="store_true", help="JSON on standard output, with every cell")


def run(arguments: argparse.Namespace) -> int:
    check_ranges(vars(arguments), RANGES)
    store = Store.reading(arguments.store)
    if arguments.all:
        return _all(store, arguments.json)
    look = SweepReader(store, sweep_file.find(store.root, arguments.sweep))
    if arguments.watch and not arguments.json:
        return 0 if watch(look, output_console(), arguments.max_bpw).ended else 1
    now = look()
    if arguments.json:
        print_json(as_json(now, arguments.max_bpw))
    else:
        console = output_console()
        show(now, console, arguments.max_bpw)
        tracker = sweep_file.read(store.root, now.sweep).sweep.settings.get("tracker", {})
        if page := address(store.root / "wandb", tracker):
            line(console, f"W&B: {page} (group {now.sweep})")
    return 0


def watch(look: SweepReader, console: Console, max_bpw: float | None = None) -> Snapshot:
    """Show the table until all cells or all jobs have ended, and return the last snapshot.

    On a terminal the table is updated in place, never larger than the screen, with a plot of the frontier so far and the best
    cell within ``max_bpw``; elsewhere its headline is printed whenever it changes.
    """
    now = look()
    seen = _until_over(look, now)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for now in seen:
                live.update(table(now, console.width, console.height, max_bpw), refresh=True)
        return now
    counted = ""
    for now in seen:
        if counted != (counted := counts(now)):
            sys.stdout.write(f"{counted}\n")
            sys.stdout.flush()
    show(now, console, max_bpw)
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


def _all(store: Store, json_asked: bool) -> int:
    found = [SweepReader(store, sweep_id)() for sweep_id in sweep_file.listed(store.root)]
    if json_asked:
        print_json(
            [{key: value for key, value in as_json(now).items() if key not in ("list", "groups")} for now in found]
        )
        return 0
    states = states_of(*found)
    drawn = empty("sweep", "launched", "cells", *states, "command")
    for now in found:
        by_state = (f"{now.count(state):,}" for state in states)
        add_row(drawn, now.sweep, now.created[:16], f"{len(now.cells):,}", *by_state, now.command)
    console = output_console()
    console.print(drawn)
    for now in found:
        if now.refused:
            line(console, f"sweep {now.sweep} was refused: {why_refused(now)}")
    return 0
