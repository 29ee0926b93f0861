"""The owner of a lock: a process on a machine, and a check that it is still alive."""

from __future__ import annotations

import json
import os
import socket
import uuid
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """Process that owns a lock or pin.

    ``machine`` is the scope in which ``pid`` is valid. A host name is not enough: hosts may share a name, and containers of
    one host have their own process ids. ``started`` guards against a reused ``pid``. ``token`` is unique per lock.
    ``since`` is only displayed: clocks of two machines are never compared.
    """

    host: str
    machine: str
    pid: int
    started: str
    token: str
    label: str
    since: str
    lease_seconds: float

    @staticmethod
    def here(label: str, lease_seconds: float, machine: str) -> Owner:
        """Create an owner for this process, with a new token."""
        pid = os.getpid()
        return Owner(
            socket.gethostname(), machine, pid, _started(pid) or "", uuid.uuid4().hex[:16], label,
            datetime.now(UTC).isoformat(timespec="seconds"), lease_seconds,
        )  # fmt: skip

    @staticmethod
    def from_json(content: bytes, changed: int) -> Owner:
        """Parse the owner from a lock file.

        An unreadable file gives a placeholder on no machine, so only its lease can expire; its token is made of
        ``changed``, the file's modification time in nanoseconds.
        """
        try:
            told = json.loads(content)
            return Owner(**{name.name: told[name.name] for name in fields(Owner)})
        except (ValueError, KeyError, TypeError):
            return Owner("?", "", 0, "", f"unreadable{changed:x}", "", "", 0.0)

    def to_json(self) -> bytes:
        """Serialize the owner as a line of JSON."""
        return (json.dumps(asdict(self)) + "\n").encode()

    def gone(self, machine: str) -> bool:
        """Return True if the process is known to have ended; False if alive, or on another machine than ``machine``."""
        if self.machine != machine:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        started = _started(self.pid)
        return started is not None and started != self.started


@cache
def this_machine() -> str:
    """Return an id that two processes share exactly if they see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """Return a process's start time in ticks since boot; "ended" for a zombie, None if unknown."""
    try:
        state, *fields_after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return "ended" if state in "ZX" else fields_after[18]
