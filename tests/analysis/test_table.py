from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.cells import Cells
from analysis.tables.flat import csv_text
from analysis.tables.latex import SIGNS, latex
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
    done = analysis("table", "--source", str(tmp_path))
    assert done.stderr == "failed: f gptq vision 3: RuntimeError: boom\n"
    assert done.stdout == "failed with RuntimeError: gptq vision 3\n"
    assert analysis("table", "--source", str(tmp_path), "--csv").stdout.splitlines()[1].startswith("f,failed,")


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
            "m, t, CIDEr; full precision 1.0000",
            "",
            "| method | parts | 2 | 4 |",
            "|---|---|---:|---:|",
            "| gptq | vision | 0.2500 | 0.7500 |",
            "| rtn | vision + language |  | 0.5000 |",
            "",
            "m, t; cells of several bit-widths",
            "",
            "| method | vision | language | CIDEr | bits per weight | MB |",
            "|---|---:|---:|---:|---:|---:|",
            "| none | 16 | 16 | 1.0000 | 16.00 | 1.60 |",
            "| awq | 4 | 3 | 0.6000 | 4.70 | 0.47 |",
            "",
            "- failed with RuntimeError: gptq vision 3",
        ]
    )


ODD = r"50% of_it #1 {a} & $b ~c^d \e <f> \"g\""


FOREIGN = "naïve `x` '' ,, -- Größe\n中 \u22121 ≤ 2 …"


def unescaped(text: str) -> str:
    """Read LaTeX back, as far as ``latex`` writes it."""
    for sign, written in SIGNS.items():
        text = text.replace(written, sign) if len(written) > 2 else text
    return re.sub(r"\\([&%$#_{}])", r"\1", text.replace("-{}-", "--").replace(",{},", ",,"))


def odd_tables() -> list[dict]:
    """Return a family of short tables whose names hold LaTeX's special characters, and a table longer than a page."""
    cells = [record(16.0, 1.0, "none", ODD), record(4.5, -0.75, "[gptq]", ODD, vision=4, connector=3, language=8)]
    cells += [record(4.0, 0.5, name, ODD, vision=4) for name in (ODD, FOREIGN, "auto_round", "*x")]
    many = [record(4.0, 0.5, f"a method with a rather long name {number}", vision=4) for number in range(50)]
    cells[0].metrics["cider"]["warnings"] = [f"100% of {FOREIGN} & {ODD}"]
    return table_of(*cells, failed(), *many)


def environments(told: str) -> Iterator[tuple[str, str]]:
    """Check that all environments and braces close, and yield the columns and the lines of every table."""
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", told):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    assert len(re.findall(r"(?<!\\)\{", told)) == len(re.findall(r"(?<!\\)\}", told))
    yield from re.findall(
        r"\\begin\{(?:tabular|longtable)\}\{([lr]+)\}\n(.*?)\\end\{(?:tabular|longtable)\}", told, re.S
    )


def test_latex_has_the_rules_of_booktabs_and_names_as_they_are() -> None:
    told = latex(table_of(record(16.0, 1.0, "none", ODD), record(4.5, 0.75, "[gptq]", ODD, vision=4), failed()))
    assert [told.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"{[gptq]} & vision & 0.7500 \\" in told.splitlines()
    caption = next(line for line in told.splitlines() if line.startswith(r"\caption"))
    assert not re.search(r"(?<!\\)[%#&$_~^<>|\"]", caption)
    assert f"m, {ODD}, CIDEr; full precision 1.0000" in unescaped(caption)


def test_latex_is_well_formed_whatever_the_names() -> None:
    found = list(environments(latex(odd_tables())))
    assert len(found) == 3
    for columns, lines in found:
        rows = [line for line in lines.splitlines() if re.search(r"(?<!\\)&", line)]
        assert rows
        for line in rows:
            assert line.endswith(r" \\")
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    told = latex(odd_tables())
    assert r"& $-$0.7500 &" in told
    assert "[U+4E2D]" in told
    assert f"{' '.join(FOREIGN.split())}" in unescaped(told).replace("[U+4E2D]", "中")


@pytest.mark.latex
def test_latex_compiles_within_the_width_of_the_text(tmp_path: Path) -> None:
    if not (program := shutil.which("pdflatex")):
        pytest.skip("pdflatex is not here: apt-get install --no-install-recommends texlive-latex-recommended")
    told = latex(odd_tables())
    packages = told.splitlines()[0].removeprefix("% ").replace(" ", "\n")
    document = f"\\documentclass{{article}}\n{packages}\n\\begin{{document}}\n{told}\n\\end{{document}}\n"
    (tmp_path / "tables.tex").write_text(document)
    # A long table finds the widths of its columns in the second run.
    for _ in range(2):
        command = [program, "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 0
    log = (tmp_path / "tables.log").read_text(errors="replace")
    assert "Overfull" not in log
    assert "Missing character" not in log


def test_a_long_latex_table_breaks_over_pages() -> None:
    cells = [record(4.0, 0.5, f"rtn{number}", vision=4) for number in range(50)]
    told = latex(table_of(*cells))
    assert told.count(r"\begin{longtable}{llr}") == told.count(r"\end{longtable}") == 1
    assert r"\begin{table}" not in told


def test_csv_has_every_cell_and_figure() -> None:
    told = csv_text(table_of(record(16.0, 1.0, "none"), record(2.5, 0.25, vision=2), failed()))
    full, quantized, broken = csv.DictReader(told.splitlines())
    assert (full["bits.vision"], full["metric.cider"], full["difference.cider"]) == ("16", "1.0", "")
    assert (quantized["bits.vision"], float(quantized["difference.cider"])) == ("2", pytest.approx(-0.75))
    assert float(quantized["difference_low.cider"]) <= -0.75 <= float(quantized["difference_high.cider"])
    assert (broken["status"], broken["bits.vision"], broken["error"]) == ("failed", "3", "RuntimeError")


@pytest.mark.parametrize(("settings", "families"), [(["f"], 1), (["f", "g"], 3)])
def test_what_was_quantized_elsewhere_joins_the_one_full_precision_beside_it(
    settings: list[str], families: int
) -> None:
    """The record does not say from which of several full-precision models the cell was made."""
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
