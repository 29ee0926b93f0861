"""The cells that are compared, drawn and recommended: the better of equals, whole parts, a single direction."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.cells.selections import assignment
from analysis.figures import interactive, paper
from analysis.figures.catalog import figures
from analysis.figures.plots import XY, Heatmap, Space
from analysis.load import load
from analysis.measures.family import families
from analysis.measures.frontier import frontiers
from analysis.measures.importance import Importance, importances
from analysis.measures.recommend import recommend
from analysis.measures.sensitivity import sensitivities
from analysis.report import page
from analysis.report.blocks import Page, Section
from analysis.report.columns import numbers_of
from analysis.report.overview import overview
from mmq_sweeps.store.record import Record
from tests.faults.cells import PARTS, made, stored
from tests.faults.results import FULL, LOWER, WHOLE4, run, shown

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
    heads = [word for word in shown(*mine).split() if word in ("CIDEr", "BLEU-4")]
    assert [name.lower().replace("-", "_") for name in heads] == list(first)


# Cells that narrow a part are not the cells of their bits.


def grid(**selected: Any) -> list[Record]:
    """Make RTN at 3, 4 and 16 bits of every part; ``selected`` narrows the parts of a second such grid, which scores 5."""
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


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Importance:
    """Return the importance of whole parts, each quantized alone."""
    (found,) = importances(load([stored(tmp_path_factory.mktemp("alone"), *grid())]), resamples=2)
    return found


@pytest.mark.parametrize("selected", NARROWED[1:3])
def test_importance_by_bits_is_of_whole_parts_only_and_says_so(
    tmp_path: Path, selected: dict, alone: Importance
) -> None:
    (found,) = importances(load([stored(tmp_path, *grid(**selected))]), resamples=2)
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


def test_figures_named_by_several_options_are_all_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interactive, "save", lambda plot, folder: folder / plot.name)
    monkeypatch.setattr(paper, "save", lambda plot, folder: [folder / f"{plot.name}.png"])
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
    drawn = json.loads(capsys.readouterr().out)
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
    assert '"higher":false' in page.render(Page("", "", [Section("", [plot])]))


def test_where_less_is_better_sentences_say_so_and_show_no_percentage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = stored(tmp_path, *LOWER)
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
    (family,) = families(cells)
    assert overview(family, numbers_of(cells.frame))["shares"] == {}


def test_cells_that_disagree_on_what_is_better_are_not_compared(tmp_path: Path) -> None:
    cells = load([stored(tmp_path, LOWER[0], made("gptq", {"vision": 8}, 8.0, {"wer": 0.101}))])
    assert [title for title, _ in cells.families()] == ["m, t []", 'm, t [lower is better=["wer"]]']
