"""Read the state files of a sweep's workers and detect workers that died."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from launch.workers.heartbeat import HEARTBEAT_SECONDS, State
from mmq_sweeps.store.lock_owner import Owner, this_machine
from mmq_sweeps.store.store import Store

# A worker on another machine without a heartbeat for this long is presumed dead. Its thread may starve on a busy
# machine, and NFS clients cache file attributes for up to a minute.
SILENT_SECONDS = 6 * HEARTBEAT_SECONDS + 60
RUNNING, DIED, SILENT = "running", "died", "silent"


def states(store: Store, sweep_id: str) -> list[State]:
    """Return all workers of a sweep, in the order of their start."""
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
        # Skip an unreadable state; a live worker rewrites it.
        return None


def _server_time(store: Store) -> float:
    """Return the time on the clock that stamps the store's files, which may differ from this machine's.

    Falls back to this machine's clock if the store is not writable.
    """
    probe = store.root / "tmp" / f"time.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    with suppress(OSError):
        probe.write_bytes(b"")
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)
    return time.time()
