"""Cells whose parts have several bit-widths or methods, and parts of a single tensor, in every verb of the analysis."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.audit.settings import effective
from analysis.cells.selections import assignment, whole
from analysis.figures.catalog import figures
from analysis.load import load
from analysis.measures.importance import fine_features, numbered
from analysis.measures.missing import again
from analysis.measures.sensitivity import sensitivities
from analysis.publish.dashboard import views
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.store.store import Store
from tests.analysis.pages import columns_of
from tests.commands import run_forked
from tests.configurations import composed
from tests.conftest import command_environment

SMALL = ["task.limit=12", "calibration.samples=4", "calibration.batch_size=4", "tracker=none"]
UNITS = "parts: {language: 4}\nunits: {language.0.mlp: 2}\n"
MIXED = "{front: 4, middle: 3, end: {attention: 4, mlp: 2}}"
SWEEPS = (
    ["component.language.bits={attention: 4, mlp: 2},{attention: 4, mlp: 3}," + MIXED],
    [
        "component.vision.method=rtn",
        "component.language.method=gptq",
        "component.language.method.damping=0.05",
        "method=gptq",
    ],
    [
        "component.embeddings.bits=8",
        "component.vision.bits=16",
        "component.connector.bits=16",
        "component.language.bits=16,3",
    ],
    ["assignment=UNITS"],
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measure a cell of every kind of assignment on the embedded model, and return their store."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "units.yaml").write_text(UNITS)
    for sweep in SWEEPS:
        chosen = [override.replace("UNITS", str(folder / "units.yaml")) for override in sweep]
        _run(folder, ["-m", *SMALL, *chosen])
    return folder / "runs"


def _run(folder: Path, arguments: list[str], module: str = "mmq_sweeps") -> str:
    done = run_forked(module, arguments, folder, command_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[str, str]:
    monkeypatch.setattr("sys.argv", ["analysis", *arguments])
    main()
    told = capsys.readouterr()
    return told.out, told.err


def by_label(store: Path) -> dict[str, pd.Series]:
    return {assignment(row): row for _, row in load([str(store)]).frame.iterrows()}


def one(rows: dict[str, pd.Series], sign: str) -> pd.Series:
    (found,) = [row for label, row in rows.items() if re.search(sign, label)]
    return found


def test_cells_are_named_by_their_whole_assignment(mixed: Path) -> None:
    labels = set(by_label(mixed))
    assert "rtn vision 4 connector 4 language attention 4, mlp 3" in labels
    assert "rtn vision 4 connector 4 language front+end attention 4, front mlp 4, middle 3, end mlp 2" in labels
    assert "rtn (vision), gptq (connector, language) vision 4 connector 4 language 4" in labels
    assert "rtn embeddings 8 language 3" in labels
    assert any(re.fullmatch(r"rtn language 2 to 4 by unit \([0-9a-f]{4}\)", label) for label in labels)
    assert len(labels) == len(load([str(mixed)]).frame)


def test_bits_of_a_mixed_part_are_the_mean_over_its_quantized_weights(mixed: Path) -> None:
    rows = by_label(mixed)
    for label, row in rows.items():
        size = Store.reading(mixed).summary(row["id"]).size["parts"]["language"]  # type: ignore[union-attr]
        paper = 16 - (16 - row["bits.language"]) * size["quantized_weights"] / size["parameters"]
        assert paper == pytest.approx(size["bpw_paper"], abs=1e-5), label
    # An OPT block has a third of its weights in attention.
    assert one(rows, "mlp 3")["bits.language"] == pytest.approx(3 + 1 / 3)
    assert 3 < one(rows, "by unit")["bits.language"] < 4


def test_mixed_cells_do_not_count_as_whole_parts(mixed: Path) -> None:
    cells = load([str(mixed)])
    kept = cells.frame[whole(cells.frame, cells.parts)]
    assert {assignment(row) for _, row in kept.iterrows()} == {
        "full precision",
        "rtn (vision), gptq (connector, language) vision 4 connector 4 language 4",
        "rtn embeddings 8",
        "rtn embeddings 8 language 3",
    }


def test_embeddings_are_a_part_where_a_cell_quantizes_them_only(mixed: Path, tmp_path: Path) -> None:
    cells = load([str(mixed)])
    assert cells.parts == ["vision", "connector", "embeddings", "language"]
    assert sorted(cells.frame["bits.embeddings"].unique()) == [8, 16]
    assert not [name for name in cells.frame if name.endswith(".head")]
    frame = cells.frame[cells.frame["bits.embeddings"] == 16]
    Store.open(tmp_path)
    for cell_id in frame["id"]:
        (tmp_path / "cells" / cell_id).symlink_to(mixed / "cells" / cell_id)
    assert load([str(tmp_path)]).parts == ["vision", "connector", "language"]


def test_sensitivity_takes_embeddings_and_says_what_it_leaves_out(mixed: Path) -> None:
    (told,) = sensitivities(load([str(mixed)]))
    assert [(row["part"], row["bits"]) for _, row in told.alone.iterrows()] == [("embeddings", 8)]
    assert "embeddings" in set(told.whole_alone["part"])
    notes = " ".join(told.notes)
    assert "4 of 8 cells give the units of a part several bit-widths" in notes
    assert "1 of 8 cells mixes methods" in notes


def test_fine_importance_knows_the_bits_of_every_slot(mixed: Path) -> None:
    cells = load([str(mixed)])
    by_unit = numbered(cells.frame, cells.parts)
    assert [assignment(row) for _, row in cells.frame[by_unit].iterrows()] == [
        label for label in by_label(mixed) if "by unit" in label
    ]
    rows = cells.frame[~by_unit]
    features = fine_features(rows)
    place = [assignment(row) for _, row in rows.iterrows()].index(
        "rtn vision 4 connector 4 language front+end attention 4, front mlp 4, middle 3, end mlp 2"
    )
    found = {name: features[name].iloc[place] for name in features if name.startswith("language")}
    assert found == {
        "language front attention": 4,
        "language front mlp": 4,
        "language middle attention": 3,
        "language middle mlp": 3,
        "language end attention": 4,
        "language end mlp": 2,
    }
    assert set(features["embeddings"]) == {8, 16}


def test_the_audit_tells_settings_apart(mixed: Path, capsys, monkeypatch) -> None:
    frame = load([str(mixed)]).frame
    settings = effective(frame).assign(label=[assignment(row) for _, row in frame.iterrows()]).set_index("label")
    assert settings.loc["rtn vision 4 connector 4 language attention 4, mlp 3", "language mlp"] == "3/3/3"
    assert settings.loc["rtn embeddings 8", "embeddings"] == "8"
    unit = settings[settings.index.str.contains("by unit")].iloc[0]
    assert unit["language attention"] == "4/4/4"
    assert re.fullmatch(r"[\d/]+ [0-9a-f]{8}", unit["language mlp"])
    assert not settings.duplicated().any()
    assert "do not tie" not in verb(capsys, monkeypatch, "audit", "--source", str(mixed))[0]


@pytest.mark.parametrize("sign", ["mlp 3$", "front\\+end attention", "embeddings 8 language"])
def test_the_command_of_a_cell_names_the_same_cell(mixed: Path, sign: str) -> None:
    row = one(by_label(mixed), sign)
    python, option, module, *overrides = shlex.split(again(row))
    assert (python, option, module) == ("python", "-m", "mmq_sweeps")
    assert f"store.dir={mixed}" in overrides
    assert row["id"] in [cell.id for cell in plan([composed(*overrides)]).cells]


@pytest.mark.parametrize("sign", [r"\), gptq", "by unit"])
def test_the_command_of_a_cell_measures_it_again(mixed: Path, tmp_path: Path, sign: str) -> None:
    row = one(by_label(mixed), sign)
    told = again(row)
    for command in told.split(" && "):
        module, *arguments = shlex.split(command)[2:]
        assert shlex.split(command)[:2] == ["python", "-m"]
        _run(tmp_path, arguments, module)
    before = set(load([str(mixed)]).frame["id"])
    # The store of the command has the cell already, so no cell was added.
    assert f"store.dir={mixed}" in told
    assert set(load([str(mixed)]).frame["id"]) == before


def test_frontier_gives_mixed_methods_a_line_of_their_own(mixed: Path, capsys, monkeypatch) -> None:
    out, _ = verb(capsys, monkeypatch, "frontier", "--source", str(mixed), "--by-method", "--json")
    methods = {one["title"].split(", ", 2)[2] for one in json.loads(out)}
    assert methods == {"rtn", "rtn (vision), gptq (connector, language)"}


def test_recommend_gives_the_command_of_a_mixed_cell(mixed: Path, capsys, monkeypatch) -> None:
    out, _ = verb(capsys, monkeypatch, "recommend", "--source", str(mixed), "--max-bpw", "4.2")
    assert "rtn vision 4 connector 4 language attention 4, mlp 2" in out
    assert "'component.language.bits={attention:4,mlp:2}'" in out


def test_importance_says_which_cells_are_none_of_the_method(mixed: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["analysis", "importance", "--source", str(mixed)])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().err
    assert "1 cell mixes rtn with another method and is left out here" in told
    assert "give the units of a part several bit-widths" in told


def test_tables_show_and_tell_mixed_cells(mixed: Path, capsys, monkeypatch) -> None:
    out, _ = verb(capsys, monkeypatch, "table", "--source", str(mixed))
    assert "attention 4, mlp 3" in out
    out, _ = verb(capsys, monkeypatch, "table", "--source", str(mixed), "--markdown")
    assert "; cells of several bit-widths" in out
    out, _ = verb(capsys, monkeypatch, "table", "--source", str(mixed), "--json")
    parts = [json.dumps([row["method"], row["parts"]], sort_keys=True) for row in json.loads(out)]
    assert len(set(parts)) == len(parts)


def test_report_and_figures_take_mixed_cells(mixed: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    page = tmp_path / "report.html"
    verb(capsys, monkeypatch, "report", "--source", str(mixed), "--out", str(page))
    assert any("language attention 4, mlp 3" in cell for cell in columns_of(page.read_text())["cell"])
    assert {plot.name.split("-")[0] for plot in figures(load([str(mixed)]))} >= {"tradeoff", "parts"}
    out, _ = verb(
        capsys, monkeypatch, "figures", "--source", str(mixed), "--only", "tradeoff", "parts", "--out", str(tmp_path)
    )
    assert "tradeoff" in out
    assert "4 of 8 cells give the units of a part several bit-widths" in out


def test_a_view_says_which_runs_stand_at_a_mean(mixed: Path) -> None:
    (view,) = views(load([str(mixed)]))
    assert view.parts == ("vision", "connector", "embeddings", "language")
    assert view.notes == ("4 of 8 runs mix the bits of a part and stand at their mean",)
