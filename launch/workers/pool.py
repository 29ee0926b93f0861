"""A sweep in several processes of this machine: each is a worker (``worker.py``); one that dies is replaced.

Cores and GPUs are divided among them. What two of them could compute twice is decided by the store's locks, as between
machines, so this module only starts, watches and ends processes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from launch.sweep_file import SweepFile
from launch.workers import worker
from launch.workers.heartbeat import log_path, now, state_name
from mmq_sweeps.store.store import Store

POLL_SECONDS = 0.1
# A worker that dies again and again without ending a cell is replaced so often. More than the attempts that a cell has
# (`retries` in conf/config.yaml) and the work that it shares, one a part: a cell that kills its worker is recorded as
# failed before this is reached.
FRUITLESS_DEATHS = 10


@dataclass
class Slot:
    """One place in the pool: the cells it is to run, and the worker that runs them now."""

    index: int
    cells: list[str]
    help: list[str]
    process: subprocess.Popen[bytes] | None = None
    name: str = ""
    started: int = 0
    fruitless: int = 0


def run(
    store: Store,
    started: SweepFile,
    workers: int,
    say: Callable[[str], None],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run the groups of a sweep in at most ``workers`` processes; returns when all have ended.

    ``say`` is told of workers that died; ``look`` is called again and again meanwhile. On Ctrl-C the workers are asked to
    stop after the cell at hand, at a second one they are killed, and the ``KeyboardInterrupt`` is raised in the end.
    """
    slots = dealt(started.batches, workers)
    threads = max(1, _cores() // len(slots))
    pool = Pool(store, started, threads, shares(_gpus(), len(slots)), say)
    with pool.ended_with_this(slots):
        for slot in slots:
            pool.start(slot)
        while any(slot.process is not None for slot in slots):
            for slot in slots:
                pool.attend(slot)
            look()
            time.sleep(POLL_SECONDS)


def dealt(groups: Sequence[Sequence[str]], workers: int) -> list[Slot]:
    """The groups dealt out in runs of neighbours, which share work; each helps the others from their ends backwards."""
    count = min(workers, len(groups))
    bounds = [round(index * len(groups) / count) for index in range(count + 1)]
    own = [[cell for group in groups[low:high] for cell in group] for low, high in pairwise(bounds)]
    return [
        Slot(index, cells, [cell for other in (*own[index + 1 :], *own[:index]) for cell in reversed(other)])
        for index, cells in enumerate(own)
    ]


@dataclass(frozen=True)
class Pool:
    """How workers of one sweep are started and what becomes of them.

    ``threads`` are each worker's; ``gpus`` are what each sees as ``CUDA_VISIBLE_DEVICES``, none where there are no GPUs.
    """

    store: Store
    started: SweepFile
    threads: int
    gpus: list[str]
    say: Callable[[str], None]

    def start(self, slot: Slot) -> None:
        slot.started += 1
        # Another run of the same sweep on this store has workers of its own; its process may have had this id before.
        slot.name = f"{os.uname().nodename}-{os.getpid()}-{slot.index}.{slot.started}"
        command = [
            *(
                sys.executable,
                "-m",
                "launch.workers.worker",
                "--store",
                str(self.store.root),
                "--sweep",
                self.started.id,
            ),
            *("--name", slot.name, "--parent", str(os.getpid())),
        ]
        log = log_path(self.store, self.started.id, slot.name)
        self.store.files.make_folder(log.parent)
        with log.open("ab") as output:
            # What a library writes, or Python when it crashes, goes to the log as well. In a group of its own, Ctrl-C on
            # the terminal reaches this process only, which passes it on.
            slot.process = subprocess.Popen(
                command, env=self._environment(slot), stdin=subprocess.PIPE, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        assert slot.process.stdin is not None
        try:
            slot.process.stdin.write(json.dumps({"cells": slot.cells, "help": slot.help}).encode())
            slot.process.stdin.close()
        except BrokenPipeError:
            # It has died already, which is seen to when it is attended.
            return

    def attend(self, slot: Slot) -> None:
        """See what has become of a slot's process; one that died is replaced unless that is hopeless."""
        if slot.process is None or (status := slot.process.poll()) is None:
            return
        slot.process = None
        if status in worker.STATUS.values():
            return
        ended = self._bury(slot, status)
        how = _told(status)
        if status == worker.BAD_INPUT:
            self.say(f"worker {slot.name} could not run: {self._last_words(slot)}")
            return
        slot.fruitless = 0 if ended else slot.fruitless + 1
        if slot.fruitless >= FRUITLESS_DEATHS:
            deaths = f"{slot.fruitless} workers in its place ended no cell"
            self.say(f"worker {slot.name} died ({how}); {deaths}, so it is not replaced: {self._last_words(slot)}")
            return
        self.say(f"worker {slot.name} died ({how}); another takes its place")
        self.start(slot)

    @contextmanager
    def ended_with_this(self, slots: Sequence[Slot]) -> Iterator[None]:
        """Whatever happens inside, no worker outlives it; Ctrl-C gives them the time to end what they are at."""
        try:
            yield
        except KeyboardInterrupt:
            _signal(slots, signal.SIGTERM)
            self.say("stopping after the cells at hand; Ctrl-C again ends them at once")
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
            if slot.process is not None and slot.process.returncode not in worker.STATUS.values():
                self._bury(slot, slot.process.returncode)
            slot.process = None

    def _bury(self, slot: Slot, status: int) -> int:
        """Note in a dead worker's state that it is dead, and return how many cells it had ended."""
        path = self.store.root / state_name(self.started.id, slot.name)
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError):
            return 0  # It died before it had said anything.
        if told["state"] == "running":
            told |= {"state": "died", "reason": _told(status), "updated": now()}
            self.store.note(state_name(self.started.id, slot.name), told, durable=False)
        return int(told["done"] + told["failed"])

    def _environment(self, slot: Slot) -> dict[str, str]:
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", str(self.threads))
        # As in mmq_sweeps/__main__.py: threads that wait sleep.
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
    """The GPUs of each worker: all are dealt out, and where there are fewer than workers, several share one."""
    if not gpus:
        return []
    return [",".join(gpus[index::workers]) or gpus[index % len(gpus)] for index in range(workers)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA numbers or names them."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return [gpu for gpu in asked.split(",") if gpu]
    # Asked of the driver, since torch, which this process does not import, would take seconds to say the same.
    drivers = Path("/proc/driver/nvidia/gpus")
    return [str(index) for index in range(len(list(drivers.iterdir())))] if drivers.is_dir() else []
