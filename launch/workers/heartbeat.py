"""Record a worker's state, read by ``status``, and its log, read by ``logs``.

sweeps/SWEEP/workers/NAME.json    process, host and current cell; rewritten on every change, and as a heartbeat
                                  at least every ``HEARTBEAT_SECONDS`` while the worker is alive
sweeps/SWEEP/logs/NAME.log        a line for each event: time, cell id (or -), text
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.lock_owner import Owner, this_machine
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

HEARTBEAT_SECONDS = 10.0
# Minimum seconds between two writes of the state.
REWRITE_SECONDS = 1.0
NO_CELL = "-"


def state_name(sweep_id: str, name: str) -> str:
    """Return the store-relative path of the state of worker ``name``."""
    return f"sweeps/{sweep_id}/workers/{name}.json"


def log_path(store: Store, sweep_id: str, name: str) -> Path:
    return store.root / "sweeps" / sweep_id / "logs" / f"{name}.log"


@dataclass(frozen=True)
class State:
    """State of a worker, as its file has it; ``gpus`` are those visible to its process, as set by its parent.

    As ``worker_states`` reads it, ``state`` is corrected: a ``running`` worker may turn out to be ``died`` or ``silent``.
    """

    name: str
    owner: Owner
    job: str | None
    gpus: str | None
    assigned: int
    state: str = "running"
    reason: str | None = None
    cell: str | None = None
    title: str | None = None
    stage: dict[str, Any] | None = None
    done: int = 0
    failed: int = 0
    started: str = ""
    updated: str = ""
    seconds: float = 0.0

    @property
    def running(self) -> bool:
        return self.state == "running"


class Journal:
    """A ``Reporter`` that writes a worker's state and log. Both are informative only: a failed write never fails a cell."""

    def __init__(self, store: Store, sweep_id: str, name: str, assigned: int, job: str | None = None) -> None:
        self._store, self._file = store, state_name(sweep_id, name)
        self._log = log_path(store, sweep_id, name)
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._changed, self._ended = threading.Event(), threading.Event()
        owner = Owner.here(name, HEARTBEAT_SECONDS, this_machine())
        self._state = State(name, owner, job, os.environ.get("CUDA_VISIBLE_DEVICES"), assigned, started=now())
        self._beat = threading.Thread(target=self._keep_written, name=f"journal of {name}", daemon=True)

    def __enter__(self) -> Self:
        self._line(NO_CELL, f"worker begins on {self._state.owner.host}, process {self._state.owner.pid}")
        self._write()
        self._beat.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        self._ended.set()
        self._changed.set()
        self._beat.join()
        if isinstance(error, KeyboardInterrupt):
            self.end("stopped", "interrupted")
        elif error is not None:
            self.end("died", f"{type(error).__name__}: {error}")
        self._write()

    def begin(self, title: str, cell: str = "") -> None:
        self._update(cell=cell or None, title=title, stage=None)
        self._line(cell or NO_CELL, f"begins: {title}")

    def stage(self, name: str, done: int, total: int) -> None:
        before = self._state.stage
        self._update(stage={"name": name, "done": done, "total": total})
        if before is None or before["name"] != name:
            self._line(self._state.cell or NO_CELL, f"stage: {name}")

    def finish(self, title: str, outcome: str, cell: str = "") -> None:
        self._update(cell=None, title=None, stage=None)
        self._line(cell or NO_CELL, f"ended: {title}: {outcome}")

    def say(self, text: str) -> None:
        self._line(self._state.cell or NO_CELL, text)

    def keep(self, record: Record) -> None:
        """Count a cell that has ended."""
        self._update(done=self._state.done + record.done, failed=self._state.failed + (not record.done))

    def end(self, state: str, reason: str | None) -> None:
        """Record the end of the worker: ``finished``, ``stopped`` or ``died``."""
        self._update(state=state, reason=reason, cell=None, title=None, stage=None)
        self._line(NO_CELL, f"worker {state}" + (f": {reason}" if reason else ""))

    def _update(self, **values: Any) -> None:
        with self._lock:
            self._state = replace(self._state, **values)
        self._changed.set()

    def _keep_written(self) -> None:
        """Write the state from a separate thread, so that cells never wait for a slow disk."""
        while not self._ended.is_set():
            self._changed.wait(HEARTBEAT_SECONDS)
            self._changed.clear()
            self._write()
            self._ended.wait(REWRITE_SECONDS)

    def _write(self) -> None:
        with self._lock:
            # Elapsed seconds by this process's clock, since the reader's machine may have another time.
            told = replace(self._state, updated=now(), seconds=round(time.monotonic() - self._begun, 3))
        try:
            self._store.note(self._file, asdict(told), durable=False)
        except OSError as error:
            self._line(NO_CELL, f"warning: the worker's state could not be written: {error.strerror}")

    def _line(self, cell: str, text: str) -> None:
        lines = "".join(f"{now()} {cell:12} {line}\n" for line in text.splitlines() or [""])
        try:
            self._store.files.make_folder(self._log.parent)
            # Opened and closed for each line: on a shared file system, other machines see it only after the close.
            with self._log.open("a", encoding="utf-8") as log:
                log.write(lines)
        except OSError:
            # The disk is full or gone; cells will report that error themselves.
            os.write(2, lines.encode(errors="replace"))


class Several:
    """A ``Reporter`` that forwards to several reporters."""

    def __init__(self, *reporters: Reporter) -> None:
        self._reporters = reporters

    def begin(self, title: str, cell: str = "") -> None:
        for one in self._reporters:
            one.begin(title, cell)

    def stage(self, name: str, done: int, total: int) -> None:
        for one in self._reporters:
            one.stage(name, done, total)

    def finish(self, title: str, outcome: str, cell: str = "") -> None:
        for one in self._reporters:
            one.finish(title, outcome, cell)

    def say(self, text: str) -> None:
        for one in self._reporters:
            one.say(text)


def now() -> str:
    """Return the current time as ``2026-01-31T12:00:00.123Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
