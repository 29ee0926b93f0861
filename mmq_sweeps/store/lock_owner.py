"""Who holds a lock: a process of a machine, and whether it is still there."""

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
    """A process that holds something.

    ``machine`` says where ``pid`` has a meaning: a host's name is not enough, since hosts may share one and containers of
    one host have process ids of their own. ``started`` tells a process from a later one with its id. ``token`` is new
    with every lock. ``since`` is for people: clocks of two machines are never compared.
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
        """This process, with a new token."""
        pid = os.getpid()
        return Owner(
            socket.gethostname(), machine, pid, _started(pid) or "", uuid.uuid4().hex[:16], label,
            datetime.now(UTC).isoformat(timespec="seconds"), lease_seconds,
        )  # fmt: skip

    @staticmethod
    def from_json(content: bytes, changed: int) -> Owner:
        """The owner that a file tells of; one that cannot be read, last ``changed`` then, is a stranger with a token."""
        try:
            told = json.loads(content)
            return Owner(**{name.name: told[name.name] for name in fields(Owner)})
        except (ValueError, KeyError, TypeError):
            return Owner("?", "", 0, "", f"unreadable{changed:x}", "", "", 0.0)

    def to_json(self) -> bytes:
        return (json.dumps(asdict(self)) + "\n").encode()

    def gone(self, machine: str) -> bool:
        """Whether the process is known to have ended; False where that cannot be told from this ``machine``."""
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
    """What two processes have in common exactly if they see each other's process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; "ended" for one that waits to be reaped; None: unknown."""
    try:
        state, *fields_after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return "ended" if state in "ZX" else fields_after[18]
