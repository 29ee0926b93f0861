"""What is made of finished cells: no wrong figure, no wrong cell, nothing cut away without a word."""

from __future__ import annotations

import errno
import itertools
import json
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.__main__ import main
from analysis.audit.checks import audit
from analysis.cells import assignment
from analysis.figures import interactive, paper
from analysis.figures.catalog import figures
from analysis.figures.plots import XY, Heatmap, Space
from analysis.load import load
from analysis.measures.family import families
from analysis.measures.frontier import frontiers
from analysis.measures.importance import importances
from analysis.measures.recommend import recommend
from analysis.measures.sensitivity import sensitivities
from analysis.output import json_text
from analysis.progress import Progress
from analysis.publish import dashboard
from analysis.report import content, page, words
from analysis.report.blocks import Page, Section
from mmq_sweeps.reporting.table import rows, show
from mmq_sweeps.store.record import Record
from tests.faults.cells import PARTS, items, made, stored


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["analysis", *map(str, arguments)])
    main()


def shown(*records: Record, width: int = 80) -> str:
    """What a sweep of ``records`` prints on a terminal of ``width`` columns."""
    by_id = {record.id: record for record in records}
    console = Console(file=StringIO(), width=width)
    show(rows(records, lambda cell_id: items(by_id[cell_id])), console)
    return console.file.getvalue()  # type: ignore[attr-defined]


FULL = made("none", {}, 16.0, {"cider": 5.88})
WHOLE4 = dict.fromkeys(PARTS, 4)


# Which cell to take.


def test_of_cells_of_equal_bits_recommend_and_frontier_name_the_better(tmp_path: Path) -> None:
    cells = load(
        [
            stored(
                tmp_path,
                FULL,
                made("rtn", WHOLE4, 4.67, {"cider": 5.767}),
                made("gptq", WHOLE4, 4.67, {"cider": 5.791}),
            )
        ]
    )
    (told,), (one,) = recommend(cells, min_quality=0.98), frontiers(cells)
    assert assignment(told.best) == "gptq vision 4 connector 4 language 4"
    assert one.smallest_within(0.98)["id"] == told.best["id"]


def test_of_cells_equal_in_bits_and_quality_both_name_the_one_of_fewer_exact_bits(tmp_path: Path) -> None:
    records = [
        made(name, WHOLE4, 4.67, {"cider": 5.8}, exact=exact)
        for name, exact in (("awq", 4.9), ("gptq", 4.7), ("rtn", 4.8))
    ]
    cells = load([stored(tmp_path, FULL, *records)])
    for budget in ({"min_quality": 0.9}, {"max_bpw": 5.0}):
        (told,) = recommend(cells, **budget)
        assert told.best["method"] == "gptq"
    (one,) = frontiers(cells)
    assert one.smallest_within(0.9)["method"] == one.best_within(5.0)["method"] == "gptq"


def test_of_cells_of_equal_quality_within_a_budget_of_bits_both_name_the_smaller(tmp_path: Path) -> None:
    records = [made("gptq", {"vision": width}, width / 2, {"cider": 5.8}) for width in (8, 7, 6)]
    cells = load([stored(tmp_path, FULL, *records)])
    (told,) = recommend(cells, max_bpw=5.0)
    assert told.best["bpw_paper"] == frontiers(cells)[0].best_within(5.0)["bpw_paper"] == 3.0


def test_not_significantly_worse_are_cells_within_the_budget_only(tmp_path: Path) -> None:
    records = [made("gptq", {"vision": width}, float(width), {"cider": 5.88}) for width in range(2, 9)]
    tied = made("rtn", {"vision": 2}, 2.0, {"cider": 5.88})
    cells = load([stored(tmp_path, FULL, *records, tied)])
    (told,) = recommend(cells, min_quality=0.98)
    assert told.best["bpw_paper"] == 2.0
    assert set(told.as_good["bpw_paper"]) == {2.0}
    (within,) = recommend(cells, max_bpw=4.0)
    assert within.as_good["bpw_paper"].max() <= 4.0
    assert "none" not in set(within.as_good["method"])


@pytest.mark.parametrize("first", [("cider", "bleu_4"), ("bleu_4", "cider")])
def test_the_main_metric_is_the_first_that_was_asked_for_whatever_else_the_store_holds(
    tmp_path: Path, first: tuple[str, str]
) -> None:
    values = {name: 5.8 if name == "cider" else 0.7 for name in first}
    others = [made("none", {}, 16.0, {name: 0.5}, names=("m", "a")) for name in reversed(first)]
    mine = [made("none", {}, 16.0, values), made("rtn", WHOLE4, 4.67, values)]
    cells = load([stored(tmp_path, *others, *mine)])
    main = [one.metric for one in frontiers(cells) if "m, t" in one.title]
    assert main == [first[0]]
    heads = [word for word in shown(*mine).split() if word in ("CIDEr", "bleu_4")]
    assert [name.lower() for name in heads] == list(first)


# Cells that narrow a part are not the cells of their bits.


def grid(**selected: Any) -> list[Record]:
    """RTN at 3, 4 and 16 bits of every part; ``selected`` narrows the parts of a second such grid, which scores 5."""
    found = []
    for widths in itertools.product((3, 4, 16), repeat=3):
        bits = {part: width for part, width in zip(PARTS, widths, strict=True) if width < 16}
        bpw = 16 - sum(16 - width for width in bits.values()) / 4
        if bits:
            found.append(made("rtn", bits, bpw, {"cider": 1 + sum(bits.values()) / 1000}))
            narrowed = {part: {"bits": width, **selected} for part, width in bits.items()}
            if selected:
                found.append(made("rtn", narrowed, bpw, {"cider": 5.0 + sum(bits.values()) / 1000}))
    return [FULL, *found]


NARROWED = [
    {"blocks": ["front"]},
    {"layers": ["mlp"]},
    {"group_size": 64},
    {"blocks": ["middle", "end"], "layers": ["attention"]},
]


@pytest.mark.parametrize("selected", NARROWED)
@pytest.mark.parametrize("name", ["heatmaps", "space", "pairs", "parts"])
def test_a_figure_by_bits_shows_whole_parts_only_and_says_what_it_leaves_out(
    tmp_path: Path, selected: dict, name: str
) -> None:
    (plot,) = figures(load([stored(tmp_path, *grid(**selected))]), names=[name])
    values = []
    for panel in plot.panels:
        if isinstance(panel, Heatmap):
            values += [value for line in panel.values for value in line]
        elif isinstance(panel, Space):
            values += list(panel.values)
        elif isinstance(panel, XY):
            values += [value for one in panel.series for value in one.y]
    # Of narrowed cells all score 5; full precision scores 5.88.
    assert not [value for value in values if 4.9 < value < 5.8]
    assert plot.notes == [
        "26 of 53 cells quantize only some blocks or layers of a part, or give a part a group size of its own, and are left "
        "out here"
    ]


def test_a_group_size_that_all_cells_of_a_part_have_is_left_out_of_nothing(tmp_path: Path) -> None:
    own = {"group_size": 64}
    records = [
        made("rtn", {part: {"bits": width, **own} for part, width in bits.items()}, 4.0, {"cider": sum(bits.values())})
        for bits in (
            {part: width for part, width in zip(PARTS, widths, strict=True) if width < 16}
            for widths in itertools.product((3, 16), (4, 16), (5, 16))
        )
        if bits
    ]
    cells = load([stored(tmp_path, FULL, *records)])
    (plot,) = figures(cells, names=["space"])
    assert (len(plot.panels[0].values), plot.notes) == (8, [])
    assert "rtn vision 3 g64 connector 4 g64 language 5 g64" in [assignment(row) for _, row in cells.frame.iterrows()]


@pytest.mark.parametrize("selected", NARROWED[1:3])
def test_importance_by_bits_is_of_whole_parts_only_and_says_so(tmp_path: Path, selected: dict) -> None:
    narrowed = load([stored(tmp_path / "both", *grid(**selected))])
    (found,), (alone,) = (
        importances(narrowed, resamples=2),
        importances(load([stored(tmp_path / "one", *grid())]), resamples=2),
    )
    assert found.count == alone.count == 27
    assert found.table["mean"].tolist() == pytest.approx(alone.table["mean"].tolist(), abs=1e-6)
    assert found.warnings[-1].startswith("26 of 53 cells quantize only some blocks or layers of a part")


def test_methods_and_pairs_are_compared_at_the_same_selection_and_group_size(tmp_path: Path) -> None:
    own = {"bits": 3, "group_size": 64}
    records = [
        FULL, made("rtn", {"vision": 3}, 8.0, {"cider": 5.0}), made("rtn", {"vision": own}, 8.0, {"cider": 5.5}),
        made("rtn", {"language": 3}, 8.0, {"cider": 5.6}), made("rtn", {"vision": own, "language": 3}, 4.0, {"cider": 5.2}),
        made("gptq", {"vision": own}, 8.0, {"cider": 5.7}),
    ]  # fmt: skip
    (found,) = sensitivities(load([stored(tmp_path, *records)]))
    assert found.pairs["parts"].tolist() == ["vision 3 g64, language 3"]
    # Of the pair's 0.68, vision with its groups costs 0.38 and language 0.28.
    assert found.pairs["interaction"].tolist() == pytest.approx([0.02])
    (methods,) = found.methods.to_dict("records")
    assert (methods["cells"], methods["better_by"]) == (1, pytest.approx(0.2))


# Several sources.


def test_sources_named_by_several_options_are_all_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = stored(tmp_path / "a", FULL), stored(tmp_path / "b", made("gptq", WHOLE4, 4.67, {"cider": 5.791}))
    for sources in (["--source", a, "--source", b], ["--source", a, b], ["--source", a, "--source", b, a]):
        for verb in ("table", "frontier"):
            run(monkeypatch, verb, *sources, "--json")
            told = json.loads(capsys.readouterr().out)
            assert len(told if verb == "table" else told[0]["frontier"]) == 2


def test_figures_named_by_several_options_are_all_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "save", lambda plot, folder: folder / plot.name)
    monkeypatch.setattr(paper, "save", lambda plot, folder: [folder / f"{plot.name}.png"])
    drawn: list[str] = []
    monkeypatch.setattr("analysis.verbs._told", drawn.extend)
    run(
        monkeypatch,
        "figures",
        "--source",
        stored(tmp_path, *grid()),
        "--only",
        "space",
        "--only",
        "pairs",
        "--out",
        tmp_path,
        "--json",
    )
    assert {Path(path).name.split("-")[0] for path in drawn} == {"space", "pairs"}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_table_tells_of_a_conflict_between_stores_and_shows_the_newest(
    tmp_path: Path, order: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, year in (("a", 5.1, 2025), ("b", 5.2, 2026)):
        one = made("gptq", WHOLE4, 4.67, {"cider": value})
        stored(tmp_path / name, Record(**{**one.__dict__, "created": f"{year}-01-01T00:00:00.000+00:00"}))
    run(monkeypatch, "table", "--source", *(tmp_path / name for name in order))
    told = capsys.readouterr()
    assert "was measured 2 times with different results (cider differs by 0.1); the newest is shown" in told.err
    assert "5.2000" in told.out
    assert "5.1000" not in told.out


# A metric of which less is better.

LOWER = [
    made("none", {}, 16.0, {"wer": 0.10}, lower=["wer"]),
    made("gptq", {"vision": 8}, 8.0, {"wer": 0.101}, lower=["wer"]),
    made("gptq", {"language": 8}, 7.0, {"wer": 0.11}, lower=["wer"]),
    made("gptq", {"vision": 2}, 3.0, {"wer": 0.94}, lower=["wer"]),
    made("rtn", {"vision": 8}, 8.0, {"wer": 0.30}, lower=["wer"]),
]


def test_where_less_is_better_frontier_and_recommendation_are_the_right_way_round(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, *LOWER)])
    (one,) = frontiers(cells)
    assert one.rows["metric.wer"].tolist() == [0.94, 0.11, 0.101, 0.10]
    assert one.hypervolume() is None
    # At most 0.10 / 0.98 = 0.1020.
    (told,) = recommend(cells, min_quality=0.98)
    assert told.best["metric.wer"] == one.smallest_within(0.98)["metric.wer"] == 0.101
    assert told.budget == "at most 0.1020, which is full precision's 0.1000 / 0.98"
    (within,) = recommend(cells, max_bpw=7.5)
    assert within.best["metric.wer"] == 0.11


def test_where_less_is_better_damage_is_what_is_more(tmp_path: Path) -> None:
    (found,) = sensitivities(load([stored(tmp_path, *LOWER)]))
    damages = {(row["method"], row["part"], row["bits"]): row["damage"] for row in found.alone.to_dict("records")}
    assert damages["gptq", "vision", 2] == pytest.approx(0.84)
    (methods,) = found.methods.to_dict("records")
    assert (methods["better_by"], methods["better_in"]) == (pytest.approx(0.199), 1)
    (plot,) = figures(load([str(tmp_path)]), names=["parts"])
    vision = next(panel for panel in plot.panels if panel.title.startswith("vision"))
    gptq = next(one for one in vision.series if one.label == "gptq")
    assert list(gptq.y) == pytest.approx([0.94, 0.101])
    assert all(low <= y <= high for low, y, high in zip(gptq.low, gptq.y, gptq.high, strict=True))


def test_where_less_is_better_bright_colours_are_the_low_values(tmp_path: Path) -> None:
    records = [
        made("rtn", {"vision": a, "language": b}, float(a + b), {"wer": 1 / (a + b)}, lower=["wer"])
        for a, b in itertools.product((3, 4, 8), repeat=2)
    ]
    cells = load([stored(tmp_path, LOWER[0], *records)])
    (plot,) = figures(cells, names=["heatmaps"])
    assert {panel.higher for panel in plot.panels} == {False}
    (image,) = [axes.images[0] for axes in paper.draw(plot, 3.3).axes if axes.images and axes.get_xlabel()]
    assert image.get_cmap().name == "cividis_r"
    assert (
        interactive.draw(plot).data[0].colorscale[0][1] != interactive.go.Heatmap(colorscale="Cividis").colorscale[0][1]
    )
    assert '"higher":false' in page.render(Page("", [Section("", [plot])]))


def test_where_less_is_better_sentences_say_so_and_show_no_percentage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = stored(tmp_path, *LOWER)
    (family,) = families(load([source]))
    told = " ".join(words.of_frontier(frontiers(family.cells, "wer")[0]))
    assert (
        "The best within 8 bits a weight is gptq vision 8: wer (lower is better) 0.1010 (1.01 times full precision's)."
        in told
    )
    assert "%" not in told
    for verb in (["frontier"], ["recommend", "--max-bpw", "4"], ["sensitivity"], ["table"]):
        run(monkeypatch, *verb, "--source", source)
        told = capsys.readouterr().out
        assert "% of full precision" not in told
        assert "lower is better" in told or "times full precision's" in told


@pytest.mark.parametrize("full", [0.0, -0.5])
@pytest.mark.parametrize("lower", [[], ["score"]])
def test_a_share_of_a_full_precision_of_nothing_is_not_told(tmp_path: Path, full: float, lower: list[str]) -> None:
    records = [
        made("none", {}, 16.0, {"score": full}, lower=lower),
        made("gptq", {"vision": 3}, 8.0, {"score": 0.2}, lower=lower),
    ]
    cells = load([stored(tmp_path, *records)])
    with pytest.raises(ValueError, match=rf"full precision has a score of {full:.4f}, of which a share means nothing"):
        recommend(cells, min_quality=0.98)
    (one,) = frontiers(cells)
    assert one.smallest_within(0.98) is None
    assert any("a share of it means nothing" in note for note in one.notes)
    assert "%" not in " ".join(words.of_frontier(one))


def test_cells_that_disagree_on_what_is_better_are_not_compared(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, LOWER[0], made("gptq", {"vision": 8}, 8.0, {"wer": 0.101}))])
    assert [title for title, _ in cells.families()] == ["m, t []", 'm, t [lower is better=["wer"]]']


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


def test_the_report_marks_a_figure_with_its_warning_in_tables_sentences_and_points(suspect: str) -> None:
    told = content.page(load([suspect]), None, "")
    blocks = {section.title: section.blocks for section in told.sections}
    (table,) = blocks["All cells"]
    (place,) = table.marks
    assert (table.columns[place[1]].label, table.rows[place[0]][place[1]]) == ("CIDEr", pytest.approx(5.8))
    assert SUSPECT in table.rows[place[0]][[column.label for column in table.columns].index("warnings")]
    assert any(SUSPECT in line for block in blocks["Summary"] for line in block.lines)
    text = page.render(told)
    assert text.count(SUSPECT) >= 4
    (plot,) = figures(load([suspect]), names=["tradeoff"])
    assert any(SUSPECT in name for one in plot.panels[0].series for name in one.names)


# Names are text, whatever is in them.

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


def test_columns_without_room_are_left_out_whole_and_named() -> None:
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
        (one,) = [table for table in tables if values[0] in table and "cider; full" in table]
        assert f"| gptq method.group_size=64 | vision + connector + language | {values[1]} |" in one
        assert f"| gptq method.group_size=32 | vision + connector + language | {values[2]} |" in one
    assert "meteor; full precision 4.0000" in told


def test_a_cell_over_other_items_than_full_precision_is_shown_without_a_difference() -> None:
    one = made("gptq", WHOLE4, 4.67, {"cider": 5.8}, count=18)
    told = shown(FULL, one)
    assert "5.8000" in told
    assert "is not compared with full precision: cider: the results are over different items" in told


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
    assert view.notes == ("1 of 6 runs narrow a part or its group size and stand at its bits all the same",)
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


def test_a_step_that_takes_long_is_told_and_a_command_that_does_not_says_nothing() -> None:
    slow, quick = StringIO(), StringIO()
    with Progress(quick, patience=60) as progress:
        progress.say("frontier")
    with Progress(slow, patience=0) as progress:
        for step in ("frontier", "importance"):
            progress.say(step)
    assert quick.getvalue() == ""
    assert [line.split(": ")[1] for line in slow.getvalue().splitlines() if line.endswith(("frontier", "importance"))][
        -1
    ] == "importance"
    assert np.isfinite(float(slow.getvalue().split()[0]))


# Cells without a figure are left out, with a word.


def valueless(method: str, parts: dict[str, int], bpw: float | None) -> Record:
    """A finished cell whose metric has no value, as records of older versions may have it."""
    one = made(method, parts, 8.0, {"cider": 0.0})
    metrics = {"cider": {**one.metrics["cider"], "value": None, "interval": [None, None]}}
    size = {**one.size, "total": {**one.size["total"], "bpw_paper": bpw, "bpw_exact": bpw}}
    return replace(one, metrics=metrics, size=size)


def without_exact(record: Record) -> Record:
    return replace(record, size={**record.size, "total": {**record.size["total"], "bpw_exact": None}})


def test_a_method_without_a_figure_has_no_frontier_and_that_is_said(tmp_path: Path) -> None:
    records = [FULL, made("gptq", WHOLE4, 4.0, {"cider": 5.0}), valueless("awq", WHOLE4, 4.0)]
    cells = load([stored(tmp_path, *records)])
    (one,) = frontiers(cells, by_method=True)
    assert (one.method, len(one.cells)) == ("gptq", 2)
    assert "no frontier of awq: no cell of it has both cider and bpw_paper" in one.notes
    (overall,) = frontiers(cells)
    assert "1 of 3 cells lack cider or bpw_paper: left out" in overall.notes


def test_a_method_without_exact_bits_has_no_frontier_of_them(tmp_path: Path) -> None:
    records = [without_exact(FULL), without_exact(made("awq", WHOLE4, 4.0, {"cider": 5.5}))]
    cells = load([stored(tmp_path, *records, made("gptq", WHOLE4, 4.0, {"cider": 5.0}, exact=4.25))])
    (one,) = frontiers(cells, bpw="bpw_exact", by_method=True)
    assert (one.method, one.full, one.rows["bpw_exact"].tolist()) == ("gptq", 5.88, [4.25])
    assert "no frontier of awq: no cell of it has both cider and bpw_exact" in one.notes


@pytest.mark.parametrize("by_method", [False, True])
def test_cells_none_of_which_has_both_figure_and_bits_are_an_error(tmp_path: Path, by_method: bool) -> None:
    unsized = made("gptq", WHOLE4, 4.0, {"cider": 5.0})
    unsized = replace(unsized, size={**unsized.size, "total": {"bpw_paper": None, "bpw_exact": None}})
    cells = load([stored(tmp_path, valueless("none", {}, 16.0), unsized)])
    with pytest.raises(ValueError, match="cell has a metric and bpw_paper; the cells have cider"):
        frontiers(cells, by_method=by_method)


def test_a_full_precision_cell_without_a_figure_is_no_baseline(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, valueless("none", {}, 16.0), made("gptq", WHOLE4, 4.0, {"cider": 5.0}))])
    with pytest.raises(ValueError, match="full precision has no cider; measure it again with method=none"):
        sensitivities(cells)


# A draw in which all cells score the same ranks nothing.


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def test_an_importance_that_rests_on_one_cell_has_intervals_and_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        made("gptq", {"vision": vision, "language": language}, 8.0, {"cider": float((vision, language) != (2, 2))})
        for vision, language in itertools.product((2, 3, 4, 5, 6), repeat=2)
    ]
    folder = stored(tmp_path, *records)
    # A draw of 25 of 25 cells lacks the one that differs with a probability of 36%.
    (found,) = importances(load([folder]), resamples=8)
    assert found.count == 25
    assert found.table.notna().all(axis=None)
    assert (found.table["low"] <= found.table["high"]).all()
    place = list(load([folder]).frame["id"]).index(records[0].id)
    draws = np.random.default_rng(0).integers(0, 25, (8, 25))
    lacking = int((draws != place).all(axis=1).sum())
    assert lacking > 0
    (told,) = [warning for warning in found.warnings if "not told apart" in warning]
    assert f"in {lacking} of 8 resamples of the cells all score the same" in told
    monkeypatch.setattr("analysis.measures.importance.importances", lambda *_, **__: [found])
    run(monkeypatch, "importance", "--source", folder, "--json")
    (printed,) = json.loads(capsys.readouterr().out, parse_constant=no_constant)
    assert set(printed["importance"]["vision"]) == {"forest", "permutation", "shap", "mean", "low", "high", "per_bit"}


def test_scores_that_differ_by_rounding_have_no_importance(tmp_path: Path) -> None:
    records = [
        made("gptq", {"vision": vision, "language": language}, 8.0, {"cider": 0.3 + 1e-15 * vision * language})
        for vision, language in itertools.product((2, 3, 4, 5, 6), repeat=2)
    ]
    with pytest.raises(ValueError, match="every cell has the same score"):
        importances(load([stored(tmp_path, *records)]), resamples=2)


def test_cells_without_a_figure_are_left_out_of_importance_with_a_word(tmp_path: Path) -> None:
    records = [
        made("gptq", {"vision": vision, "language": language}, 8.0, {"cider": float(vision)})
        for vision, language in itertools.product((2, 3, 4, 5, 6), repeat=2)
    ]
    folder = stored(tmp_path, *records, valueless("gptq", {"vision": 7, "language": 7}, 8.0))
    (found,) = importances(load([folder]), resamples=2)
    assert found.count == 25
    assert "1 of 26 cells have no cider and are left out" in found.warnings


def test_what_json_does_not_know_is_null() -> None:
    told = {"a": [float("nan"), (1.5, np.float64("inf"))], "b": np.int64(3), "c": float("-inf"), "d": np.bool_(True)}
    printed = json.loads(json_text(told), parse_constant=no_constant)
    assert printed == {"a": [None, [1.5, None]], "b": 3, "c": None, "d": True}


@pytest.mark.parametrize(
    "verb", [["frontier"], ["frontier", "--by-method"], ["sensitivity"], ["recommend", "--max-bpw", "9"]]
)
def test_the_json_of_every_verb_is_json_whatever_the_figures(
    tmp_path: Path, verb: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = load(
        [stored(tmp_path, FULL, made("gptq", WHOLE4, 4.0, {"cider": 5.0}), made("rtn", WHOLE4, 4.0, {"cider": 1.0}))]
    )
    # As a W&B run or a published table may have it; records refuse it.
    cells.frame.loc[cells.frame["method"] == "gptq", ["metric.cider", "seconds"]] = np.inf
    monkeypatch.setattr("analysis.verbs.load", lambda _sources: cells)
    run(monkeypatch, *verb, "--source", tmp_path, "--json")
    assert json.loads(capsys.readouterr().out, parse_constant=no_constant)


# Which of several scripts of one name computed a figure.

BEFORE, SINCE = "VQA script before March 2021, as in LAVIS", "VQA script since March 2021, GT-Vision-Lab/VQA a013f00"


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
    assert f"! acc.: cells differ in the script and are not comparable: {BEFORE} (2 cells); {SINCE} (1 cells)" in shown(
        *records
    )
    (told,) = [one for one in audit(load([stored(tmp_path, *records)])) if one.defect == "records differ"]
    assert told.sentence == (
        f"vqa_accuracy is computed by different scripts: 2 cells by {BEFORE}; 1 cells by {SINCE}; not comparable"
    )


# Two methods are not averaged, and what lacks a figure hides no other.


def test_damages_of_pairs_are_told_by_method(tmp_path: Path) -> None:
    records = [FULL]
    for method, factor in (("awq", 1), ("gptq", 3)):
        for parts, damage in ((("vision",), 0.1), (("language",), 0.2), (("vision", "language"), 0.5)):
            records.append(made(method, dict.fromkeys(parts, 4), 8.0, {"cider": 5.88 - factor * damage}))
    (family,) = families(load([stored(tmp_path, *records)]))
    assert family.sensitivity is not None
    told = [line for line in words.of_sensitivity(family.sensitivity) if "together" in line]
    assert told == [
        f"{method} in two parts together costs {together} on average, against {alone} for the sum of each alone; "
        "worse together in 1 of 1 pair."
        for method, together, alone in (("awq", "0.5000", "0.3000"), ("gptq", "1.5000", "0.9000"))
    ]


def test_methods_that_score_alike_are_not_told_apart_in_words(tmp_path: Path) -> None:
    records = [FULL, *(made(method, WHOLE4, 4.0, {"cider": 5.0}) for method in ("awq", "gptq"))]
    (family,) = families(load([stored(tmp_path, *records)]))
    assert family.sensitivity is not None
    (told,) = words.of_sensitivity(family.sensitivity)
    assert told == "awq scores the same as gptq on average at the same bits, better in 0 of 1 assignment."


def test_a_cell_without_a_figure_empties_no_field_of_a_figure_and_is_a_defect(tmp_path: Path) -> None:
    records = [
        made("gptq", dict.fromkeys(parts, 4), 8.0, {"cider": 5.0 - len(parts)})
        for parts in (("vision",), ("connector",), ("language",), ("vision", "language"))
    ]
    cells = load([stored(tmp_path, FULL, *records, made("rtn", {"vision": 4}, 8.0, {"cider": 4.5}))])
    # The same assignment once more, without a figure.
    again = cells.frame[cells.frame["id"] == records[0].id].assign(id="again", **{"metric.cider": np.nan})
    cells = cells.of(pd.concat([cells.frame, again]))
    (plot,) = figures(cells, names=["pairs"])
    (panel,) = plot.panels
    assert isinstance(panel, Heatmap)
    assert panel.values[0][0] == 4.0
    (told,) = [one for one in audit(cells) if one.defect == "no figure"]
    assert told.sentence == "1 cells have no cider and are left out of all other checks: gptq vision 4"
    assert (told.cells, told.of) == (1, 7)


def test_copies_of_which_one_has_no_figure_are_told(tmp_path: Path) -> None:
    one = made("gptq", WHOLE4, 4.0, {"cider": 5.0})
    empty = replace(one, metrics={"cider": {**one.metrics["cider"], "value": None, "interval": [None, None]}})
    cells = load([stored(tmp_path / "a", FULL, one), stored(tmp_path / "b", FULL, empty)])
    assert [note for note in cells.notes if f"cell {one.id} was measured 2 times with different results" in note]
    (told,) = [finding.sentence for finding in audit(cells) if finding.defect == "measured twice"]
    assert "has 2 records: cider has a value in some and none in others" in told


def test_cells_without_bits_per_weight_are_no_recommendation_and_a_family_of_them_no_report(tmp_path: Path) -> None:
    def unsized(record: Record) -> Record:
        return replace(record, size={"total": {"bpw_paper": None, "bpw_exact": None}, "parts": {}})

    other = [unsized(made("gptq", parts, 4.0, {"cider": 5.0}, names=("m", "u"))) for parts in ({}, WHOLE4)]
    best = made("gptq", WHOLE4, 4.0, {"cider": 5.0})
    cells = load([stored(tmp_path, unsized(FULL), unsized(made("rtn", WHOLE4, 4.0, {"cider": 5.8})), best, *other)])
    (told,) = recommend(cells, min_quality=0.5)
    assert (told.title, told.best["id"], told.full) == ("m, t", best.id, 5.88)
    text = page.render(content.page(cells, None, "c"))
    assert "m, u: no cell has both cider and bits per weight, so it is left out." in text
    only = cells.of(cells.frame[cells.frame["task"] == "u"])
    with pytest.raises(ValueError, match="m, u: no cell has bits per weight"):
        recommend(only, max_bpw=8)
    with pytest.raises(ValueError, match="no finished cell has both a metric and bits per weight: nothing to report"):
        content.page(only, None, "c")


def test_damage_is_measured_from_the_full_precision_that_the_frontier_tells(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, FULL, made("gptq", {"vision": 4}, 8.0, {"cider": 5.0}))])
    # As in a published table, which has full precision several times.
    several = [
        cells.frame[cells.frame["method"] == "none"].assign(id=f"full {score}", **{"metric.cider": score})
        for score in (5.5, 5.9, 6.0)
    ]
    cells = cells.of(pd.concat([*several, cells.frame[cells.frame["method"] != "none"]]))
    (damage,), (one,) = sensitivities(cells), frontiers(cells)
    assert damage.full == one.full == 5.9
    assert damage.alone["damage"].tolist() == pytest.approx([0.9])
