"""``status`` on made-up stores: counts, failures by class, groups, pace, and no writes."""

from __future__ import annotations

import json
import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch import sweep_file
from launch.commands import status
from launch.monitor import state_table
from launch.monitor.sweep_state import Snapshot, SweepReader
from launch.monitor.worker_states import SILENT_SECONDS
from mmq_sweeps.store.lock_owner import Owner, this_machine
from mmq_sweeps.store.store import Store
from tests.launch import cells as made
from tests.launch.stores import launched, worker

CELLS = made.grid(2, 3, 4)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "runs")


def shown(now: Snapshot) -> str:
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        state_table.show(now, console)
    return captured.get()


def test_a_sweep_is_counted_by_state_by_class_and_by_group(store: Store) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    for cell in CELLS[:10]:
        store.save(made.record(cell))
    for cell, name in zip(CELLS[10:13], ("OutOfMemory", "RuntimeError", "OutOfMemory"), strict=True):
        store.save(made.record(cell, "failed", error={"class": name, "message": "no", "traceback": ""}))
    worker(store, sweep_id, "first", cell=CELLS[13].id, title=CELLS[13].title(), done=4, failed=1)
    now = SweepReader(store, sweep_id)()
    assert {state: now.count(state) for state in state_table.STATES} == {
        "queued": 13, "running": 1, "done": 10, "failed": 3,
    }  # fmt: skip
    assert now.failures == {"OutOfMemory": 2, "RuntimeError": 1}
    assert [group.label for group in now.groups] == [f"one captions rtn language {bits}" for bits in (2, 3, 4)]
    assert [group.count("done") for group in now.groups] == [9, 1, 0]
    # Five cells in ten seconds by the worker's own clock, fourteen to go.
    assert now.seconds_left == pytest.approx(28.0)
    text = shown(now)
    assert f"sweep {sweep_id}: 27 cells: 13 queued, 1 running, 10 done, 3 failed" in text
    assert "failed: 2 OutOfMemory, 1 RuntimeError" in text
    assert "ends in about 0:00:28" in text
    assert f"{CELLS[13].id} {CELLS[13].title()}" in text
    told = state_table.as_json(now)
    assert told["cells"] == {"total": 27, "queued": 13, "running": 1, "done": 10, "failed": 3}
    assert len(told["list"]) == 27
    assert json.loads(json.dumps(told)) == told


def test_a_sweep_that_was_refused_says_why_until_it_is_launched_again(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    store.save(made.record(CELLS[0]))
    sweep_file.refuse(store, sweep_id, ["bits=[red]1: choose 2 to 8", "another"])
    look = SweepReader(store, sweep_id)
    text = shown(look())
    assert "27 cells: 0 queued, 0 running, 1 done, 0 failed, 26 refused" in text
    assert "refused: bits=[red]1: choose 2 to 8 (and 1 more)\nended" in text
    told = state_table.as_json(look())
    assert told["cells"] == {"total": 27, "queued": 0, "running": 0, "done": 1, "failed": 0, "refused": 26}
    assert told["refused"] == ["bits=[red]1: choose 2 to 8", "another"]
    assert status.run(Namespace(store=str(store.root), all=True, json=False)) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"sweep {sweep_id} was"))
    assert line == f"sweep {sweep_id} was refused: bits=[red]1: choose 2 to 8 (and 1 more)"

    time.sleep(0.002)  # Launches are told apart by the millisecond.
    assert launched(store, made.sweep(CELLS)) == sweep_id
    assert (look().count("queued"), look().refused) == (26, ())


def test_a_record_that_is_to_be_replaced_is_queued_until_it_is(store: Store) -> None:
    failed = store.save(made.record(CELLS[0], "failed", error={"class": "OSError", "message": "", "traceback": ""}))
    sha = store.record_sha(failed.id)
    assert sha is not None
    look = SweepReader(store, launched(store, made.sweep(CELLS), redo={failed.id: sha}))
    assert look().count("failed") == 0
    store.save(replace(failed, created="later"))
    assert look().count("failed") == 1
    store.save(made.record(CELLS[0]))
    assert look().count("done") == 1


def test_a_worker_whose_process_is_gone_has_died_and_its_cell_is_queued(store: Store) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    gone = replace(Owner.here("gone", 10.0, this_machine()), started="another process")
    worker(store, sweep_id, "gone", gone, cell=CELLS[0].id, title="rtn")
    now = SweepReader(store, sweep_id)()
    assert now.workers[0].state == "died"
    assert now.count("running") == 0
    assert now.seconds_left is None
    retry = f"python -m launch retry --store {store.root} --sweep {sweep_id}"
    assert f"no worker runs; {retry} runs what is missing or failed" in shown(now)


def test_a_worker_elsewhere_is_judged_by_its_silence_on_the_clock_of_the_store(
    store: Store, age: Callable[[Path, float], None]
) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    elsewhere = replace(Owner.here("far", 10.0, "another machine"), host="node7")
    state = worker(store, sweep_id, "far", elsewhere, cell=CELLS[0].id, title="rtn", job="12_3", gpus="1")
    now = SweepReader(store, sweep_id)()
    assert now.workers[0].running
    assert now.count("running") == 1
    assert "node7 job 12_3 gpu 1" in shown(now)
    age(state, SILENT_SECONDS + 10)
    now = SweepReader(store, sweep_id)()
    assert now.workers[0].state == "silent"
    assert now.count("running") == 0


@pytest.fixture
def age() -> Callable[[Path, float], None]:
    """Make a file look as if it had last been written ``seconds`` ago."""

    def make(path: Path, seconds: float) -> None:
        before = path.stat()
        os.utime(path, (before.st_atime - seconds, before.st_mtime - seconds))

    return make


def test_a_cell_that_another_sweep_runs_is_running(store: Store) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    other = Store.open(store.root, label="other-sweep-worker")
    with other.locks.lock("cells", CELLS[5].id) as lock:  # type: ignore[union-attr]
        assert lock.held
        now = SweepReader(store, sweep_id)()
    assert now.count("running") == 1
    assert now.cells[5].where == "other-sweep-worker"


def test_the_estimate_is_of_the_workers_that_run(store: Store) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    worker(store, sweep_id, "ended", state="finished", done=20, seconds=1.0)
    worker(store, sweep_id, "slow", done=1, seconds=10.0)
    worker(store, sweep_id, "new", done=0, seconds=0.5)
    assert SweepReader(store, sweep_id)().seconds_left == pytest.approx(270.0)
    for cell in CELLS:
        store.save(made.record(cell))
    now = SweepReader(store, sweep_id)()
    assert now.ended
    assert now.seconds_left == 0.0


def test_a_state_that_is_not_readable_is_left_out(store: Store) -> None:
    sweep_id = launched(store, made.sweep(CELLS))
    worker(store, sweep_id, "whole")
    worker(store, sweep_id, "broken").write_text('{"name": "bro')
    assert [one.name for one in SweepReader(store, sweep_id)().workers] == ["whole"]


@pytest.mark.parametrize("budget", ["-1", "0", "nan", "inf"])
def test_a_budget_that_no_cell_can_have_is_refused(tmp_path: Path, budget: str) -> None:
    Store.open(tmp_path)
    given = ArgumentParser()
    status.add_arguments(given)
    with pytest.raises(ValueError, match=f"--max-bpw {budget}: choose a number of bits above 0"):
        status.run(given.parse_args(["--store", str(tmp_path), f"--max-bpw={budget}"]))
