"""Locks and pins of a store that many processes of many machines share.

A lock is a file that names its owner, ``locks/KIND/NAME.json``; a pin, ``pins/TOKEN.json``, also the artifacts that a
running job needs. While a process holds any, a thread of it touches them four times a lease. An owner is dead once its
process has ended, as seen from the same machine, or once its file has not changed for a whole lease on the clock of the one
who waits: clocks of two machines are never compared. To take over or to release a lock with token T a process needs
the lock ``NAME.T``, so that of two who wait only one takes over, and an owner that comes back to life removes no other's.

Locks save work. That results are right rests on files which appear whole: a lock that is lost costs a computation twice.
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
from types import TracebackType

from mmq_sweeps.store.atomic_files import Files, explained
from mmq_sweeps.store.lock_owner import Owner, this_machine

LEASE_SECONDS = 60.0
RENEWALS = 4  # a lease
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

Artifact = tuple[str, str]


class Lock:
    """A lock that this process has. ``held`` turns False once another has taken it over, or after ``release``."""

    def __init__(self, path: Path, owner: Owner, locks: Locks) -> None:
        self.path, self.owner, self._locks = path, owner, locks
        self.held = True

    def release(self) -> None:
        self._locks.release(self)

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@dataclass(frozen=True)
class Seen:
    """A state of a file that someone else holds, and since when it is known, on this process's monotonic clock."""

    token: str
    changed: int
    since: float


class Locks:
    """All locks and pins that this process holds in one store, and the thread that keeps them alive."""

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
        """The lock, or None where another has it; a dead owner's is taken over."""
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
        """Wait for the lock, or None as soon as ``done()``; ``waiting()`` is called before every pause and may raise."""
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
        """Who has the lock; None where nobody has, or where its process is known to have ended."""
        found = _read(self._path(kind, name))
        return None if found is None or found[0].gone(self._machine) else found[0]

    def holders(self, kind: str) -> dict[str, Owner]:
        """Who has which lock of a kind, by name."""
        names = [path.stem for path in (self._files.root / "locks" / kind).glob("*.json")]
        return {name: owner for name in names if (owner := self.holder(kind, name)) is not None}

    @contextmanager
    def pinned(self, artifacts: Iterable[Artifact]) -> Iterator[None]:
        """Keep ``artifacts`` from being evicted, those as well that are yet to be written.

        A key stands for its pieces, ``KEY-NUMBER``, as well.
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
        """What running jobs need. A dead owner's pins are removed; a stranger's count until a lease of this process."""
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
        """Remove the file of a lock, if it is still this one's."""
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
        """Put ``content`` under ``path`` if nobody's file is there, or a dead owner's."""
        if self._files.create(path, content):
            return True
        found = _read(path)
        if found is None:  # Released in between; whoever is first now has it.
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
        """Whether the file under ``path`` has ``token``, and this process alone may replace or remove it."""
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
                # After a fork: what the parent holds is not this process's.
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
        # A server that does not answer now may answer in a quarter of a lease.
        return


def _read(path: Path) -> tuple[Owner, int, bytes] | None:
    """A file's owner, when it changed on the server's clock in ns, and its content; None where there is no file.

    Opened, since opening is what makes an NFS client ask the server; a bare ``stat`` may be a minute old.
    """
    try:
        with path.open("rb") as file:
            content, changed = file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    return Owner.from_json(content, changed), changed, content
