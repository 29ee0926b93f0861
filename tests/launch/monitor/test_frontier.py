"""The results of a running sweep: its frontier, the best cell within a budget, and a single screen for both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console, Group

from launch import start
from launch.monitor import state_table
from launch.monitor.findings import Findings
from launch.monitor.frontier import Results, results
from launch.monitor.plot import plot
from launch.monitor.sweep_state import Snapshot, SweepReader
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.launch import cells as made
from tests.launch.stores import launched, worker

BEST = "★"


def record(cell: Cell, bpw: float, value: float, higher: bool = True, created: str = "2026-01-01") -> Record:
    metric = {"value": value, "interval": [value, value], "higher_is_better": higher}
    total = {"bpw_paper": bpw, "bpw_exact": bpw, "size_bytes": 1}
    return made.record(cell, metrics={"cider": metric}, size={"total": total}, created=created)


def measured(cells: list[Cell], **more: Any) -> list[tuple[str, Record]]:
    """Score cells the higher the more bits they have, with noise that lets some cells beat cells of more bits."""
    noise = np.random.default_rng(0).normal(0, 0.05, len(cells))
    found = []
    for cell, off in zip(cells, noise, strict=True):
        bits = [cell.parts[part]["bits"] if part in cell.parts else 16 for part in made.PARTS]
        bpw = float(np.mean(bits))
        found.append((cell.title(), record(cell, bpw, 1 - 1 / bpw + float(off) * bool(cell.parts), **more)))
    return found


def of(cells: list[Cell], **more: Any) -> Results:
    (found,) = results(measured(cells, **more))
    return found


@pytest.mark.parametrize("higher", [True, False])
def test_no_cell_of_the_frontier_is_beaten_and_every_other_one_is(higher: bool) -> None:
    found = of(made.grid(2, 3, 4, 16), higher=higher)
    frontier = found.frontier()
    sign = 1 if higher else -1

    def beats(one: Any, other: Any) -> bool:
        no_worse = one.bpw <= other.bpw and sign * one.value >= sign * other.value
        return no_worse and (one.bpw, one.value) != (other.bpw, other.value)

    for point in found.points:
        assert any(beats(one, point) for one in found.points) is (point not in frontier)


@pytest.mark.parametrize("budget", [2.5, 3.0, 5.0, None])
def test_the_best_within_a_budget_is_the_best_of_the_cells_within_it(budget: float | None) -> None:
    found = of(made.grid(2, 3, 4, 16))
    best = found.best(budget)
    assert best is not None
    assert best.value == max(point.value for point in found.points if budget is None or point.bpw <= budget)
    assert f"{best.title} ({best.cell})" in found.sentence(budget)
    assert found.best(1.0) is None
    assert "none within 1 bit per weight of 63 finished cells" in found.sentence(1.0)


def test_a_sweep_that_has_ended_has_its_best_not_one_so_far() -> None:
    found = of(made.grid(2, 3, 4, 16))
    assert "best within 3 bits per weight so far: " in found.sentence(3.0)
    assert "best within 3 bits per weight: " in found.sentence(3.0, ended=True)


@pytest.mark.parametrize("height", [6, 12, 40])
def test_the_bars_of_a_run_stand_below_its_plot_and_its_best_cell(
    height: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", str(height))
    cells = made.grid(2, 3, 4, 16)
    shown = Findings({cell.id: cell.title() for cell in cells}, 3.0)
    records = [record for _, record in measured(cells)]
    with Progress(len(cells), shown) as progress:
        assert progress.shows_bars
        shown.keep(*records[:1])
        first = shown(progress.console)
        assert shown(progress.console) is first  # Bars are redrawn ten times a second.
        shown.keep(*records[1:])
        lines = progress.console.render_lines(Group(*progress.bars.get_renderables()), pad=False)
    text = ["".join(segment.text for segment in line) for line in lines]
    assert len(lines) < height
    assert text[-1].startswith("cells ")
    assert any("best within 3 bits per weight so far: rtn" in line for line in text)
    assert (BEST in "".join(text)) is (height > 12)
    assert "best within" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["table", "json"])
def test_a_sweep_ends_with_its_best_cell_within_the_budget(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, cells = Store.open(tmp_path), made.grid(2, 3)
    records = [store.save(replace(one, seconds={"evaluate": 1.0})) for _, one in measured(cells)]
    start.show_records(records, store, made.sweep(cells, output=output, view={"max_bpw": 2.5}))
    told = capsys.readouterr().out
    best = of(cells).best(2.5)
    assert best is not None
    if output == "json":
        (found,) = json.loads(told)["results"]
        assert found["best"] == vars(best)
    else:
        assert f"one, captions: best within 2.5 bits per weight: {best.title} ({best.cell})" in told
    start.show_records(records, store, made.sweep(cells))
    assert "best within" not in capsys.readouterr().out


def test_models_and_tasks_are_apart_and_the_newest_comes_first() -> None:
    other = made.grid(2, 3, model="two")
    limited = [replace(cell, task={**cell.task, "limit": 8}) for cell in made.grid(2, 3)]
    found = results([*measured(made.grid(2, 3)), *measured(limited), *measured(other, created="2026-02-01")])
    assert found[0].title == "two, captions"
    assert sorted(one.title for one in found[1:]) == ["one, captions", "one, captions [task.limit=8]"]


def test_a_record_without_figures_is_left_out() -> None:
    cells = made.grid(2, 3)
    failed = made.record(cells[0], "failed", error={"class": "OSError"})
    unsized = made.record(cells[1])
    empty = record(cells[2], 3.0, float("nan"))
    assert results([("a", failed), ("b", unsized)]) == ()
    (found,) = results([("c", empty), *measured(cells[3:])])
    assert len(found.points) == len(cells) - 3


@pytest.mark.parametrize("width", [50, 80, 200])
def test_the_plot_has_the_room_that_it_is_given(width: int) -> None:
    found = of([*made.grid(2, 3, 4, 16), *made.grid(2, 3, method="gptq")])
    drawn = plot(found, width, 16, max_bpw=3.0)
    assert drawn is not None
    lines = drawn.plain.split("\n")
    assert len(lines) == 16
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("one, captions: CIDEr over bits per weight, 71")
    assert sum(line.count(BEST) for line in lines[:-1]) == 1
    assert {"o rtn", "x gptq"} <= {" ".join(lines[-1].split()[place : place + 2]) for place in range(6)}


def test_higher_in_the_plot_is_higher_and_further_right_has_more_bits() -> None:
    two = [("a", record(made.cell(2, 2, 2), 2.0, 0.1)), ("b", record(made.cell(8, 8, 8), 8.0, 0.9))]
    (found,) = results(two)
    drawn = plot(found, 80, 20)
    assert drawn is not None
    canvas = drawn.plain.split("\n")[1:-3]
    marks = [(row, line.index(sign)) for row, line in enumerate(canvas) for sign in "o★" if sign in line]
    (best, low) = marks
    assert best[0] < low[0]
    assert best[1] > low[1]
    # No room, or nothing to draw.
    assert plot(found, 30, 20) is None
    assert plot(found, 80, 8) is None
    assert plot(replace(found, points=found.points[:1]), 80, 20) is None


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Make a sweep of 343 cells in 49 groups with 20 workers, of which two thirds have ended."""
    store = Store.open(tmp_path_factory.mktemp("large") / "runs")
    cells = made.grid(2, 3, 4, 5, 6, 8, 16)
    sweep_id = launched(store, made.sweep(cells), groups=49)
    for _, one in measured(cells)[:60]:
        store.save(one)
    for number in range(20):
        worker(store, sweep_id, f"w{number}", cell=cells[-1 - number].id, title="rtn " * 40, done=4)
    return SweepReader(store, sweep_id)()


@pytest.mark.parametrize("height", [6, 10, 16, 24, 40, 100])
@pytest.mark.parametrize("width", [60, 120])
def test_a_large_sweep_is_one_screen(large: Snapshot, width: int, height: int) -> None:
    console = Console(width=width, height=height, force_terminal=True, color_system=None)
    shown = console.render_lines(state_table.table(large, width, height, 4.0), pad=False)
    text = "\n".join("".join(segment.text for segment in line) for line in shown)
    assert len(shown) < height
    assert f"sweep {large.sweep}: 343 cells" in text
    if height != 16:  # There the headline's length decides.
        assert (BEST in text) is (height > 16)
    assert ("more groups" in text) is (height >= 40)


def test_status_says_the_best_within_the_budget_and_stays_plain_in_a_file(
    large: Snapshot, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(width=200)
    state_table.show(large, console, 4.0)
    told = capsys.readouterr().out
    assert "one, captions: best within 4 bits per weight so far: rtn vision" in told
    assert BEST not in told
    assert "\x1b" not in told
    (found,) = state_table.as_json(large, 4.0)["results"]
    assert found["best"]["bpw"] <= 4.0
    assert json.loads(json.dumps(found)) == found
