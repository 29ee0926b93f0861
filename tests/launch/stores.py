"""Make sweeps in stores with workers and records, although nothing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch import sweep_file
from launch.planning.plan import Plan
from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.store.lock_owner import Owner, this_machine
from mmq_sweeps.store.store import Store


def launched(
    store: Store, sweep: Sweep, redo: dict[str, str] | None = None, groups: int = 3, launcher: str = "Local"
) -> str:
    """Write a sweep whose groups are ``groups`` equal runs of its cells, as a launch does; return its id."""
    ids = [cell.id for cell in sweep.cells]
    size = len(ids) // groups
    cut = tuple(tuple(ids[start : start + size]) for start in range(0, len(ids), size))
    plan = Plan(len(ids), sweep, sweep.cells, redo or {}, cut)
    return sweep_file.write(store, plan, "python -m mmq_sweeps -m bits=2,3,4", {"_target_": launcher})


def worker(store: Store, sweep_id: str, name: str, owner: Owner | None = None, **more: Any) -> Path:
    owner = owner or Owner.here(name, 10.0, this_machine())
    told = {
        "name": name, "owner": owner.__dict__, "job": None, "gpus": None, "assigned": 9, "state": "running",
        "reason": None, "cell": None, "title": None, "stage": None, "done": 0, "failed": 0,
        "started": "2026-01-31T12:00:00.000Z", "updated": "2026-01-31T12:00:09.000Z", "seconds": 10.0,
    }  # fmt: skip
    store.note(f"sweeps/{sweep_id}/workers/{name}.json", {**told, **more})
    return store.root / "sweeps" / sweep_id / "workers" / f"{name}.json"
