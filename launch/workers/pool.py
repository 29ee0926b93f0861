"""Run a sweep in several worker processes (``worker.py``) of this machine, replacing those that die.

Cores and GPUs are divided among the workers. The store's locks prevent duplicate work, as between machines, so this
module only starts, watches and stops processes.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from launch.sweep_file import SweepFile
from launch.workers import warm, worker
from launch.workers.heartbeat import log_path, now, state_name
from launch.workers.warm import WarmWorker
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
# Deaths of a slot's workers in a row, without an ended cell, after which they are not replaced. More than the attempts
# of a cell (`retries` in conf/config.yaml) plus those of the work it shares, one a part, so that a cell that kills its
# worker is recorded as failed first.
FRUITLESS_DEATHS = 10


@dataclass
class Slot:
    """A place in the pool: its assigned cells, the cells to ``help`` with afterwards, and its current worker."""

    index: int
    cells: list[str]
    help: list[str]
    process: subprocess.Popen[bytes] | WarmWorker | None = None
    name: str = ""
    started: int = 0
    fruitless: int = 0


def run(
    store: Store,
    started: SweepFile,
    workers: int,
    look: Callable[[], None] = lambda: None,
) -> str:
    """Run the groups of a sweep in at most ``workers`` processes; when all have ended, return how the last one died.

    The result is empty if none died. ``look`` is called at every poll. On Ctrl-C the workers stop after the current cell,
    on a second Ctrl-C they are killed; ``KeyboardInterrupt`` is raised in the end.
    """
    slots = dealt(started.batches, workers)
    threads = max(1, _cores() // len(slots))
    pool = Pool(store, started, threads, shares(_gpus(), len(slots)))
    with pool.ended_with_this(slots):
        for slot in slots:
            pool.start(slot)
        while any(slot.process is not None for slot in slots):
            for slot in slots:
                pool.attend(slot)
            look()
            time.sleep(POLL_SECONDS)
    return pool.deaths[-1] if pool.deaths else ""


def dealt(groups: Sequence[Sequence[str]], workers: int) -> list[Slot]:
    """Assign each slot a run of neighbouring groups, which share work.

    A slot then helps the others, from the ends of their lists backwards.
    """
    count = min(workers, len(groups))
    bounds = [round(index * len(groups) / count) for index in range(count + 1)]
    own = [[cell for group in groups[low:high] for cell in group] for low, high in pairwise(bounds)]
    return [
        Slot(index, cells, [cell for other in (*own[index + 1 :], *own[:index]) for cell in reversed(other)])
        for index, cells in enumerate(own)
    ]


@dataclass(frozen=True)
class Pool:
    """Settings and operations of the workers of a sweep.

    ``threads`` is the number of threads of each worker. ``gpus`` holds the ``CUDA_VISIBLE_DEVICES`` of each slot; empty
    without GPUs. ``deaths`` collects a sentence on each worker that died.
    """

    store: Store
    started: SweepFile
    threads: int
    gpus: list[str]
    deaths: list[str] = field(default_factory=list)

    def start(self, slot: Slot) -> None:
        slot.started += 1
        # Unique among concurrent runs of the same sweep on this store; process ids may be reused.
        slot.name = f"{os.uname().nodename}-{os.getpid()}-{slot.index}.{slot.started}"
        log = log_path(self.store, self.started.id, slot.name)
        self.store.files.make_folder(log.parent)
        environment = self._environment(slot)
        options = {"store": str(self.store.root), "sweep": self.started.id, "name": slot.name}
        cells = {"cells": slot.cells, "help": slot.help}
        if warm.kept():
            slot.process = warm.begin({**options, "log": str(log), **cells}, environment)
            return
        given = (f"--{name}={value}" for name, value in {**options, "parent": os.getpid()}.items())
        command = [sys.executable, "-m", "launch.workers.worker", *given]
        with log.open("ab") as output:
            # The log also receives output of libraries and crashes. A separate session, so that Ctrl-C on the terminal
            # reaches only this process, which forwards it.
            slot.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        assert slot.process.stdin is not None
        # If the worker has died already, `attend` handles it.
        with suppress(BrokenPipeError):
            slot.process.stdin.write(json.dumps(cells).encode())
            slot.process.stdin.close()

    def attend(self, slot: Slot) -> None:
        """Poll a slot's process; replace it if it died, unless ``FRUITLESS_DEATHS`` is reached."""
        if slot.process is None or (status := slot.process.poll()) is None:
            return
        slot.process = None
        if status in worker.STATUS.values():
            return
        ended = self._bury(slot, status)
        how = _told(status)
        if status == worker.BAD_INPUT:
            self._died(f"worker {slot.name} could not run: {self._last_words(slot)}")
            return
        slot.fruitless = 0 if ended else slot.fruitless + 1
        if slot.fruitless >= FRUITLESS_DEATHS:
            deaths = f"{slot.fruitless} workers in its place ended no cell"
            self._died(f"worker {slot.name} died ({how}); {deaths}, so it is not replaced: {self._last_words(slot)}")
            return
        self._died(f"worker {slot.name} died ({how}); another takes its place")
        self.start(slot)

    def _died(self, text: str) -> None:
        self.deaths.append(text)
        logger.warning("%s", text)

    @contextmanager
    def ended_with_this(self, slots: Sequence[Slot]) -> Iterator[None]:
        """Stop all workers on exit: on Ctrl-C they may end the current cell, on any other exit they are killed."""
        try:
            yield
        except KeyboardInterrupt:
            _signal(slots, signal.SIGTERM)
            logger.info("stopping after the cells at hand; Ctrl-C again ends them at once")
            self._wait(slots)
            raise
        finally:
            _signal(slots, signal.SIGKILL)
            self._wait(slots)

    def _wait(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            if slot.process is not None:
                slot.process.wait()
        for slot in slots:
            status = None if slot.process is None else slot.process.returncode
            if status is not None and status not in worker.STATUS.values():
                self._bury(slot, status)
            slot.process = None

    def _bury(self, slot: Slot, status: int) -> int:
        """Mark a dead worker's state as died, and return the number of cells that it ended."""
        path = self.store.root / state_name(self.started.id, slot.name)
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            return 0  # It died before it wrote a state.
        if told["state"] == "running":
            told |= {"state": "died", "reason": _told(status), "updated": now()}
            self.store.note(state_name(self.started.id, slot.name), told, durable=False)
        return int(told["done"] + told["failed"])

    def _environment(self, slot: Slot) -> dict[str, str]:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        # Let waiting threads sleep, as in mmq_sweeps/__main__.py.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot.index]
        return environment

    def _last_words(self, slot: Slot) -> str:
        path = log_path(self.store, self.started.id, slot.name)
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return f"{lines[-1]} (in {path})" if lines else f"see {path}"


def _signal(slots: Sequence[Slot], how: signal.Signals) -> None:
    for slot in slots:
        if slot.process is not None:
            slot.process.send_signal(how)


def _told(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def shares(gpus: Sequence[str], workers: int) -> list[str]:
    """Divide the GPUs among the workers: all are used, and workers share a GPU if there are fewer GPUs than workers."""
    if not gpus:
        return []
    return [",".join(gpus[index::workers]) or gpus[index % len(gpus)] for index in range(workers)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, by CUDA's numbers or names."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [gpu for gpu in asked.split(",") if gpu]
    # Ask the driver: importing torch for this would take seconds.
    drivers = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(drivers.iterdir())))] if drivers.is_dir() else []
