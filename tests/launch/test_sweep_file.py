"""Sweeps written to a store, found and read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import sweep_file
from launch.planning.plan import Plan, make_plan
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.store import Store
from tests.launch.cells import cell, grid, record, sweep

LAUNCHER = {"_target_": "hydra_plugins.launch.local.LocalLauncher", "workers": 2}


def planned(*levels: int) -> Plan:
    cells = grid(*levels)
    return make_plan(sweep(cells), {cells[0].id: record(cells[0], "failed")}.get, lambda _: "abc", LAUNCHER)


def test_a_sweep_is_read_as_it_was_written(tmp_path: Path) -> None:
    store, plan = Store.open(tmp_path / "with spaces, and ünïcode"), planned(2, 3)
    written = sweep_file.read(store.root, sweep_file.write(store, plan, "the command", LAUNCHER))
    assert written.id == plan.sweep.id
    assert written.sweep == plan.sweep
    assert written.batches == plan.batches
    assert written.redo == plan.redo == {grid(2)[0].id: "abc"}
    assert (written.command, written.launcher, written.directory) == ("the command", LAUNCHER, str(Path.cwd()))


def test_the_sweep_launched_last_is_the_first_of_the_list(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    assert sweep_file.listed(store.root) == []
    ids = [sweep_file.write(store, planned(*levels), f"sweep of {levels}", {}) for levels in ((2,), (2, 3))]
    for number, sweep_id in enumerate(ids):
        path = sweep_file.folder(store.root, sweep_id) / sweep_file.NAME
        path.write_text(json.dumps(json.loads(path.read_text()) | {"created": f"2026-01-0{number + 1}T00:00:00"}))
    assert sweep_file.listed(store.root) == ids[::-1]
    assert sweep_file.find(store.root) == ids[1]
    sweep_file.write(store, planned(2), "again", {})
    assert sweep_file.find(store.root) == ids[0]
    assert sweep_file.listed(store.root) == ids


def test_a_sweep_is_found_by_how_its_id_begins(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with pytest.raises(StoreError, match="holds no sweep"):
        sweep_file.find(store.root)
    ids = [sweep_file.write(store, planned(*levels), "", {}) for levels in ((2,), (2, 3))]
    assert [sweep_file.find(store.root, one[:6]) for one in ids] == ids
    with pytest.raises(StoreError, match=f"sweep zz: unknown. Choose of .*{ids[0]}"):
        sweep_file.find(store.root, "zz")
    with pytest.raises(StoreError, match="fits several"):
        sweep_file.find(store.root, "")


def test_a_sweep_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot read .*sweep\.json"):
        sweep_file.read(tmp_path, "absent")
    store = Store.open(tmp_path)
    path = sweep_file.folder(store.root, sweep_file.write(store, planned(2), "", {})) / sweep_file.NAME
    path.write_text("{")
    with pytest.raises(StoreError, match=r"cannot read .*sweep\.json"):
        sweep_file.listed(store.root)


def test_the_same_cells_are_the_same_sweep(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    made = [make_plan(sweep(cells), {}.get, str, {}) for cells in (grid(2, 3), grid(2, 3)[::-1])]
    assert len({sweep_file.write(store, plan, "", {}) for plan in made}) == 1
    assert cell(2, 2, 2) in made[0].pending
