"""Lease-based file locks and pins for processes that share a store, on any number of machines.

A lock is the file ``locks/KIND/NAME.json``; it names its owner. A pin is the file ``pins/TOKEN.json``; it names its owner
and the artifacts that a running job needs, which eviction must skip.

Heartbeat: while a process holds locks or pins, a daemon thread touches their files four times per lease.

A lock is stale if its owner is dead:

* its process has ended: processes on the same machine see this at once; or
* its heartbeat stopped: the file has not changed for a whole lease (the longer of the owner's and the waiting process's),
  measured on the waiting process's monotonic clock. Clocks of two machines are never compared.

Taking over a stale lock whose owner has token T:

1. Create ``NAME.T.claim``, exclusively. A process that fails to create it leaves the lock alone.
2. Read the lock again. If it no longer holds T, somebody else was faster: give up.
3. Replace the lock file, atomically.
4. Remove the claim.

A claim is a lock file itself: if its owner dies, the claim is taken over by the same four steps. That is the recursion
``_take`` -> ``_claimed`` -> ``_take``. Releasing a lock needs the claim as well, with removal as step 3. So a single waiting
process takes over, and an owner that was suspended longer than its lease cannot remove the lock of its successor.

Locks only save work. Correctness rests on files that appear whole: losing a lock means computing something twice.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmq_sweeps.store.atomic_files import Files, explained
from mmq_sweeps.store.lock_owner import Owner, this_machine

LEASE_SECONDS = 60.0
RENEWALS = 4  # per lease
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

Artifact = tuple[str, str]


class Lock:
    """Lock owned by this process. ``held`` becomes False after ``release``, or when another process took the lock over."""

    def __init__(self, path: Path, owner: Owner, locks: Locks) -> None:
        self.path, self.owner, self._locks = path, owner, locks
        self.held = True

    def release(self) -> None:
        """Remove the lock file, unless another process owns it by now."""
        self._locks.release(self)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class Seen:
    """State of another process's lock file, and the time it was first seen on this process's monotonic clock."""

    token: str
    changed: int
    since: float


class Locks:
    """Locks and pins of this process in one store, and the heartbeat thread that renews them."""

    def __init__(
        self, files: Files, lease_seconds: float = LEASE_SECONDS, label: str = "", machine: str | None = None
    ) -> None:
        self._files, self._lease, self._label = files, lease_seconds, label
        self._machine = machine or this_machine()
        self._held: list[Lock] = []
        self._seen: dict[Path, Seen] = {}
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def lock(self, kind: str, name: str) -> Lock | None:
        """Try to take a lock, without waiting; return None if another process holds it. A stale lock is taken over."""
        path = self._path(kind, name)
        with explained(path):
            self._files.make_folder(path.parent)
            owner = self._owner()
            if not self._take(path, owner.to_json()):
                return None
        return self._keep(Lock(path, owner, self))

    def acquire(
        self, kind: str, name: str, done: Callable[[], bool], waiting: Callable[[], None] | None = None
    ) -> Lock | None:
        """Block until the lock is acquired; return None if ``done()`` becomes true first.

        ``waiting()`` is called before every pause and may raise. Pauses grow from 0.05 to 2 seconds.
        """
        pause = FIRST_PAUSE
        while not done():
            lock = self.lock(kind, name)
            if lock is None:
                if waiting is not None:
                    waiting()
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST_PAUSE)
                continue
            if not done():
                return lock
            lock.release()
            break
        return None

    def holder(self, kind: str, name: str) -> Owner | None:
        """Return the owner of a lock; None if it is free or its process is known to have ended."""
        found = _read(self._path(kind, name))
        return None if found is None or found[0].gone(self._machine) else found[0]

    def holders(self, kind: str) -> dict[str, Owner]:
        """Map the name of each held lock of ``kind`` to its owner."""
        names = [path.stem for path in (self._files.root / "locks" / kind).glob("*.json")]
        return {name: owner for name in names if (owner := self.holder(kind, name)) is not None}

    @contextmanager
    def pinned(self, artifacts: Iterable[Artifact]) -> Iterator[None]:
        """Pin ``artifacts``, written or not, so that no process evicts them inside the context.

        Pin first, then check which exist. Pinning ``KEY`` also pins its pieces ``KEY-NUMBER``.
        """
        owner = self._owner()
        path = self._files.root / "pins" / f"{owner.token}.json"
        content = {**json.loads(owner.to_json()), "artifacts": sorted(set(artifacts))}
        with explained(path):
            self._files.make_folder(path.parent)
            self._files.write(path, json.dumps(content).encode(), durable=False)
        pin = self._keep(Lock(path, owner, self))
        try:
            yield
        finally:
            self._forget(pin)
            path.unlink(missing_ok=True)

    def pins(self) -> set[Artifact]:
        """Return the artifacts pinned by running jobs, and remove the pins of dead owners.

        An owner on another machine counts as alive until this process has watched its pin unchanged for a lease.
        """
        found: set[Artifact] = set()
        for path in (self._files.root / "pins").glob("*.json"):
            read = _read(path)
            if read is None:
                continue
            owner, changed, content = read
            if self._dead(path, owner, changed):
                if self._files.writable:
                    path.unlink(missing_ok=True)
                continue
            with suppress(ValueError, KeyError, TypeError):
                found |= {(kind, key) for kind, key in json.loads(content)["artifacts"]}
        return found

    def release(self, lock: Lock) -> None:
        """Remove the file of ``lock``, unless another process owns it by now."""
        self._forget(lock)
        if not lock.held:
            return
        lock.held = False
        with suppress(OSError), self._claimed(lock.path, lock.owner.token) as unchanged:
            if unchanged:
                lock.path.unlink()

    def _path(self, kind: str, name: str) -> Path:
        if os.sep in kind or os.sep in name:
            raise ValueError(f"lock {kind!r} {name!r}: a kind and a name are parts of a file name, without {os.sep}")
        return self._files.root / "locks" / kind / f"{name}.json"

    def _owner(self) -> Owner:
        return Owner.here(self._label, self._lease, self._machine)

    def _take(self, path: Path, content: bytes) -> bool:
        """Write ``content`` to ``path`` if the path is free or its owner is dead; return whether it was written."""
        if self._files.create(path, content):
            return True
        found = _read(path)
        if found is None:  # Released since the first try.
            return self._files.create(path, content)
        stale, changed, _ = found
        if not self._dead(path, stale, changed):
            return False
        with self._claimed(path, stale.token) as unchanged:
            if unchanged:
                self._files.write(path, content, durable=False)
                self._seen.pop(path, None)
        return unchanged

    @contextmanager
    def _claimed(self, path: Path, token: str) -> Iterator[bool]:
        """Hold the exclusive right to replace or remove ``path``; see "Taking over" in the module's docstring.

        Yields False if another process has that right, or if the file no longer holds ``token``.
        """
        claim = path.with_name(f"{path.stem}.{token}.claim")
        if not self._take(claim, self._owner().to_json()):
            yield False
            return
        try:
            found = _read(path)
            yield found is not None and found[0].token == token
        finally:
            claim.unlink(missing_ok=True)

    def _dead(self, path: Path, owner: Owner, changed: int) -> bool:
        if owner.gone(self._machine):
            return True
        now = time.monotonic()
        seen = self._seen.get(path)
        if seen is None or (seen.token, seen.changed) != (owner.token, changed):
            self._seen[path] = Seen(owner.token, changed, now)
            return False
        return now - seen.since > max(self._lease, owner.lease_seconds)

    def _keep(self, lock: Lock) -> Lock:
        with self._guard:
            if self._process != os.getpid():
                # Forked: these locks belong to the parent, and its heartbeat thread does not run here.
                self._held, self._process, self._thread = [], os.getpid(), None
            self._held.append(lock)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_while_held, name="renews locks", daemon=True)
                self._thread.start()
        return lock

    def _forget(self, lock: Lock) -> None:
        with self._guard:
            self._held = [one for one in self._held if one is not lock]

    def _renew_while_held(self) -> None:
        while True:
            time.sleep(self._lease / RENEWALS)
            with self._guard:
                held = list(self._held)
                if not held:
                    self._thread = None
                    return
            for lock in held:
                _renew(lock)
                if not lock.held:
                    self._forget(lock)


def _renew(lock: Lock) -> None:
    try:
        found = _read(lock.path)
        if found is None or found[0].token != lock.owner.token:
            lock.held = False
        else:
            os.utime(lock.path)
    except OSError:
        # The file server may be back at the next renewal.
        return


def _read(path: Path) -> tuple[Owner, int, bytes] | None:
    """Return a file's owner, modification time (ns, server's clock) and content; None if there is no file.

    Opens the file because that makes an NFS client ask the server; a bare ``stat`` may be a minute old.
    """
    try:
        with path.open("rb") as file:
            content, changed = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    return Owner.from_json(content, changed), changed, content
