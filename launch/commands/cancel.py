"""``python -m launch cancel``: stop the workers of a sweep on all machines, and cancel its SLURM jobs.

Workers poll ``sweeps/SWEEP/cancelled.json`` in the store, then finish and record the current cell. Workers on this
machine also get a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any

from launch import sweep_file
from launch.monitor.worker_states import State, states
from launch.slurm import jobs, scheduler
from mmq_sweeps.store.lock_owner import this_machine
from mmq_sweeps.store.store import Store

# Seconds between two reads of the request.
LOOK_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", help="the store's folder (runs)")
    parser.add_argument("--sweep", help="a sweep's id or the first letters of it; the latest if left out")


def run(arguments: argparse.Namespace) -> int:
    store = Store.open(arguments.store)
    started = sweep_file.read(store.root, sweep_file.find(store.root, arguments.sweep))
    running = [state for state in states(store, started.id) if state.running]
    request(store, started.id, started.created, [state.name for state in running])
    signalled = [state for state in running if _signal(state)]
    # Includes ended jobs, which `scheduler.cancel` skips.
    submitted = [job.id for job in jobs.submitted(store, started.id)]
    scheduler.cancel(submitted)
    told = [f"sweep {started.id}: asked {_count(len(running), 'worker')} to stop after the cell at hand"]
    if signalled:
        told.append(f"{len(signalled)} of them on this machine")
    if submitted:
        told.append(f"cancelled {_count(len(submitted), 'job')}: {' '.join(map(str, submitted))}")
    sys.stdout.write("; ".join(told) + "\n")
    return 0


class Watch:
    """A check whether the worker ``name``, or the sweep launched at ``created``, was cancelled; ``seen`` once True.

    Called between cells, possibly many times a second, so it reads the store only every ``LOOK_SECONDS``.
    """

    def __init__(self, store: Store, sweep_id: str, name: str, created: str) -> None:
        self._store, self._sweep_id, self._name, self._created = store, sweep_id, name, created
        self._next = 0.0
        self.seen = False

    def __call__(self) -> bool:
        if not self.seen and time.monotonic() >= self._next:
            asked = _read(self._store, self._sweep_id)
            self.seen = asked.get("created") == self._created or self._name in asked.get("workers", ())
            self._next = time.monotonic() + LOOK_SECONDS
        return self.seen


def request(store: Store, sweep_id: str, created: str, workers: list[str]) -> None:
    """Ask ``workers``, and all workers of the launch at ``created``, to stop.

    A later launch of the same cells has another ``created``, so the request need not be withdrawn.
    """
    before = _read(store, sweep_id).get("workers", [])
    store.note(_name(sweep_id), {"created": created, "workers": sorted({*before, *workers})})


def _name(sweep_id: str) -> str:
    return f"sweeps/{sweep_id}/cancelled.json"


def _read(store: Store, sweep_id: str) -> dict[str, Any]:
    try:
        asked: dict[str, Any] = json.loads((store.root / _name(sweep_id)).read_text())
    except (OSError, ValueError):
        # No request, or the file server does not answer, which the cells will notice.
        return {}
    return asked


def _signal(state: State) -> bool:
    """Signal a worker of this machine; workers in SLURM jobs are left to the scheduler."""
    if state.job is not None or state.owner.machine != this_machine() or state.owner.gone(this_machine()):
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(state.owner.pid, signal.SIGTERM)
        return True
    return False


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
