"""Processes that share a store: no cell twice, no calibration twice, and a stop that leaves everything recorded."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.execution.executor import execute, quiet_libraries
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.quantization import calibration, quantize
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.commands import CONTEXT
from tests.conftest import SMALL

Composed = Callable[..., DictConfig]
TINY = (*SMALL, "task.limit=6", "calibration.samples=8")


def sweep_of(composed: Composed, store: Path, *bits: int, method: str = "rtn", part: str = "connector") -> Sweep:
    grid = [
        composed(*TINY, f"method={method}", f"component={part}", f"bits={width}", f"store.dir={store}")
        for width in bits
    ]
    return plan(grid)


def run(cells: Any, sweep: Sweep, store: Store, redo: Any = None, **more: Any) -> list[str]:
    ran: list[str] = []
    with Progress(len(sweep.cells)) as progress:
        execute(cells, sweep, Claims(store, redo or {}), progress, lambda record: ran.append(record.id), **more)
    return ran


def test_progress_tells_cells_that_differ_in_a_setting_apart(
    composed: Composed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = [
        composed(*TINY, "method=rtn", "component=connector", "bits=3", f"method.group_size={size}") for size in (16, 32)
    ]
    sweep = plan(grid)
    run(sweep.cells, sweep, Store.open(tmp_path))
    told = capsys.readouterr().err
    for size in (16, 32):
        assert f": rtn connector 3, method.group_size={size}: " in told


def test_what_is_recorded_is_left_and_what_is_to_be_replaced_is_run(composed: Composed, tmp_path: Path) -> None:
    sweep, store = sweep_of(composed, tmp_path, 2, 3), Store.open(tmp_path)
    ids = [cell.id for cell in sweep.cells]
    assert run(sweep.cells[:2], sweep, store) == ids[:2]
    assert run(sweep.cells, sweep, store) == ids[2:]
    redo = {ids[1]: store.record_sha(ids[1])}
    assert run(sweep.cells, sweep, store, redo=redo) == [ids[1]]
    # Its record is another now than the record that was to be replaced.
    assert run(sweep.cells, sweep, store, redo=redo) == []
    assert store.record(ids[1]).attempts == {"count": 1, "reasons": []}


def test_a_stop_comes_between_cells_and_leaves_what_was_done(composed: Composed, tmp_path: Path) -> None:
    sweep, store = sweep_of(composed, tmp_path, 2, 3), Store.open(tmp_path)
    ran: list[str] = []
    with Progress(3) as progress:
        execute(
            sweep.cells,
            sweep,
            Claims(store),
            progress,
            lambda record: ran.append(record.id),
            stop=lambda: len(ran) == 2,
        )
    assert ran == [cell.id for cell in sweep.cells[:2]]
    assert [store.record(one) is not None for one in ran] == [True, True]
    assert run(sweep.cells, sweep, store, stop=lambda: True) == []
    assert run(sweep.cells, sweep, store) == [sweep.cells[2].id]
    assert not list((tmp_path / "locks").rglob("*.json"))


@pytest.mark.parametrize("own", [1, 3])
def test_a_cell_that_another_is_at_is_put_off_and_waited_for(composed: Composed, tmp_path: Path, own: int) -> None:
    """Cells of this process's own and cells that it helps with are both put off."""
    sweep, store, other = sweep_of(composed, tmp_path, 2, 3), Store.open(tmp_path), Store.open(tmp_path)
    lock = other.locks.lock("cells", sweep.cells[1].id)
    ran: list[str] = []

    def keep(record: Record) -> None:
        ran.append(record.id)
        if len(ran) == 2:
            # The other process goes without having run the cell.
            threading.Timer(0.2, lock.release).start()

    with Progress(3) as progress:
        execute(sweep.cells[:own], sweep, Claims(store), progress, keep, help=sweep.cells)
    assert ran == [sweep.cells[place].id for place in (0, 2, 1)]


def run_every(step: int, sweep: dict[str, Any], root: Path, ran: Path) -> None:
    """Run every ``step``-th cell in a process of its own, and record which were run."""
    whole = Sweep.from_json(sweep)
    warned = BufferingHandler(1000)
    logging.getLogger("mmq_sweeps").addHandler(warned)
    ids = run(whole.cells[::step], whole, Store.open(root))
    ran.write_text(json.dumps({"ran": ids, "said": [one.getMessage() for one in warned.buffer]}))


def test_two_processes_on_one_store_run_no_cell_twice(composed: Composed, tmp_path: Path) -> None:
    sweep = sweep_of(composed, tmp_path / "store", 2, 3, 4, method="gptq")
    told = [tmp_path / "forwards.json", tmp_path / "backwards.json"]
    running = [
        CONTEXT.Process(target=run_every, args=(step, sweep.to_json(), tmp_path / "store", path))
        for step, path in zip((1, -1), told, strict=True)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(300)
    assert [process.exitcode for process in running] == [0, 0]
    found = [json.loads(path.read_text()) for path in told]
    assert Counter(cell for one in found for cell in one["ran"]) == Counter(cell.id for cell in sweep.cells)
    assert [one["said"] for one in found] == [[], []]


def test_whoever_quantizes_does_so_for_the_whole_sweep(composed: Composed, tmp_path: Path) -> None:
    sweep, store = sweep_of(composed, tmp_path, 2, 3, 4, method="gptq"), Store.open(tmp_path)
    run(sweep.cells[1:2], sweep, store)
    assert all(store.artifacts.has(ArtifactKind.QUANTIZED, request.key) for request in requests_of(sweep, store))


def requests_of(sweep: Sweep, store: Store) -> list[Request]:
    with quiet_libraries():
        session = Sessions(sweep, store).open(sweep.cells[0])
    return [request for cell in sweep.cells for request in session.requests(cell)]


def test_a_later_method_needs_no_pass_over_the_calibration_data(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path)
    first = sweep_of(composed, tmp_path, 3, method="gptq")
    run(first.cells, first, store)
    assert list((tmp_path / "artifacts" / ArtifactKind.STATISTICS).glob("*.json"))
    later = sweep_of(composed, tmp_path, 3, method="awq")
    alone = Store.open(tmp_path / "alone")
    run(later.cells, later, alone)

    def pass_over_data(*_: Any) -> None:
        raise AssertionError("calibration data were run")

    monkeypatch.setattr(quantize, "capture", pass_over_data)
    monkeypatch.setattr(calibration.BlockRunner, "advance", pass_over_data)
    cell: Cell = later.cells[-1]
    run(later.cells, later, store)
    assert store.record(cell.id).done
    assert store.record(cell.id).metrics == alone.record(cell.id).metrics
    assert store.items(cell.id) == alone.items(cell.id)


def test_shared_work_that_killed_its_process_is_left_to_the_cells(composed: Composed, tmp_path: Path) -> None:
    sweep, store = sweep_of(composed, tmp_path, 2, 3), Store.open(tmp_path)
    requests = requests_of(sweep, store)
    store.note(CrashCounter.of_work(store, f"{sweep.id}-{requests[0].calibration_pass}").name, {"unended": [{}]})
    asked = {request.key for request in requests}
    assert run(sweep.cells[1:2], sweep, store) == [sweep.cells[1].id]
    stored = {key for key in asked if store.artifacts.has(ArtifactKind.QUANTIZED, key)}
    # The units of its own cell, and not those of the other cell.
    assert 0 < len(stored) < len(asked)
