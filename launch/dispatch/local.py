"""Default launcher: run the cells on this machine, in this process or in several ``workers``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from launch import sweep_file
from launch.monitor.findings import Findings, budget_of
from launch.monitor.live_table import Foreground
from launch.monitor.sweep_state import SweepReader
from launch.planning.plan import Plan, check_counts
from launch.workers import pool
from launch.workers.cancel_request import Watch
from launch.workers.heartbeat import Journal, Several
from launch.workers.imports import uncollected
from mmq_sweeps.reporting.compare import distinct_titles
from mmq_sweeps.reporting.progress import Progress, warnings_to
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store


def check(launcher: Mapping[str, Any]) -> None:
    """Raise a ``ConfigError`` listing invalid settings."""
    check_counts(launcher)


def dispatch(plan: Plan, store: Store, sweep_id: str, launcher: Mapping[str, Any]) -> bool:
    """Run the pending cells of ``plan``; always returns True, since all cells have ended or were cancelled by then."""
    started = sweep_file.read(store.root, sweep_id)
    workers = launcher.get("workers") or 1
    if workers > 1 and len(started.batches) > 1:
        with Foreground(SweepReader(store, sweep_id), budget_of(plan.sweep.settings)) as shown, warnings_to(shown.say):
            pool.run(store, started, workers, shown)
    else:
        _run_here(plan, store, sweep_id, started.created, fail_alone=not launcher.get("check", True))
    return True


def _run_here(plan: Plan, store: Store, sweep_id: str, created: str, fail_alone: bool) -> None:
    # Imported here because it loads torch, which a sweep that only shows its table does not need.
    with uncollected("mmq_sweeps.execution.executor"):
        from mmq_sweeps.execution.executor import execute

    name = f"{os.uname().nodename}-{os.getpid()}"
    watch = Watch(store, sweep_id, name, created)
    found = Findings(distinct_titles(plan.sweep.cells), budget_of(plan.sweep.settings))
    with (
        Progress(len(plan.sweep.cells), found) as progress,
        Journal(store, sweep_id, name, len(plan.pending)) as journal,
    ):
        progress.skip(plan.done)
        if progress.shows_bars:
            found.keep(*_there(plan, store))
        told = Several(progress, journal)

        def keep(record: Record) -> None:
            journal.keep(record)
            if progress.shows_bars:
                found.keep(record)

        # The same store; its locks name this process as its journal does.
        labelled = Store.of(plan.sweep.settings["store"], label=name)
        execute(
            plan.pending,
            plan.sweep,
            Claims(labelled, plan.redo),
            told,
            keep,
            stop=watch,
            fail_alone=fail_alone,
        )
        journal.end(*(("stopped", "cancelled") if watch.seen else ("finished", None)))


def _there(plan: Plan, store: Store) -> Iterator[Record]:
    """Yield the records of the cells that do not run again."""
    pending = {cell.id for cell in plan.pending}
    for cell in plan.sweep.cells:
        if cell.id not in pending and (record := store.summary(cell.id)) is not None:
            yield record
