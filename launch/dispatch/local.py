"""Default launcher: run the cells on this machine, in this process or in several ``workers``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from launch import sweep_file
from launch.monitor.live_table import Foreground
from launch.monitor.sweep_state import SweepReader
from launch.planning.plan import Plan, check_counts
from launch.workers import pool
from launch.workers.cancel_request import Watch
from launch.workers.heartbeat import Journal, Several
from launch.workers.imports import uncollected
from mmq_sweeps.reporting.progress import Progress, warnings_to
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.store import Store


def check(launcher: Mapping[str, Any]) -> None:
    """Raise a ``ConfigError`` listing invalid settings."""
    check_counts(launcher)


def dispatch(plan: Plan, store: Store, sweep_id: str, launcher: Mapping[str, Any]) -> bool:
    """Run the pending cells of ``plan``; always returns True, since all cells have ended or were cancelled by then."""
    started = sweep_file.read(store.root, sweep_id)
    workers = launcher.get("workers") or 1
    if workers > 1 and len(started.batches) > 1:
        with Foreground(SweepReader(store, sweep_id)) as shown, warnings_to(shown.say):
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
    with (
        Progress(len(plan.sweep.cells)) as progress,
        Journal(store, sweep_id, name, len(plan.pending)) as journal,
    ):
        progress.skip(plan.done)
        told = Several(progress, journal)
        # The same store; its locks name this process as its journal does.
        labelled = Store.of(plan.sweep.settings["store"], label=name)
        execute(
            plan.pending,
            plan.sweep,
            Claims(labelled, plan.redo),
            told,
            journal.keep,
            stop=watch,
            fail_alone=fail_alone,
        )
        journal.end(*(("stopped", "cancelled") if watch.seen else ("finished", None)))
