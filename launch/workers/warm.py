"""Keep worker processes from one sweep to the next, so that torch and the model are loaded once.

For sweeps that follow each other in a process, such as the batches of a search. Inside ``kept_warm`` a worker that has run
its cells waits for those of the next sweep (``warm_worker.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from signal import Signals
from typing import Any

# Seconds between two looks at a worker that is waited for, and those that an idle one has to end.
POLL_SECONDS, ENDING_SECONDS = 0.05, 10.0
# Tells apart workers that are not started alike.
STARTED_WITH = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


class WarmWorker:
    """A process that runs cells whenever it is given some, with the methods of ``subprocess.Popen`` that the pool uses.

    ``poll`` returns the status of the cells that it was given last, or of the process if that has ended.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = {name: environment.get(name) for name in STARTED_WITH}
        self.seconds = 0.0
        command = [sys.executable, "-m", "launch.workers.warm_worker", "--parent", str(os.getpid())]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._told = b""
        self._status: int | None = None

    @property
    def idle(self) -> bool:
        """True if it waits for cells."""
        return self._status is not None and self._process.poll() is None

    def begin(self, job: Mapping[str, Any]) -> None:
        """Give it cells to run; one that has died is noticed by ``poll``."""
        self._status = None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()

    def poll(self) -> int | None:
        if self._status is None:
            assert self._process.stdout is not None
            ended = self._process.poll()
            self._told += self._process.stdout.read() or b""
            if b"\n" in self._told:
                status, seconds = self._told.split()
                self._told, self._status, self.seconds = b"", int(status), float(seconds)
            elif ended is not None:
                self._status, self.seconds = ended, 0.0
        return self._status

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return status

    def send_signal(self, how: Signals) -> None:
        self._process.send_signal(how)

    def end(self) -> None:
        """End the process: at once if it works, else as soon as it notices that nothing more comes."""
        assert self._process.stdin is not None
        if not self.idle:
            self._process.send_signal(Signals.SIGKILL)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        until = time.monotonic() + ENDING_SECONDS
        while self._process.poll() is None:
            if time.monotonic() > until:
                self._process.send_signal(Signals.SIGKILL)
            time.sleep(POLL_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()


_workers: ContextVar[list[WarmWorker] | None] = ContextVar("workers", default=None)


@contextmanager
def kept_warm() -> Iterator[None]:
    """Keep the workers of pools in the context, and end them after it."""
    workers: list[WarmWorker] = []
    token = _workers.set(workers)
    try:
        yield
    finally:
        _workers.reset(token)
        for worker in workers:
            worker.end()


def kept() -> bool:
    """Return True inside ``kept_warm``."""
    return _workers.get() is not None


def begin(job: Mapping[str, Any], environment: Mapping[str, str]) -> WarmWorker:
    """Return a worker that runs ``job``: an idle one that was started alike, or a new one."""
    workers = _workers.get()
    if workers is None:
        raise RuntimeError("workers are kept inside kept_warm() only")
    own = {name: environment.get(name) for name in STARTED_WITH}
    worker = next((one for one in workers if one.idle and one.environment == own), None)
    if worker is None:
        worker = WarmWorker(environment, Path(job["log"]))
        workers.append(worker)
    worker.begin(job)
    return worker


def processor_seconds() -> float:
    """Return the processor time of kept workers that have not ended, as far as they have reported it."""
    return sum(worker.seconds for worker in _workers.get() or ())
