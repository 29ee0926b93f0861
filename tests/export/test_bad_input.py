"""A bad export is refused on a line that names the value and the choices, with status 2, and writes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from mmq_sweeps.export import __main__ as command
from mmq_sweeps.export import choice
from mmq_sweeps.store.store import Store
from tests.commands import run_forked
from tests.export.cells import FEW, MIXED


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return run_forked("mmq_sweeps", [*FEW, *overrides, "--json"], folder, os.environ)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return a store with a full-precision, a quantized and a failed cell, and their ids."""
    folder = tmp_path_factory.mktemp("swept")
    done = run(folder, *MIXED)
    assert done.returncode == 0, done.stderr
    ids = {"quantized" if row["bits"] else "full": row["id"] for row in json.loads(done.stdout)["cells"]}
    store = Store.existing(folder / "runs")
    record = store.record(ids["quantized"])
    assert record is not None
    ids["failed"], ids["other"] = "f" * 12, "e" * 12
    store.save(replace(record, id=ids["failed"], status="failed", error={"class": "ValueError"}, items_sha256=None))
    store.save(replace(record, id=ids["other"], items_sha256=None))
    return folder, ids


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the message of the command for bad ``arguments``."""
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{failed}"], "{failed}: failed (ValueError); choose a finished cell"),
        (["{full}"], "{full}: is at full precision"),
        (["{other}"], "{other}: no sweep of the store"),
        (["zzz"], "Unknown cell 'zzz'"),
        ([], "CELL: give a cell's id, or --best"),
        (["{quantized}", "--best"], "CELL: give a cell's id, or --best"),
        (["{quantized}", "--max-bpw", "4"], "--max-bpw: belongs to --best"),
        (["--best"], "--best: give one of --max-bpw and --min-quality"),
        (["--best", "--max-bpw", "1"], "--best: "),
        (["--best", "--min-quality", "1"], "what does is full precision ({full})"),
        (["{quantized}", "--format", "gguf"], "--format gguf: Choose compressed-tensors, dequantized, gptq or awq."),
        (["{quantized}", "--format", "gptq"], "use --format compressed-tensors"),
        (["{quantized}", "--format", "awq"], "--format awq"),
        (["{quantized}", "--dtype", "float8"], "--dtype float8: Choose float32, bfloat16 or float16."),
        (["{quantized}", "--dtype", "float16"], "measure the cell with model.dtype=float16"),
        (["{quantized}", "--dtype", "float16", "--evaluate"], "--evaluate: metrics are comparable"),
    ],
)  # fmt: skip
def test_bad_input_is_told_on_one_line(
    swept: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    folder, ids = swept
    given = [argument.format(**ids) for argument in arguments]
    line = told(capsys, *given, "--source", str(folder / "runs"), "--out", str(folder / "out"))
    assert expected.format(**ids) in line
    assert [path.name for path in folder.iterdir()] == ["runs"]


def test_a_folder_that_exists_is_not_touched(
    swept: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, ids = swept
    given = [ids["quantized"], "--source", str(folder / "runs"), "--out"]
    assert "exists; name a folder that does not" in told(capsys, *given, str(tmp_path))
    assert f"there is no folder {tmp_path / 'no'}" in told(capsys, *given, str(tmp_path / "no" / "out"))
    assert "none" in told(capsys, ids["quantized"], "--source", str(tmp_path / "none"), "--out", str(tmp_path / "out"))


def test_a_cell_of_another_version_is_refused(
    swept: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder, ids = swept
    shutil.copytree(folder / "runs", tmp_path / "runs")
    store = Store.existing(tmp_path / "runs")
    record = store.record(ids["quantized"])
    assert record is not None
    store.save(replace(record, cell={**record.cell, "semantics": 1}))
    line = told(capsys, ids["quantized"], "--source", str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    assert "measure it again with this version" in line


@pytest.mark.parametrize("version", ["0.17.1", None])
def test_a_reader_that_is_absent_or_old_is_named(
    swept: tuple[Path, dict[str, str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    version: str | None,
) -> None:
    def found(_: str) -> str:
        if version is None:
            raise choice.PackageNotFoundError
        return version

    monkeypatch.setattr(choice, "version", found)
    folder, ids = swept
    line = told(capsys, ids["quantized"], "--source", str(folder / "runs"), "--out", str(folder / "out"))
    assert f"needs compressed-tensors 0.18 or later, and here it is {version or 'absent'}" in line
    assert "pip install 'mmq-sweeps[export]'" in line


def test_the_best_cell_is_the_one_that_is_recommended(
    swept: tuple[Path, dict[str, str]],
) -> None:
    folder, ids = swept
    options = command._arguments().parse_args(
        ["--best", "--max-bpw", "8", "--source", str(folder / "runs"), "--out", "out"]
    )
    assert command._cell(options) in (ids["quantized"], ids["other"])  # They have the same figures.
