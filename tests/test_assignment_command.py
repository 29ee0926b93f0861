"""A finished cell's assignment, written by the command and measured again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from mmq_sweeps.assignment import main
from mmq_sweeps.store.store import Store
from tests.commands import run_forked

FEW = ("task.limit=2", "calibration.samples=2", "tracker=none")
ASSIGNED = {
    "method": "rtn",
    "parts": {"vision": {"bits": {"attention": 4, "mlp": 3}}, "language": {"bits": 4, "method": "gptq"}},
    "units": {"language.1.*": {"bits": 2, "group_size": 16}, "vision.0.mlp": 16},
}


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_forked("mmq_sweeps", overrides, folder, os.environ)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Measure a cell whose units differ in everything; return its store and its id."""
    folder = tmp_path_factory.mktemp("assigned")
    (folder / "given.json").write_text(json.dumps(ASSIGNED))
    done = run(folder, *FEW, "assignment=given.json", "--json")
    assert done.returncode == 0, done.stderr
    return folder, next(row["id"] for row in json.loads(done.stdout)["cells"] if row["bits"])


def test_a_written_assignment_is_the_same_cell(measured: tuple[Path, str]) -> None:
    folder, cell_id = measured
    for name in ("again.yaml", "again.json"):
        main([cell_id[:6], "--source", str(folder / "runs"), "--out", str(folder / name)])
    assert json.loads((folder / "again.json").read_text()) == yaml.safe_load((folder / "again.yaml").read_text())
    done = run(folder, *FEW, "assignment=again.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert cell_id in [row["id"] for row in json.loads(done.stdout)["cells"]]
    assert len(Store.existing(folder / "runs").cell_ids()) == 2  # With full precision; nothing was measured again.


def test_bad_input_is_told_on_one_line(measured: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, cell_id = measured
    source, out = ["--source", str(folder / "runs")], ["--out", str(folder / "x.yaml")]
    baseline = next(one for one in Store.existing(folder / "runs").cell_ids() if one != cell_id)
    for arguments, expected in (
        ([baseline, *source, *out], f"{baseline}: is at full precision"),
        (["zzzz", *source, *out], "Unknown cell 'zzzz'"),
        ([cell_id, *source, "--out", "x.txt"], "choose a name that ends in .yaml or .json"),
        ([cell_id, "--source", str(folder / "none"), *out], "none"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert expected in line
