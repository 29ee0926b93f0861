"""``--loads-in``: the cells that a loader takes, in every view that shows or chooses cells."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.cells import Cells
from analysis.load import load
from analysis.report import content
from analysis.report.blocks import Drawn, Table
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record, saved

BOTH, TRANSFORMERS, NONE = ["transformers", "vllm"], ["transformers"], ["dequantized"]
CELLS = [
    (record("none", {}, 16.0, 1.0), BOTH),
    (record("gptq", {"vision": 4, "language": 4}, 8.0, 0.9), BOTH),
    (record("gptq", {"vision": 3, "language": 3}, 7.0, 0.8), TRANSFORMERS),
    (record("hqq", {"vision": 3, "language": 3}, 7.1, 0.85), NONE),
    (record("rtn", {"vision": 3, "language": 3}, 7.2, 0.95), None),
]
ALL_GPTQ = ["gptq vision 3 language 3", "gptq vision 4 language 4", "full precision"]


def save(folder: Path, cells: list[tuple[Record, list[str] | None]]) -> str:
    store = Store.open(folder)
    for one, loaders in cells:
        value = one.metrics["cider"]["value"]
        saved(store, replace(one, loads_in=loaders), [value - 0.1, value, value + 0.1])
    return str(folder)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return save(tmp_path, CELLS)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", *arguments])
    main()


@pytest.mark.parametrize(
    ("loader", "expected", "stays"),
    [
        ("transformers", ALL_GPTQ, 2),
        ("vllm", ALL_GPTQ[1:], 1),
        ("dequantized", ["hqq vision 3 language 3", ALL_GPTQ[-1]], 1),
    ],
)
def test_the_frontier_of_what_a_loader_takes(
    store: str,
    loader: str,
    expected: list[str],
    stays: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Full precision stays to compare with; a cell of an older version, which is on the frontier of all, is counted."""
    run(monkeypatch, "frontier", "--loads-in", loader, "--source", store, "--json")
    out = capsys.readouterr()
    (family,) = json.loads(out.out)
    assert [row["assignment"] for row in family["frontier"]] == expected
    assert family["full"] == pytest.approx(1.0)
    assert all(loader in row["loads_in"] for row in family["frontier"] if row["method"] != "none")
    assert out.err == (
        f"note: --loads-in {loader}: {stays} of 4 quantized cells; unknown for 1 (of an earlier version or other software), "
        "left out\n"
    )


def test_without_the_option_all_are_there_and_what_is_not_known_is_blank(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "frontier", "--source", store)
    out = capsys.readouterr()
    assert not out.err
    lines = {line.rstrip().rpartition("  ")[2].strip(): line for line in out.out.splitlines() if "%" in line}
    assert "  dequantized  " in lines["hqq vision 3 language 3"]
    assert "  transformers + vLLM  " in lines["full precision"]
    assert not {"transformers", "dequantized"} & set(lines["rtn vision 3 language 3"].split())


def test_the_recommended_cell_loads_there(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "recommend", "--max-bpw", "9", "--loads-in", "vllm", "--source", store)
    (best,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best measured")]
    assert best.startswith("best measured: gptq vision 4 language 4: cider 0.9000")
    assert best.endswith("8.000 bits per weight, loads in transformers + vLLM")
    run(monkeypatch, "recommend", "--max-bpw", "9", "--loads-in", "dequantized", "--source", store)
    assert "7.100 bits per weight, loads only dequantized\n" in capsys.readouterr().out


def test_the_table_of_what_a_loader_takes(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "table", "--loads-in", "transformers", "--source", store, "--json")
    out = capsys.readouterr()
    found: list[dict[str, Any]] = json.loads(out.out)
    assert [row["loads_in"] for row in found] == [BOTH, BOTH, TRANSFORMERS]
    assert "2 of 4 quantized cells; unknown for 1" in out.err
    run(monkeypatch, "table", "--source", store)
    out = capsys.readouterr()
    assert "loads in" in out.out
    assert "transformers + vLLM" in out.out


@pytest.mark.parametrize("verb", [["frontier"], ["recommend", "--max-bpw", "9"]])
@pytest.mark.parametrize(("loaders", "said"), [(TRANSFORMERS, True), (NONE, False), (None, False)])
def test_quantized_embeddings_are_said_to_be_dense(
    verb: list[str],
    loaders: list[str] | None,
    said: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = save(tmp_path, [CELLS[0], (record("rtn", {"vision": 4, "embeddings": 4}, 8.0, 0.9), loaders)])
    run(monkeypatch, *verb, "--source", source)
    assert ("loads in: an export stores quantized embeddings dense" in capsys.readouterr().out) == said


@pytest.mark.parametrize("verb", [["frontier"], ["table"], ["recommend", "--max-bpw", "9"], ["report"]])
def test_another_loader_is_an_error_that_names_the_choices(
    verb: list[str], store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *verb, "--loads-in", "llama.cpp", "--source", store)
    told = capsys.readouterr().err
    assert all(word in told for word in ("--loads-in", "llama.cpp", "transformers", "vllm", "dequantized"))


@pytest.mark.parametrize("verb", [["frontier"], ["table"]])
def test_a_loader_that_takes_no_cell_is_an_error_that_says_what_does(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save(tmp_path, [CELLS[0], *CELLS[2:]])
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *verb, "--loads-in", "vllm", "--source", source)
    assert capsys.readouterr().err == (
        "error: --loads-in vllm: fits none of 3 quantized cells (1 transformers, 1 dequantized); unknown for 1 (of an earlier "
        "version or other software), left out\n"
    )


def test_a_file_has_the_column(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "cells.csv"
    run(monkeypatch, "export", "--source", store, "--out", str(out))
    found = pd.read_csv(out).set_index("id")["loads_in"]
    assert found["gptq-vision4-language4"] == "transformers+vllm"
    assert found["hqq-vision3-language3"] == "dequantized"
    assert pd.isna(found["rtn-vision3-language3"])


def page_tables(cells: Cells) -> tuple[Mapping[str, Any], Table, dict[str, Any]]:
    """Return the table of all cells, the table of the first frontier, and the columns of the page."""
    page = content.page(cells, None, "python -m analysis report")
    blocks = [block for section in page.sections for block in section.blocks]
    every = next(block.content for block in blocks if isinstance(block, Drawn) and block.kind == "table")
    return every, next(block for block in blocks if isinstance(block, Table)), page.data["cells"]


def test_the_report_shows_and_filters_by_loader(store: str) -> None:
    every, frontier, columns = page_tables(load([store]))
    assert "loads in" in every["filters"]
    assert "loads in" in [column["from"] for column in every["columns"]]
    shown = dict(zip(columns["cell"], columns["loads in"], strict=True))
    assert shown["hqq vision 3 language 3"] == "dequantized"
    assert shown["rtn vision 3 language 3"] is None
    assert frontier.columns[-1].label == "loads in"
    assert frontier.rows[-1][-1] == "transformers + vLLM"


def test_the_report_of_what_a_loader_takes_says_what_it_leaves_out(store: str) -> None:
    cells = load([store]).loading_in("vllm")
    assert cells.notes[-1].startswith("--loads-in vllm: 1 of 4 quantized cells")
    assert len(page_tables(cells)[2]["id"]) == 2


def test_cells_of_an_older_version_alone_have_no_column(tmp_path: Path) -> None:
    source = save(tmp_path, [(one, None) for one, _ in CELLS])
    every, _, columns = page_tables(load([source]))
    assert "loads in" not in [column["from"] for column in every["columns"]]
    assert "loads in" not in columns
    with pytest.raises(ValueError, match="fits none of 4 quantized cells; unknown for 4"):
        load([source]).loading_in("transformers")
