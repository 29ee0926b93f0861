from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.__main__ import main
from tests.analysis.grids import stored
from tests.conftest import command_environment

CELLS = {
    "none": [({}, 16.0, 1.0)],
    "gptq": [({"vision": 3}, 10.0, 0.9), ({"language": 3}, 9.0, 0.8), ({"vision": 3, "language": 3}, 5.0, 0.5)],
    "rtn": [({"vision": 3}, 10.0, 0.7)],
}
VERBS = {
    "frontier": (["frontier"], "cells are on the frontier; hypervolume", "frontier"),
    "frontier by method": (["frontier", "--by-method", "--bpw", "exact"], "m, t, rtn", "frontier"),
    "sensitivity": (["sensitivity"], "damage of two parts together", "pairs"),
    "recommend": (["recommend", "--max-bpw", "9.5"], "best measured: gptq language 3: cider 0.8000", "best"),
}


@pytest.fixture
def store(tmp_path: Path) -> str:
    stored(tmp_path, CELLS)
    return str(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
    main()


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_speaks_to_people_and_to_programs(
    store: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, told, key = VERBS[name]
    run(monkeypatch, *arguments, "--source", store)
    assert told in capsys.readouterr().out
    run(monkeypatch, *arguments, "--source", store, "--json")
    assert all(key in family for family in json.loads(capsys.readouterr().out))


def test_an_audit_that_finds_nothing_says_so(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "audit", "--source", store)
    assert capsys.readouterr().out == "nothing found\n"
    run(monkeypatch, "audit", "--source", store, "--json")
    assert json.loads(capsys.readouterr().out) == []


def test_too_few_cells_for_importance_are_one_line(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, "importance", "--source", store)
    assert capsys.readouterr().err.startswith("error: no importance can be told: m, t, gptq: 4 cells are too few")


def test_without_the_extra_the_command_that_installs_it_is_named(store: str) -> None:
    program = "import sys; sys.modules['pandas'] = None; from analysis.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "frontier", "--source", store],
        capture_output=True, text=True, check=False, env=command_environment(),
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: this verb needs the analysis extra: pip install 'mmq-sweeps[analysis]'")


@pytest.mark.parametrize("budget", ["-1", "nan"])
def test_a_budget_of_a_transfer_that_no_cell_can_have_is_refused(
    budget: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["analysis", "transfer", f"--max-bpw={budget}"])
    with pytest.raises(SystemExit):
        main()
    assert f"--max-bpw {budget}: choose a number of bits above 0" in capsys.readouterr().err
