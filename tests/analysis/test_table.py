from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from analysis.cells import Cells
from analysis.tables.pivot import markdown
from mmq_sweeps.store.store import Store
from tests.commands import run_forked
from tests.conftest import command_environment
from tests.reporting.test_table import failed, items, record, table_of


def analysis(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run_forked("analysis", arguments, Path.cwd(), command_environment())


def test_the_command_reads_several_stores(tmp_path: Path) -> None:
    for folder, one in (("a", record(16.0, 1.0, "none")), ("b", record(4.0, 0.5, vision=4))):
        Store.open(tmp_path / folder).save(one, items(one))
    done = analysis("table", "--source", str(tmp_path / "a"), str(tmp_path / "b"), "--json")
    found = json.loads(done.stdout)
    assert [row["metrics"]["cider"].get("difference") for row in found] == [None, -0.5]
    assert "CIDEr" in analysis("table", "--source", str(tmp_path / "a")).stdout


def test_a_folder_that_is_no_store_is_an_error(tmp_path: Path) -> None:
    done = analysis("table", "--source", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: --source {tmp_path}: is no store (it has no folder 'cells'); run a sweep first\n"


def test_failures_are_told(tmp_path: Path) -> None:
    Store.open(tmp_path).save(failed())
    assert "RuntimeError: boom" in analysis("table", "--source", str(tmp_path)).stderr


def test_markdown_places_methods_and_parts_against_bits() -> None:
    told = markdown(
        table_of(
            record(16.0, 1.0, "none"),
            record(2.5, 0.25, vision=2),
            record(4.5, 0.75, vision=4),
            record(4.6, 0.5, "rtn", vision=4, language=4),
            record(4.7, 0.6, "awq", vision=4, language=3),
            failed(),
        )
    )
    assert told == "\n".join(
        [
            "m, t, cider; full precision 1.0000",
            "",
            "| method | parts | 2 | 4 |",
            "|---|---|---:|---:|",
            "| gptq | vision | 0.2500 | 0.7500 |",
            "| rtn | vision + language |  | 0.5000 |",
            "",
            "1 cells of mixed bit-widths are not shown.",
        ]
    )


@pytest.mark.parametrize(("settings", "families"), [(["f"], 1), (["f", "g"], 3)])
def test_what_was_quantized_elsewhere_joins_the_one_full_precision_beside_it(
    settings: list[str], families: int
) -> None:
    """Which of several it was made from is not known."""
    full = [("none", setting) for setting in settings]
    rows = [
        {
            "source": "store",
            "model": "m",
            "task": "t",
            "method": method,
            "setting": setting,
            "beside": "b",
            "status": "done",
        }
        for method, setting in [*full, ("quantized elsewhere", "e"), ("quantized elsewhere", "e")]
    ]
    found = Cells(pd.DataFrame(rows)).families()
    assert len(found) == families
    assert sorted(len(own.frame) for _, own in found) == ([3] if families == 1 else [1, 1, 2])
