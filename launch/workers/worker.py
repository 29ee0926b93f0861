"""A worker process: runs some cells of a recorded sweep and reports its state in the store.

Used by all multi-process execution: the processes of ``hydra/launcher=local`` and SLURM jobs. As a separate process, it
reads its cells from standard input, as ``{"cells": [ID, ...], "help": [ID, ...]}``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launch import sweep_file
from launch.slurm.scheduler import JobId
from launch.workers.cancel_request import Watch
from launch.workers.heartbeat import Journal
from launch.workers.imports import uncollected
from launch.workers.stop import SIGNALS, Stop
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.store import Store

FINISHED, STOPPED = "finished", "stopped"
# Exit statuses; a process killed by a signal has that signal's.
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
    loaded: Callable[[], None] = lambda: None,
) -> str:
    """Run the cells ``cell_ids``, then unclaimed cells of ``help``; return ``finished`` or ``stopped``.

    ``loaded`` is called when torch is loaded, before the first cell.

    ``stopped`` means that some of ``cell_ids`` are left: a signal came, the sweep was cancelled, or ``needed`` returned
    False. Raises a ``ConfigError`` or a ``StoreError`` if no cell could run.
    """
    stop = stop or Stop()
    root = Path(store_root).absolute()
    started = sweep_file.read(root, sweep_id)
    settings = {**started.sweep.settings["store"], "dir": root}
    store = Store.of(settings, label=name)
    claims = Claims(store, started.redo)
    watch = Watch(store, sweep_id, name, started.created)

    def asked_to_stop() -> bool:
        if watch():
            stop.ask("cancelled")
        elif not needed():
            stop.ask("whoever started it is gone")
        return stop.reason is not None

    with (
        Journal(store, sweep_id, name, len(cell_ids), job()) as journal,
        warnings_to(journal.say),
        stop.on(*SIGNALS),
    ):
        # Imported after the journal starts, since loading torch takes seconds without any sign of life.
        with uncollected("mmq_sweeps.execution.executor"):
            from mmq_sweeps.execution.executor import execute

        loaded()
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


def status(*arguments: Any, **settings: Any) -> int:
    """Return the exit status of a ``run``; exit with ``BAD_INPUT`` if no cell could run."""
    try:
        return STATUS[run(*arguments, **settings)]
    except (ConfigError, StoreError) as error:
        # Already in the journal, which the parent process reads.
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(BAD_INPUT) from None


def job() -> str | None:
    """Return the id of the SLURM job that this process runs in, or None."""
    here = JobId.here()
    return None if here is None else str(here)


def main() -> None:
    """Run the worker given by ``sys.argv``. Exit status: 0 finished, 3 stopped, 2 if no cell could run."""
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

    # Must be set before torch is imported, as in mmq_sweeps/__main__.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    raise SystemExit(status(given.store, given.sweep, asked["cells"], given.name, asked["help"], needed=needed))


if __name__ == "__main__":
    main()
