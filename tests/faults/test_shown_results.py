"""Results on a terminal: warnings beside their figures, names as they are, and a notice for everything cut off."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from analysis.audit.checks import audit
from analysis.figures.catalog import figures
from analysis.load import load
from analysis.progress import Progress, counted
from analysis.publish import dashboard
from analysis.report import content, page
from analysis.report.blocks import Table
from mmq_sweeps.store.record import Record
from tests.faults.cells import made, stored
from tests.faults.results import FULL, LOWER, WHOLE4, run, shown

# Warnings beside the figures that they are about.

SUSPECT = "68 of 100 captions are the same"


@pytest.fixture
def suspect(tmp_path: Path) -> str:
    return stored(
        tmp_path, FULL, made("gptq", WHOLE4, 4.67, {"cider": 5.8}, warnings={"cider": [SUSPECT, "and two are empty"]})
    )


@pytest.mark.parametrize(
    "verb", [["table"], ["table", "--markdown"], ["frontier"], ["recommend", "--max-bpw", "5"], ["audit"]]
)
def test_a_warning_stands_beside_its_figure_and_is_told_in_full(
    suspect: str, verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, *verb, "--source", suspect)
    told = capsys.readouterr().out
    assert SUSPECT in told
    assert "and two are empty" in told
    assert verb == ["audit"] or "5.8000!" in told
    assert "5.8800!" not in told


def test_a_warning_is_a_list_in_json(
    suspect: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "table", "--source", suspect, "--json")
    full, quantized = json.loads(capsys.readouterr().out)
    assert quantized["metrics"]["cider"]["warnings"] == [SUSPECT, "and two are empty"]
    assert "warnings" not in full["metrics"]["cider"]
    run(monkeypatch, "frontier", "--source", suspect, "--json")
    assert json.loads(capsys.readouterr().out)[0]["frontier"][0]["warnings.cider"] == [SUSPECT, "and two are empty"]
    run(monkeypatch, "recommend", "--max-bpw", "5", "--source", suspect, "--json")
    assert json.loads(capsys.readouterr().out)[0]["best"]["warnings.cider"][0] == SUSPECT


def test_the_report_marks_a_figure_with_its_warning_in_tables_and_points(suspect: str) -> None:
    told = content.page(load([suspect]), None, "")
    blocks = {section.title: section.blocks for section in told.sections}
    (table,) = (block for block in blocks["m, t"] if isinstance(block, Table))
    (place,) = table.marks
    assert (table.columns[place[1]].label, table.rows[place[0]][place[1]]) == ("CIDEr", pytest.approx(5.8))
    assert SUSPECT in table.marks[place]
    assert any(SUSPECT in line for block in blocks["Defects and missing cells"] for line in block.lines)
    columns = told.data["cells"]
    for name in ("warnings", "warnings.cider"):
        assert [text is not None and SUSPECT in text for text in columns[name]] == [
            method == "gptq" for method in columns["method"]
        ]
    (plot,) = figures(load([suspect]), names=["tradeoff"])
    assert any(SUSPECT in name for one in plot.panels[0].series for name in one.names)


# Names are text, with any characters in them.

ODD = ("[bold]m[/bold] :car:", "t [red]")


def test_names_that_look_like_markup_are_printed_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        made("none", {}, 16.0, {"[x]wer": 5.0}, names=ODD),
        made("gptq", {"vision": 3}, 8.0, {"[x]wer": 4.0}, names=ODD, fields={"order": "[front]"}),
        made("gptq", {"vision": 3}, 8.0, {"[x]wer": 4.5}, names=ODD, fields={"order": "[end]"}),
        made("none", {}, 16.0, {"[x]wer": 4.9}, names=ODD, task={"prompt": "[b]say[/b] :car:"}),
    ]
    source = stored(tmp_path / "a [green]", *records)
    for verb in (["table"], ["frontier"], ["sensitivity"], ["recommend", "--max-bpw", "9"]):
        run(monkeypatch, *verb, "--source", source)
        told = capsys.readouterr().out
        assert "[bold]m[/bold] :car:, t [red]" in told
        assert "[front]" in told or "[end]" in told
        assert verb[0] == "recommend" or "[b]say[/b] :car:" in told
    run(monkeypatch, "export", "--source", source, "--out", tmp_path / "[green] :car:.csv")
    assert "[green] :car:.csv" in capsys.readouterr().out


def test_the_heads_and_cells_of_a_table_are_text_on_any_console() -> None:
    told = shown(made("gptq[i]", {"vision": 3}, 8.0, {"[x]wer": 4.0}), FULL, width=120)
    assert "gptq[i]" in told
    assert "[x]wer" in told


# Tables that can be read.


def caption(
    limit: int | None = None, prompt: str = "", names: tuple[str, str] = ("tiny_blip2", "scenes_caption")
) -> list[Record]:
    task = {"prompt": prompt, **({"limit": limit} if limit else {})}
    return [
        made("none", {}, 16.0, {"cider": 5.88}, task=task, names=names),
        made("gptq", WHOLE4, 4.67, {"cider": 5.79}, task=task, names=names),
    ]


def retrieval() -> list[Record]:
    names, has = ("tiny_blip2_itm", "scenes_retrieval"), ("vision", "connector")
    recalls = {f"{side}_recall_at_{rank}": 0.5 + rank / 100 for side in ("text", "image") for rank in (1, 5, 10)}
    return [
        made("none", {}, 16.0, recalls, names=names, has=has),
        made(
            "gptq",
            {"vision": 4, "connector": 4},
            4.67,
            {name: value - 0.1 for name, value in recalls.items()},
            names=names,
            has=has,
        ),
    ]


def test_several_tasks_are_a_table_each_and_fit_eighty_columns() -> None:
    told = shown(*caption(), *retrieval(), *caption(limit=8, names=("tiny_llava", "scenes_vqa")))
    assert max(map(len, told.splitlines()[:6])) <= 80
    assert "…" not in told
    for title in ("tiny_blip2, scenes_caption", "tiny_blip2_itm, scenes_retrieval", "tiny_llava, scenes_vqa"):
        assert title in told.splitlines()
    # Captions keep their difference though another task has six metrics.
    assert told.count("-0.0900") == 2
    of_retriever = told.split("tiny_blip2_itm, scenes_retrieval")[1].split("tiny_llava")[0]
    assert "language" not in of_retriever
    assert "-0.1000" in of_retriever
    assert "TR@1" in of_retriever


def test_gptq_columns_without_room_are_left_out_whole_and_named() -> None:
    told = shown(*retrieval(), width=60)
    assert all(figure in told for figure in ("0.4100", "-0.1000", "4.67"))
    assert "…" not in told
    assert "no room here for" in told
    assert "time" in told.split("no room here for")[1]
    assert max(len(line) for line in told.split("\n* differs")[0].splitlines()) <= 60


def test_figures_of_the_other_verbs_are_whole_on_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrowed = {"bits": 3, "blocks": ["front", "middle"], "layers": ["attention"]}
    fields = [{"a_long_name_of_a_field": number} for number in (1, 2)]
    records = [
        made("gptq", parts, 8.0 - number, {"cider": 5.1234 + number / 10}, fields=own)
        for number, own in enumerate(fields)
        for parts in ({"vision": narrowed}, {"language": narrowed}, {"vision": narrowed, "language": narrowed})
    ]
    monkeypatch.setattr("analysis.verbs.output_console", lambda: Console(width=80))
    source = stored(tmp_path, FULL, *records)
    for verb in ("frontier", "sensitivity"):
        run(monkeypatch, verb, "--source", source)
        told = capsys.readouterr().out
        assert "…" not in told
        figure = "5.2234" if verb == "frontier" else "0.7566"
        assert figure in told


@pytest.mark.parametrize(
    ("twins", "titles"),
    [
        ([*caption(8), *caption(16)], ["[task.limit=8]", "[task.limit=16]"]),
        (
            [*caption(prompt="a photo of"), *caption(prompt="a drawing of")],
            ['[task.prompt="a photo of"]', '[task.prompt="a drawing of"]'],
        ),
        (
            [made("none", {}, 16.0, {name: 5.0}, task={"metrics": [name]}) for name in ("cider", "meteor")],
            ['[task.metrics=["cider"]]', '[task.metrics=["meteor"]]'],
        ),
        (
            [made("none", {}, 16.0, {"cider": 5.0}, model={"dtype": name}) for name in ("float32", "bfloat16")],
            ["[model.dtype=float32]", "[model.dtype=bfloat16]"],
        ),
    ],
)
def test_titles_say_what_differs_between_families_of_one_name(
    tmp_path: Path, twins: list[Record], titles: list[str]
) -> None:
    twins = [Record(**{**one.__dict__, "id": str(number)}) for number, one in enumerate(twins)]
    told = shown(*twins)
    assert all(title in told for title in titles)
    found = [title for title, _ in load([stored(tmp_path, *twins)]).families()]
    assert sorted(title[title.index("[") :] for title in found) == sorted(titles)


def test_cells_of_one_method_that_differ_in_its_fields_are_told_apart_in_the_table() -> None:
    told = shown(
        *(
            made("gptq", WHOLE4, 4.67, {"cider": value}, fields={"group_size": size})
            for size, value in ((64, 5.7), (32, 5.8))
        ),
        width=100,
    )
    lines = {size: line for size in (64, 32) for line in told.splitlines() if f"gptq method.group_size={size}" in line}
    assert "5.7000" in lines[64]
    assert "5.8000" in lines[32]


def test_figures_of_families_whose_titles_read_alike_are_files_of_their_own(tmp_path: Path) -> None:
    twins = [*caption(prompt="a, photo"), *caption(prompt="a = photo"), *caption(prompt="long " * 100)]
    plots = figures(load([stored(tmp_path, *twins)]), names=["tradeoff"])
    assert len({plot.name for plot in plots}) == 3
    assert max(len(plot.name) for plot in plots) < 200


def test_a_method_whose_fields_hold_commas_keeps_its_name(tmp_path: Path) -> None:
    records = [made("gptq", {"vision": 3}, 8.0, {"cider": 5.0}, fields={"steps": steps}) for steps in ([1, 2], [3, 4])]
    (plot,) = figures(load([stored(tmp_path, FULL, *records)]), names=["tradeoff"])
    assert {one.label for one in plot.panels[0].series} - {""} == {
        "gptq method.steps=[1, 2]",
        "gptq method.steps=[3, 4]",
    }


def test_markdown_keeps_families_methods_and_metrics_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cells(limit: int, metrics: tuple[str, ...], value: float) -> list[Record]:
        told = dict.fromkeys(metrics, value)
        task = {"limit": limit, "metrics": list(metrics)}
        return [
            made("none", {}, 16.0, dict.fromkeys(metrics, value + 1), task=task),
            *(made("gptq", WHOLE4, 4.67, told, task=task, fields={"group_size": size}) for size in (64,)),
            made("gptq", WHOLE4, 4.67, dict.fromkeys(metrics, value + 0.5), task=task, fields={"group_size": 32}),
        ]

    run(
        monkeypatch,
        "table",
        "--markdown",
        "--source",
        stored(tmp_path, *cells(8, ("cider",), 1.0), *cells(16, ("cider", "meteor"), 3.0)),
    )
    told = capsys.readouterr().out
    tables = told.split("\n\nm, t")
    assert len(tables) == 3
    for values in (("full precision 2.0000", "1.0000", "1.5000"), ("full precision 4.0000", "3.0000", "3.5000")):
        (one,) = [table for table in tables if values[0] in table and "CIDEr; full" in table]
        assert f"| gptq method.group_size=64 | vision + connector + language | {values[1]} |" in one
        assert f"| gptq method.group_size=32 | vision + connector + language | {values[2]} |" in one
    assert "METEOR; full precision 4.0000" in told


def test_a_cell_over_other_items_than_full_precision_is_shown_without_a_difference() -> None:
    one = made("gptq", WHOLE4, 4.67, {"cider": 5.8}, count=18)
    told = shown(FULL, one)
    assert "5.8000" in told
    assert (
        "not compared with full precision: gptq vision 4 connector 4 language 4, CIDEr: the results are over different items"
        in told
    )


# W&B's views.


@pytest.mark.parametrize(
    "name", ["a=b", "a<b>c", "a+b$c^d|e~f", 'it\'s "quoted" \\ é', "a == b and c", "x within_last 5 days"]
)
def test_a_filter_finds_a_name_with_any_sign(name: str) -> None:
    expr = pytest.importorskip("wandb_workspaces.expr")
    tree = expr.expr_to_filters(f"SummaryMetric('model') == {dashboard.literal(name)} and SummaryMetric('task') == 't'")
    assert [(one.op, one.value) for one in tree.filters] == [("=", name), ("=", "t")]


def test_a_view_has_a_name_that_is_taken_and_the_frontier_of_its_direction(tmp_path: Path) -> None:
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    name = dashboard.shown_name("a=b+c$d^e|f~g<h>, t 🚗")
    assert workspaces.Workspace(entity="me", project="p", name=name).name == "a-b-c-d-e-f-g-h-, t -"
    (view,) = dashboard.views(
        load(
            [
                stored(
                    tmp_path,
                    *LOWER,
                    made("gptq", {"vision": {"bits": 3, "blocks": ["front"]}}, 9.0, {"wer": 0.2}, lower=["wer"]),
                )
            ]
        )
    )
    assert view.lower == ("wer",)
    assert view.notes == ("1 of 6 runs narrows a part or its group size and stands at its bits all the same",)
    panels = [panel for section in dashboard._sections(view) for panel in section.panels]
    assert (panels[0].running_ymin, panels[0].running_ymax) == (True, None)


# Commands that take minutes.


@pytest.mark.parametrize("writes", [["export", "cells.csv"], ["export", "cells.parquet"], ["report", "page.html"]])
def test_a_file_that_cannot_be_written_is_named_and_the_earlier_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], writes: list[str]
) -> None:
    source, out = stored(tmp_path / "store", FULL), tmp_path / "out" / writes[1]
    run(monkeypatch, writes[0], "--source", source, "--out", out)
    before = out.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, writes[0], "--source", source, "--out", out)
    assert f"error: --out {out}: cannot be written: No space left on device" in capsys.readouterr().err
    assert (out.read_bytes(), list(out.parent.iterdir())) == (before, [out])


def test_a_report_says_what_it_is_doing(tmp_path: Path) -> None:
    steps: list[str] = []
    content.page(load([stored(tmp_path, *caption(8), *caption(16))]), None, "", say=steps.append)
    assert "tiny_blip2, scenes_caption [task.limit=8] (2 of 2): importance" in steps
    assert steps[-1] == "writing the page"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_shows_its_step_and_count_on_a_terminal_alone(terminal: bool) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100)
    with Progress(console) as progress:
        progress.say("[b]frontier[/b]")
        assert list(counted("abc", "items of cells", 3)) == ["a", "b", "c"]
        progress._bars.refresh()
    assert ("[b]frontier[/b], items of cells" in shown.getvalue()) is terminal
    assert ("3/3" in shown.getvalue()) is terminal
    if not terminal:
        assert shown.getvalue() == ""
    # Where no command shows a bar, work is only done.
    assert list(counted([1], "cells", 1)) == [1]


# The script that computed a figure, of several scripts with the same name.

BEFORE = "VQA script before March 2021, as in LAVIS"


SINCE = "VQA script since March 2021, GT-Vision-Lab/VQA a013f00"


def scripted(method: str, parts: dict[str, int], bpw: float, script: str = BEFORE) -> Record:
    one = made(method, parts, bpw, {"vqa_accuracy": bpw / 20, "vqa_accuracy_2021": bpw / 25})
    scripts = {"vqa_accuracy": script, "vqa_accuracy_2021": SINCE}
    return replace(one, metrics={name: {**told, "definition": scripts[name]} for name, told in one.metrics.items()})


def test_the_script_of_a_metric_is_told_wherever_the_metric_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [scripted("none", {}, 16.0), scripted("gptq", WHOLE4, 4.0)]
    folder = stored(tmp_path, *records)
    table = shown(*records, width=120)
    assert "acc. 2021" in table.splitlines()[1]
    assert f"acc.: {BEFORE}\nacc. 2021: {SINCE}\n" in table
    for verb in (["table", "--markdown"], ["frontier"], ["sensitivity"], ["recommend", "--max-bpw", "9"]):
        run(monkeypatch, *verb, "--source", folder)
        assert f"acc.: {BEFORE}\n" in capsys.readouterr().out
    cells = load([folder])
    assert cells.frame["definition.vqa_accuracy"].tolist() == [BEFORE, BEFORE]
    told = page.render(content.page(cells, None, "c"))
    assert f"acc.: {BEFORE}." in told
    assert f"acc. 2021: {SINCE}." in told
    assert "records differ" not in {finding.defect for finding in audit(cells)}


def test_cells_of_two_scripts_are_told_not_to_be_comparable(tmp_path: Path) -> None:
    records = [scripted("none", {}, 16.0), scripted("gptq", WHOLE4, 4.0), scripted("gptq", {"vision": 4}, 8.0, SINCE)]
    assert f"! acc.: cells differ in the script and are not comparable: {BEFORE} (2 cells); {SINCE} (1 cell)" in shown(
        *records
    )
    (told,) = [one for one in audit(load([stored(tmp_path, *records)])) if one.defect == "records differ"]
    assert told.sentence == (
        f"acc. is computed by different scripts: 2 cells by {BEFORE}; 1 cell by {SINCE}; not comparable"
    )
