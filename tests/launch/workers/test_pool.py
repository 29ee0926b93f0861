"""Sweeps in several real processes, held in the middle of a cell, killed, interrupted, side by side."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch import sweep_file as recorded
from launch.workers import pool
from launch.workers.pool import dealt, shares
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.store.store import Store
from tests.launch import cells as made
from tests.launch.processes import HELD, POOL, Process, Sweeps, alive, kill, wait_for
from tests.launch.stores import launched
from tests.own_method import write_method

# Four cells and full precision: two workers hold a cell each, so two more are left. A single part takes the least time.
GRID = ("method=rtn", "component=language", "bits=2,3,4")


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        ([], 2, []),
        (["0"], 1, ["0"]),
        (["0", "1"], 1, ["0,1"]),
        (["0", "1"], 2, ["0", "1"]),
        (["3", "GPU-4", "5"], 2, ["3,5", "GPU-4"]),
        (["0", "1"], 5, ["0", "1", "0", "1", "0"]),
    ],
)
def test_gpus_are_divided_among_workers(gpus: list[str], workers: int, expected: list[str]) -> None:
    assert shares(gpus, workers) == expected


def test_cells_are_dealt_out_once_and_each_worker_helps_with_all_others() -> None:
    groups = [["a", "b"], ["c"], ["d", "e"], ["f"], ["g"]]
    slots = dealt(groups, 2)
    assert [slot.cells for slot in slots] == [["a", "b", "c"], ["d", "e", "f", "g"]]
    assert [slot.help for slot in slots] == [["g", "f", "e", "d"], ["c", "b", "a"]]
    assert len(dealt(groups, 9)) == 5
    for slot in dealt(groups, 3):
        assert sorted(slot.cells + slot.help) == list("abcdefg")


def told_by_a_pool(folder: Path, tracker: str) -> list[str]:
    """Return the warnings of a pool of one worker for a sweep whose cells have no model that could be loaded."""
    store = Store.open(folder / "runs")
    settings = {"dir": str(store.root), "max_gb": None, "lease_seconds": 60.0}
    sweep = made.sweep(made.grid(2), store=settings, tracker={"_target_": tracker})
    told: list[str] = []
    with warnings_to(told.append):
        last = pool.run(store, recorded.read(store.root, launched(store, sweep, groups=1)), 1)
    told = [text.removeprefix("warning: ") for text in told]
    assert last == (told[-1] if told else "")
    return told


@dataclass(frozen=True)
class Dying:
    """A tracker that ends its worker before the first cell."""

    samples: int = 0

    def start(self, *_: object) -> None:
        raise RuntimeError("no more")


@pytest.mark.usefixtures("forked_children")
def test_workers_that_die_again_and_again_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FRUITLESS_DEATHS", 2)
    told = told_by_a_pool(tmp_path, "tests.launch.workers.test_pool.Dying")
    assert len(told) == 2, told
    assert "died (exit status 1); another takes its place" in told[0]
    assert "died (exit status 1); 2 workers in its place ended no cell, so it is not replaced: " in told[1]
    assert str(tmp_path / "runs" / "sweeps") in told[1]


@pytest.mark.usefixtures("forked_children")
def test_a_worker_that_cannot_run_says_why_and_is_not_replaced(tmp_path: Path) -> None:
    (told,) = told_by_a_pool(tmp_path, "no.such.Tracker")
    assert " could not run: error: tracker._target_=no.such.Tracker: " in told


def ended(process: Process) -> tuple[int, str, str]:
    out, told = process.communicate(timeout=240)
    return process.returncode, out, told


def metrics(store: Path) -> dict[str, dict]:
    """Return each cell's metrics, which must not depend on how the cell was run."""
    return {record.id: record.metrics for record in Store.reading(store).records()}


def test_two_workers_do_what_one_process_does(sweeps: Sweeps) -> None:
    axes = ("method=rtn,gptq", "bits=2,8")
    # Sums depend on the number of threads in their last digits, and methods amplify that.
    one_thread = {"OMP_NUM_THREADS": "1"}
    sweeps.hold()
    # If this process has a single thread, so has every process that is forked from it.
    start = sweeps.start if os.environ.get("OMP_NUM_THREADS") == "1" else sweeps.start_anew
    command = start(*axes, HELD, *POOL, CUDA_VISIBLE_DEVICES="0,1", **one_thread)
    assert len(set(sweeps.held(2))) == 2
    seen = sweeps.status()
    assert [worker["state"] for worker in seen["workers"]] == ["running", "running"]
    assert sorted(worker["gpus"] for worker in seen["workers"]) == ["0", "1"]
    assert seen["cells"] == {"total": 5, "queued": 3, "running": 2, "done": 0, "failed": 0}
    sweeps.let_go()
    status, out, told = ended(command)
    assert status == 0, told
    assert "CIDEr" in out
    assert sorted(line.split(":")[0] for line in told.splitlines()) == [f"cell {index} of 5" for index in range(1, 6)]
    assert sweeps.begun() == Counter(dict.fromkeys(sweeps.records(), 1))

    seen = sweeps.status()
    assert seen["cells"] == {"total": 5, "queued": 0, "running": 0, "done": 5, "failed": 0}
    assert [worker["state"] for worker in seen["workers"]] == ["finished", "finished"]
    assert sum(worker["done"] for worker in seen["workers"]) == 5

    status, _, told = ended(start(*axes, HELD, "store.dir=alone", **one_thread))
    assert status == 0, told
    assert metrics(sweeps.folder / "alone") == metrics(sweeps.store)


def test_a_worker_is_started_as_python_is(sweeps: Sweeps) -> None:
    """Workers of other tests are forked: full precision alone needs a single worker, so torch is imported once."""
    status, out, told = ended(sweeps.start_anew("method=none", *POOL))
    assert status == 0, told
    assert "CIDEr" in out
    assert [worker["state"] for worker in sweeps.status()["workers"]] == ["finished"]


def test_a_killed_worker_loses_only_its_cell_and_is_replaced(sweeps: Sweeps) -> None:
    sweeps.hold()
    command = sweeps.start(*GRID, HELD, *POOL)
    first = sweeps.held(2)
    kill(first[0])
    wait_for("the worker in its place", lambda: len(set(sweeps.held(2)) - {first[0]}) == 2, sweeps.started)
    sweeps.let_go()
    status, _, told = ended(command)
    assert status == 0, told
    assert "died (SIGKILL); another takes its place" in told
    assert len(sweeps.records()) == 4
    assert sorted(sweeps.begun().values()) == [1, 1, 1, 2]
    workers = sweeps.status()["workers"]
    assert Counter(worker["state"] for worker in workers) == {"finished": 2, "died": 1}
    (died,) = (worker for worker in workers if worker["state"] == "died")
    assert died["reason"] == "SIGKILL"
    assert died["owner"]["pid"] == first[0]


def killing_method(folder: Path) -> str:
    """Write a method outside the package that kills its process at three bits."""
    return write_method(folder, "deadly", "os.kill(os.getpid(), signal.SIGKILL)")


def test_a_cell_that_kills_its_workers_is_recorded_and_the_others_run(sweeps: Sweeps) -> None:
    path = killing_method(sweeps.folder)
    # A single part, since each part that is quantized for all cells at once costs a worker more.
    grid = ("method=deadly", "component=language", "bits=2,3", "retries=1", path)
    command = sweeps.start(*grid, *POOL, PYTHONPATH=str(sweeps.folder))
    status, _, told = ended(command)
    assert status == 1, told
    assert "1 of 3 cells failed" in told
    records = Store.reading(sweeps.store).records()
    assert Counter(record.status for record in records) == {"done": 2, "failed": 1}
    failed = next(record for record in records if not record.done)
    assert failed.error is not None
    assert failed.error["class"] == "WorkerDied"
    assert failed.cell["parts"]["language"]["bits"] == 3
    assert sweeps.status()["failures"] == {"WorkerDied": 1}


def test_ctrl_c_ends_the_cells_at_hand_and_says_how_to_go_on(sweeps: Sweeps) -> None:
    sweeps.hold()
    command = sweeps.start(*GRID, HELD, *POOL)
    workers = sweeps.held(2)
    command.send_signal(signal.SIGINT)
    stopping = "stopping after the cells at hand; Ctrl-C again ends them at once"
    wait_for(stopping, lambda: stopping in command.told(), sweeps.started)
    sweeps.let_go()
    status, _, told = ended(command)
    assert status == 130, told
    assert "finished cells are in the store" in told
    assert not any(alive(str(pid)) for pid in workers)
    kept = sweeps.records()
    assert len(kept) == 2
    assert {worker["state"] for worker in sweeps.status()["workers"]} == {"stopped"}

    status, _, told = ended(sweeps.start(*GRID, HELD, *POOL))
    assert status == 0, told
    assert kept.items() <= sweeps.records().items(), "a finished cell was run again"
    assert sweeps.begun() == Counter(dict.fromkeys(sweeps.records(), 1))


def test_a_second_ctrl_c_ends_them_at_once(sweeps: Sweeps) -> None:
    sweeps.hold()
    command = sweeps.start(*GRID, HELD, *POOL)
    workers = sweeps.held(2)
    command.send_signal(signal.SIGINT)
    wait_for("the pool to stop", lambda: "Ctrl-C again" in command.told(), sweeps.started)
    command.send_signal(signal.SIGINT)
    status, _, told = ended(command)
    assert status == 130, told
    assert not any(alive(str(pid)) for pid in workers)
    assert not sweeps.records()


def test_workers_do_not_outlive_a_command_that_is_killed(sweeps: Sweeps) -> None:
    sweeps.hold()
    command = sweeps.start(*GRID, HELD, *POOL)
    workers = sweeps.held(2)
    command.kill()
    ended(command)
    sweeps.let_go()
    wait_for("the workers to end", lambda: not any(alive(str(pid)) for pid in workers), [])
    assert len(sweeps.records()) == 2
    assert {worker["reason"] for worker in sweeps.status()["workers"]} == {"whoever started it is gone"}


def test_two_sweeps_on_one_store_run_no_cell_twice(sweeps: Sweeps) -> None:
    """The first runs in two processes, the second as if on another machine; they share most of their cells."""
    command = sweeps.start("method=gptq,rtn", "component=vision", "bits=3,4", *POOL)
    other = sweeps.start_elsewhere("method=gptq,rtn", "component=vision", "bits=4,3,8")
    for process in (command, other):
        status, out, told = ended(process)
        assert status == 0, told
        assert "warning" not in told
        assert "CIDEr" in out
    assert len(sweeps.records()) == 1 + 2 * 3
    assert sweeps.begun() == Counter(dict.fromkeys(sweeps.records(), 1))
    assert not (sweeps.store / "corrupt").exists(), "something was half-read"
    assert len(list(sweeps.store.glob("sweeps/*/sweep.json"))) == 2
    states = [json.loads(path.read_text()) for path in sweeps.store.glob("sweeps/*/workers/*.json")]
    assert len(states) == 3
    assert len({state["owner"]["machine"] for state in states}) == 2
