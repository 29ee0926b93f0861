"""Searches from the command line to their answers, and the message when a search cannot go on."""

from __future__ import annotations

import functools
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from launch import start
from launch.search import journal
from launch.search.cells import Subject
from launch.search.driver import Halted, Run, budgets_of
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.search.measuring import Items, Measurement
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.launch.processes import POOL, Sweeps
from tests.launch.search.asking import SEARCH, SHORT, found, question, run
from tests.own_method import write_method


def records(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/cells/*/record.json")}


def test_the_answers_are_ordinary_cells_within_their_budgets(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, told = searched
    store = Store.reading(folder / "runs")
    assert [answer["budget"] for answer in told["answers"]] == ["max_bpw=5", "max_bpw=7"]
    full = store.record(told["full_precision"])
    assert full is not None
    assert full.baseline
    for answer, budget in zip(told["answers"], (5, 7), strict=True):
        record = store.record(answer["cell"])
        assert record is not None
        assert record.size["total"]["bpw_exact"] == pytest.approx(answer["bpw"])
        assert answer["bpw"] <= budget
        assert answer["size_bytes"] == record.size["total"]["size_bytes"]
        assert record.metrics["cider"]["value"] == answer["value"]
        assert answer["value"] - full.metrics["cider"]["value"] == pytest.approx(answer["from_full"]["value"])
        assert record.cell["task"]["split"] == "evaluation"
        assert answer["uniform"]["bpw"] <= budget
        assert answer["export"] == f"python -m mmq_sweeps.export {answer['cell']} --source runs --out DIR"
    assert told["cost"]["cells"] == len(records(folder))
    assert told["cost"]["items"] < told["cost"]["grid"]["items"] == 27 * 24


def test_what_it_found_stands_in_the_store(searched: tuple[Path, dict[str, Any]]) -> None:
    folder, told = searched
    (path,) = folder.glob("runs/sweeps/*/search.json")
    content = json.loads(path.read_text())
    assert path.parent.name == told["search"]
    assert content["state"] == "done"
    assert content["answers"] == told["answers"]
    assert content["command"].startswith("python -m mmq_sweeps -m")
    assert {batch["stage"] for batch in content["batches"]} >= {"sensitivity", "final"}


def test_the_same_command_measures_nothing_again_without_its_units_and_prints_the_answer(
    searched: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, told = searched
    shutil.copytree(folder / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("artifacts"))
    before = records(folder)
    done = run(tmp_path, *SEARCH)
    assert done.returncode == 0, done.stderr
    assert records(tmp_path) == before
    (path,) = tmp_path.glob("runs/sweeps/*/search.json")
    assert json.loads(path.read_text())["answers"] == told["answers"]
    assert f"{told['cost']['cells']} cells" in done.stdout
    for answer in told["answers"]:
        assert f"{answer['value']:.4f}" in done.stdout
        assert answer["export"] in done.stdout
    assert "the grid: 27 cells, 648 items" in done.stdout
    # A line a batch, and no table of its cells.
    batches = [line for line in done.stderr.splitlines() if line.startswith(f"search {told['search']}: ")]
    assert len(batches) >= 3
    assert "full precision" not in done.stdout.split("*")[0]


@pytest.mark.parametrize(
    ("bits", "told"),
    [("3,3", r"leave one assignment, vision 3, connector 3, language 3"), ("16,16", r"every option is full precision")],
)
def test_nothing_to_choose_is_told(bits: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        budgets_of(Subject.of(question("method=rtn", f"bits={bits}")))


OPTIMISTIC = (*SHORT, "hydra.sweeper.split=evaluation")


@pytest.fixture(scope="module")
def optimistic(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run a short search on the same items that its answers are measured on; return its folder and its output."""
    folder = tmp_path_factory.mktemp("optimistic")
    return folder, found(folder, *OPTIMISTIC)


def test_a_race_on_the_evaluation_split_is_marked_in_record_and_table(optimistic: tuple[Path, dict[str, Any]]) -> None:
    folder, told = optimistic
    record = Store.reading(folder / "runs").record(told["answers"][0]["cell"])
    assert record is not None
    assert any("optimistic" in warning for warning in record.metrics["cider"]["warnings"])
    done = run(folder, *OPTIMISTIC)
    assert "! max_bpw=8: chosen on the split that it is measured on" in done.stdout


def test_two_workers_find_the_same_and_stay_from_batch_to_batch(
    optimistic: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, told = optimistic
    other = found(tmp_path, *OPTIMISTIC, *POOL)
    states = [json.loads(path.read_text()) for path in tmp_path.glob("runs/sweeps/*/workers/*-[01].1.json")]
    processes = {state["owner"]["pid"] for state in states}
    assert len({state["started"] for state in states}) > len(processes) == 2
    assert all(state["state"] == "finished" for state in states)
    assert not any(Path(f"/proc/{process}").exists() for process in processes)
    assert [answer["cell"] for answer in other["answers"]] == [answer["cell"] for answer in told["answers"]]
    assert other["search"] == told["search"]


def test_a_search_that_was_interrupted_goes_on(sweeps: Sweeps) -> None:
    held = (*SHORT, "hydra.sweeper.metric=tests.launch.holding:Hold", "task.metrics=['tests.launch.holding:Hold']")
    sweeps.hold()
    process = sweeps.start(*held)
    (worker,) = sweeps.held(1)
    assert worker == process.pid
    process.send_signal(signal.SIGINT)
    _, told = process.communicate()
    assert process.returncode == 130
    assert "run the same command again to go on" in told
    (path,) = sweeps.store.glob("sweeps/*/search.json")
    assert json.loads(path.read_text())["state"] == "halted"

    sweeps.let_go()
    done = sweeps.run(*held, "--json")
    assert done.returncode == 0, done.stderr
    assert f"search {path.parent.name}: was begun before; it goes on" in done.stderr
    assert json.loads(path.read_text())["state"] == "done"


def test_a_choice_that_fails_is_left_out_and_told(tmp_path: Path) -> None:
    where = write_method(tmp_path, "fails", "raise ValueError('not three')")
    done = run(
        tmp_path, "hydra/sweeper=budget", "hydra.sweeper.max_bpw=9", "hydra.sweeper.items=16", "method=rtn,fails", where,
        "bits=3,8", "component.vision.bits=8", "component.connector.bits=8", "--json",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "not three (traceback in" in done.stderr
    assert "2 cells failed and were left out of the search; the same command tries again" in done.stderr
    for answer in json.loads(done.stdout)["answers"]:
        assert "fails 3" not in answer["label"]


def test_a_quality_is_kept_by_the_smallest_that_does(tmp_path: Path) -> None:
    told = found(
        tmp_path, "hydra/sweeper=budget", "hydra.sweeper.min_quality=[0.5,0.95]", "hydra.sweeper.items=32",
        "method=rtn", "bits=3,8", "component.connector.bits=8",
    )  # fmt: skip
    low, high = told["answers"]
    assert [low["budget"], high["budget"]] == ["min_quality=0.5", "min_quality=0.95"]
    assert low["bpw"] <= high["bpw"] < 16
    for answer, share in ((low, 0.5), (high, 0.95)):
        assert answer["reached"] == (answer["predicted"] >= share)
        assert answer["kept"]["value"] == pytest.approx(
            1 + answer["from_full"]["value"] / (answer["value"] - answer["from_full"]["value"])
        )
    assert low["reached"]


def test_full_precision_without_a_score_is_told(tmp_path: Path) -> None:
    nothing = "'tests.launch.search.test_driver:Nothing'"
    done = run(tmp_path, *SHORT, f"task.metrics=[{nothing}]")
    assert done.returncode == 2
    assert "hydra.sweeper.metric=nothing: full precision has 0 on" in done.stderr


@pytest.mark.parametrize(
    ("outcome", "told", "status"),
    [
        ({"left": True, "missing": 2}, "the search waits for 2 cells; run the same command again to go on when", 0),
        ({"missing": 1}, "1 cell of the search did not run; run the same command again", 1),
        ({"missing": 1, "stopped": StoreError(28, "No space left")}, "stopped: No space left; run the same command", 1),
    ],
)
def test_what_a_launcher_leaves_undone_is_told(
    outcome: dict[str, Any], told: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = begun(tmp_path)
    monkeypatch.setattr(start, "measure", lambda sweep, *_: start.Outcome(sweep, going.store, {}, **outcome))
    with pytest.raises(Halted, match=told) as halted:
        going.measure([Measurement(None, Items(), "race")])
    assert halted.value.status == status


def test_a_batch_of_which_every_cell_failed_halts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going = begun(tmp_path)

    def fail(sweep: Any, *_: object) -> start.Outcome:
        return start.Outcome(sweep, going.store, {cell.id: failed(cell) for cell in sweep.cells})

    monkeypatch.setattr(start, "measure", fail)
    with pytest.raises(Halted, match="every cell of this batch failed; mend the cause and run the same command again"):
        going.measure([Measurement(None, Items(), "race")])


def test_a_file_of_a_search_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "sweeps" / "0123" / "search.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(StoreError, match=r"cannot read .*search\.json: .*; delete it, and the search makes it anew"):
        journal.read(tmp_path, "0123")


@functools.cache
def subject() -> Subject:
    return Subject.of(question("method=rtn", "bits=3,4", "task.limit=24"))


def begun(folder: Path) -> Run:
    return Run(subject(), start.HERE, "python -m mmq_sweeps", Store.open(folder / "runs"))


def failed(cell: Cell) -> Record:
    error = {"class": "ValueError", "message": "no", "traceback": ""}
    return Record(id=cell.id, status="failed", cell=cell.effective, names=cell.names, error=error)


class Nothing:
    """A metric that is zero for every prediction."""

    name = "nothing"
    needs = "captions"
    higher_is_better = True

    def prepare(self, references: Any) -> int:
        return len(references.tokens) if hasattr(references, "tokens") else 0

    def score(self, prepared: int, predictions: Any) -> Any:  # noqa: ARG002
        import numpy as np

        from mmq_sweeps.metrics.base import Scores

        return Scores.mean(np.zeros(len(predictions.tokens)))

    def aggregate(self, totals: Any, count: int) -> Any:
        return totals[:, 0] / count
