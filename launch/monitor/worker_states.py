"""The workers of a sweep as their files tell: what each is at, and whether it is still there."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launch.workers.heartbeat import HEARTBEAT_SECONDS
from mmq_sweeps.store.lock_owner import Owner, this_machine
from mmq_sweeps.store.store import Store

# A worker on another machine that has not been heard of for longer is taken for dead. Its thread may starve for a while on
# a machine whose cores are all busy, and attributes of files are cached by NFS clients for up to a minute.
SILENT_SECONDS = 6 * HEARTBEAT_SECONDS + 60
RUNNING, DIED, SILENT = "running", "died", "silent"


@dataclass(frozen=True)
class State:
    """A worker's own account of itself; ``state`` is what it comes to: one that runs may have ``died`` or be ``silent``."""

    name: str
    owner: Owner
    job: str | None
    gpus: str | None
    assigned: int
    state: str
    reason: str | None
    cell: str | None
    title: str | None
    stage: dict[str, Any] | None
    done: int
    failed: int
    started: str
    updated: str
    seconds: float

    @property
    def running(self) -> bool:
        return self.state == RUNNING


def states(store: Store, sweep_id: str) -> list[State]:
    """All workers of a sweep, in the order of their start."""
    folder = store.root / "sweeps" / sweep_id / "workers"
    paths = sorted(folder.glob("*.json"))
    now = cache(lambda: _server_time(store))
    found = [state for path in paths if (state := _read(path, now)) is not None]
    return sorted(found, key=lambda state: (state.started, state.name))


def _read(path: Path, now: Callable[[], float]) -> State | None:
    try:
        with path.open("rb") as file:
            told, changed = json.load(file), os.fstat(file.fileno()).st_mtime
        owner = Owner(**told.pop("owner"))
        if told["state"] == RUNNING and owner.machine == this_machine():
            if owner.gone(this_machine()):
                told |= {"state": DIED, "reason": "its process is gone"}
        elif told["state"] == RUNNING and (silent := now() - changed) > SILENT_SECONDS:
            told |= {"state": SILENT, "reason": f"not heard of for {silent:.0f} s"}
        return State(owner=owner, **told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        # Of no use to anybody; a worker that is alive writes it again.
        return None


def _server_time(store: Store) -> float:
    """The time of the clock that stamps the store's files, which need not be this machine's.

    Where nothing can be written, as for somebody who may only read, this machine's clock has to do.
    """
    with suppress(OSError), _probe(store) as probe:
        return probe.stat().st_mtime
    return time.time()


@contextmanager
def _probe(store: Store) -> Iterator[Path]:
    path = store.root / "tmp" / f"time.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    path.write_bytes(b"")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
