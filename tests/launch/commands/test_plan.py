"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.planning.plan import make_plan
from launch.planning.plan_table import describe, duration, show_plan
from tests.conftest import SMALL
from tests.launch.cells import cell, grid, record, sweep

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_a_plan_is_told_before_during_and_after_its_sweep(command: Command, tmp_path: Path) -> None:
    arguments = ["method=rtn", "component=language", "bits=2,3", "task.limit=4", *SMALL[1:]]
    fresh = command("plan", *arguments, module="launch")
    assert fresh.returncode == 0, fresh.stderr
    assert "estimate: none, there are no earlier records" in fresh.stdout
    assert fresh.stdout.endswith(f"store: {tmp_path / 'runs'}\ndry run: nothing was run, submitted or written\n")
    assert not (tmp_path / "runs").exists()
    ran = command("-m", *arguments)
    assert ran.returncode == 0, ran.stderr
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    wider = [one.replace("bits=2,3", "bits=2,3,4") for one in arguments]
    told = command("plan", "-m", *wider, "--json", module="launch")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert (found["configurations"], found["cells"], found["done"], found["pending"]) == (3, 4, 3, 1)
    assert found["estimate"]["records"] == 3
    assert found["estimate"]["seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")} == before


def test_a_dry_run_finds_what_is_wrong(command: Command, tmp_path: Path) -> None:
    done = command("method=rtn", "method.group_size=7", "hydra.launcher.dry_run=true", *SMALL)
    assert done.returncode == 2
    assert "error: method.group_size: group_size=7 does not divide" in done.stderr
    assert not (tmp_path / "runs").exists()
    done = command("hydra.launcher.dry_rum=true")
    assert (
        "hydra.launcher.dry_rum: Unknown key 'dry_rum'. Did you mean dry_run? Choose check, dry_run or workers"
        in done.stderr
    )


def test_work_is_counted_once_where_it_is_shared(capsys: pytest.CaptureFixture[str]) -> None:
    cells = grid(2, 3, 16)
    done = {cells[0].id: record(cells[0]), cells[1].id: record(cells[1], "failed")}
    made = make_plan(sweep(cells), done.get, str, {"cells_per_job": 9}, asked=30)
    told = describe(made, None, Path("/a/store"))
    assert (told["configurations"], told["cells"], told["done"], told["pending"], told["again"]) == (30, 27, 1, 26, 1)
    naive = sum(len(one.parts) for one in made.pending)
    assert told["part_quantizations"] == {"needed": 6, "naive": naive}
    assert told["part_passes"]["vision"] == {"needed": 3, "naive": 26}
    assert told["part_passes"]["connector"] == {"needed": 9, "naive": 26}
    assert told["part_passes"]["language"] == {"needed": 26, "naive": 26}
    assert sum(told["cells_by_job"]) == 26
    show_plan(made, None, Path("/a/store"))
    shown = capsys.readouterr().out
    assert "to run          26  1 of them again" in shown
    assert "jobs: 3, of 8 to 9 cells" in shown


def test_a_finished_sweep_has_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    one = cell(2, 2, 2)
    show_plan(make_plan(sweep([one]), {one.id: record(one)}.get, str, {}), None, Path("/a/store"))
    shown = capsys.readouterr().out
    assert "jobs: none" in shown
    assert "estimate: nothing to do" in shown


@pytest.mark.parametrize(
    ("seconds", "told"), [(4, "4 s"), (59.6, "60 s"), (600, "10 min"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")]
)
def test_durations_are_readable(seconds: float, told: str) -> None:
    assert duration(seconds) == told


def test_the_plan_in_the_documents_is_what_is_printed(command: Command) -> None:
    document = (Path(__file__).resolve().parents[3] / "docs" / "sweeps.md").read_text()
    shown = re.search(r"<!-- plan -->\n    python -m launch (plan .*?)\n\n```text\n(.*?)```", document, re.DOTALL)
    assert shown is not None
    done = command(*shown[1].split(), "hydra.launcher.check=false", module="launch")
    assert done.returncode == 0, done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[:-2] == shown[2].splitlines()
