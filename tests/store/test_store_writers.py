"""Many processes write into the same store, and some are killed at random moments."""

from __future__ import annotations

import random
import time
from pathlib import Path

from mmq_sweeps.store.eviction import artifacts
from mmq_sweeps.store.store import Store
from tests.commands import PROGRAM, Forked
from tests.conftest import command_environment

# Each cell is "run" under its lock: two runs of a cell would leave two lines. ``begun`` is there while a cell is run.
RUNS_CELLS = """
import logging, os, sys
from pathlib import Path
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

root, cells = sys.argv[1], int(sys.argv[2])
logging.basicConfig(stream=sys.stdout)
store = Store.open(root)
for number in range(cells):
    cell = f"{number:012x}"
    with store.locks.pinned([("quantized", f"part{number // 10}")]):
        lock = store.locks.acquire("cells", cell, done=lambda: store.summary(cell) is not None)
        if lock is None:
            continue
        with lock:
            with open(Path(root) / "log" / f"{cell}.{os.getpid()}", "x"):
                pass
            if not store.artifacts.has("quantized", f"part{number // 10}"):
                store.artifacts.save("quantized", f"part{number // 10}", {}, {"part": number // 10})
            store.save(Record(id=cell, status="done", cell={"parts": {}}, names={}), [{"id": "x" * 500}])
print("all done")
"""


def start(root: Path, cells: int) -> Forked:
    return Forked(PROGRAM, [RUNS_CELLS, str(root), str(cells)], root, command_environment())


def test_no_cell_runs_twice_in_many_processes(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    processes = [start(tmp_path, 60) for _ in range(3)]
    for process in processes:
        out, errors = process.communicate(timeout=240)
        assert out == "all done\n", errors
    assert len(list((tmp_path / "log").iterdir())) == 60
    assert len(Store.open(tmp_path).records()) == 60


def test_killed_writers_lose_at_most_the_cell_they_were_in(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "log").mkdir()
    dice = random.Random(0)
    kills = 0
    processes = [start(tmp_path, 150) for _ in range(2)]
    for _ in range(4):
        began = len(list((tmp_path / "log").iterdir()))
        while len(list((tmp_path / "log").iterdir())) < began + 15 and processes[0].poll() is None:
            time.sleep(dice.random() * 0.01)
        kills += processes[0].poll() is None
        processes[0].kill()
        processes[0].communicate()
        processes = [processes[1], start(tmp_path, 150)]
    for process in processes:
        out, errors = process.communicate(timeout=240)
        assert out == "all done\n", errors
    assert kills
    store = Store.open(tmp_path)
    assert len(store.records()) == 150
    assert all(store.artifacts.read(one.kind, one.key) is not None for one in artifacts(tmp_path))
    assert len(artifacts(tmp_path)) == 15
    assert 150 <= len(list((tmp_path / "log").iterdir())) <= 150 + kills
    # Killed between its record and its lock's release, a process leaves a lock of a finished cell, which nobody waits for.
    left = [path.stem for path in (tmp_path / "locks" / "cells").glob("*.json")]
    assert len(left) <= kills
    for cell in left:
        assert store.record(cell) is not None
        lock = store.locks.lock("cells", cell)  # Its owner is dead.
        assert lock is not None
        lock.release()
    assert store.locks.pins() == set()
    assert not said
