"""The request to stop workers, ``sweeps/SWEEP/cancelled.json`` in the store; workers poll it between cells."""

from __future__ import annotations

import json
import time
from typing import Any

from mmq_sweeps.store.store import Store

# Seconds between two reads of the request.
LOOK_SECONDS = 1.0


class Watch:
    """A check whether the worker ``name``, or the sweep launched at ``created``, was cancelled; ``seen`` once True.

    Called between cells, possibly many times a second, so it reads the store only every ``LOOK_SECONDS``.
    """

    def __init__(self, store: Store, sweep_id: str, name: str, created: str) -> None:
        self._store, self._sweep_id, self._name, self._created = store, sweep_id, name, created
        self._next = 0.0
        self.seen = False

    def __call__(self) -> bool:
        if not self.seen and time.monotonic() >= self._next:
            asked = _read(self._store, self._sweep_id)
            self.seen = asked.get("created") == self._created or self._name in asked.get("workers", ())
            self._next = time.monotonic() + LOOK_SECONDS
        return self.seen


def request(store: Store, sweep_id: str, created: str, workers: list[str]) -> None:
    """Ask ``workers``, and all workers of the launch at ``created``, to stop.

    A later launch of the same cells has another ``created``, so the request need not be withdrawn.
    """
    before = _read(store, sweep_id).get("workers", [])
    store.note(_name(sweep_id), {"created": created, "workers": sorted({*before, *workers})})


def _name(sweep_id: str) -> str:
    return f"sweeps/{sweep_id}/cancelled.json"


def _read(store: Store, sweep_id: str) -> dict[str, Any]:
    try:
        asked: dict[str, Any] = json.loads((store.root / _name(sweep_id)).read_text())
    except (OSError, ValueError):
        # No request, or the file server does not answer, which the cells will notice.
        return {}
    return asked
