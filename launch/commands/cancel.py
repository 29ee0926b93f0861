"""``python -m launch cancel``: stop the workers of a sweep on all machines, and cancel its SLURM jobs.

Workers poll ``sweeps/SWEEP/cancelled.json`` in the store, then finish and record the current cell. Workers on this
machine also get a signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from contextlib import suppress

from launch import sweep_file
from launch.commands import add_sweep
from launch.monitor.worker_states import states
from launch.slurm import jobs, scheduler
from launch.workers.cancel_request import request
from launch.workers.heartbeat import State
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.store.lock_owner import this_machine
from mmq_sweeps.store.store import Store

add_arguments = add_sweep


def run(arguments: argparse.Namespace) -> int:
    store = Store.existing(arguments.store)
    started = sweep_file.read(store.root, sweep_file.find(store.root, arguments.sweep))
    running = [state for state in states(store, started.id) if state.running]
    request(store, started.id, started.created, [state.name for state in running])
    signalled = [state for state in running if _signal(state)]
    cancelled = scheduler.cancel(job.id for job in jobs.submitted(store, started.id))
    asked = f"asked {counted(len(running), 'worker')} to stop after the cell at hand" if running else "no worker runs"
    told = [f"sweep {started.id}: {asked}"]
    if signalled:
        told.append(f"{len(signalled)} of them on this machine")
    if cancelled:
        told.append(f"cancelled {counted(len(cancelled), 'job')}: {' '.join(cancelled)}")
    sys.stdout.write("; ".join(told) + "\n")
    return 0


def _signal(state: State) -> bool:
    """Signal a worker of this machine; workers in SLURM jobs are left to the scheduler."""
    if state.job is not None or state.owner.machine != this_machine() or state.owner.gone(this_machine()):
        return False
    with suppress(ProcessLookupError, PermissionError):
        os.kill(state.owner.pid, signal.SIGTERM)
        return True
    return False
