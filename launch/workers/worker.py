"""A worker: one process that runs some cells of a recorded sweep, and tells in the store what it is at.

Every way of running in more than one process comes here: the processes of ``hydra/launcher=local``, and SLURM's jobs. As
a process of its own it reads which cells from its standard input, as ``{"cells": [ID, ...], "help": [ID, ...]}``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch import sweep_file
from launch.commands import cancel
from launch.slurm.scheduler import JobId
from launch.workers.heartbeat import Journal
from launch.workers.stop import SIGNALS, Stop
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.store import Store

FINISHED, STOPPED = "finished", "stopped"
# Exit statuses. A process that dies by a signal has that signal's.
STATUS = {FINISHED: 0, STOPPED: 3}
BAD_INPUT = 2


def run(
    store_root: str | Path,
    sweep_id: str,
    cell_ids: Sequence[str],
    name: str,
    help: Sequence[str] = (),
    *,
    stop: Stop | None = None,
    needed: Callable[[], bool] = lambda: True,
) -> str:
    """Run the cells ``cell_ids``, then those of ``help`` that nobody else has begun; ``finished`` or ``stopped``.

    ``stopped`` means that some of ``cell_ids`` are still to be run: a signal came, the sweep was cancelled, or ``needed``
    said no. What went wrong before any cell could run is raised: a ``ConfigError`` or a ``StoreError``.
    """
    stop = stop or Stop()
    root = Path(store_root).absolute()
    started = sweep_file.read(root, sweep_id)
    settings = {**started.sweep.settings["store"], "dir": root}
    store = Store.of(settings, say=lambda text: journal.say(f"warning: {text}"), label=name)
    claims = Claims(store, started.redo)
    watch = cancel.Watch(store, sweep_id, name, started.created)

    def asked_to_stop() -> bool:
        if watch():
            stop.ask("cancelled")
        elif not needed():
            stop.ask("whoever started it is gone")
        return stop.reason is not None

    with Journal(store, sweep_id, name, len(cell_ids), job()) as journal, stop.on(*SIGNALS):
        # Imports torch, seconds after which there would have been nothing to see.
        from mmq_sweeps.execution.executor import execute

        by_id = {cell.id: cell for cell in started.sweep.cells}
        execute(
            [by_id[cell_id] for cell_id in cell_ids],
            started.sweep,
            claims,
            journal,
            journal.keep,
            stop=asked_to_stop,
            help=[by_id[cell_id] for cell_id in help],
            fail_alone=True,
        )
        outcome = STOPPED if any(claims.missing(by_id[cell_id]) for cell_id in cell_ids) else FINISHED
        journal.end(outcome, stop.reason)
    return outcome


def job() -> str | None:
    """The job of a scheduler that this process runs in, as its commands name it."""
    here = JobId.here()
    return None if here is None else str(here)


def main() -> None:
    """Run ``sys.argv``. Exit status: 0 finished, 3 stopped, 2 for what kept any cell from running."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.workers.worker", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--store", required=True, help="the store's folder")
    parser.add_argument("--sweep", required=True, help="the id of a recorded sweep")
    parser.add_argument("--name", required=True, help="names its state and its log; no other worker's of the sweep")
    parser.add_argument("--parent", type=int, help="the process that started it; stops when that one is gone")
    given = parser.parse_args()
    asked = json.load(sys.stdin)

    def needed() -> bool:
        return given.parent is None or os.getppid() == given.parent

    # Read when torch is imported, as in mmq_sweeps/__main__.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        outcome = run(given.store, given.sweep, asked["cells"], given.name, asked["help"], needed=needed)
    except (ConfigError, StoreError) as error:
        # In the journal already, which is where the one who started this process looks.
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(BAD_INPUT) from None
    raise SystemExit(STATUS[outcome])


if __name__ == "__main__":
    main()
