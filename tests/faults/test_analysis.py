"""What is made of finished cells: no wrong figure, no wrong cell, nothing cut away without a word."""

from __future__ import annotations

import errno
import itertools
import json
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from analysis.__main__ import main
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
