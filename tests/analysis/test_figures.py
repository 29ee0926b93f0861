from __future__ import annotations

import itertools
import re
import sys
from functools import partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from analysis.__main__ import main
from analysis.cells import Cells
from analysis.figures import interactive, paper
from analysis.figures.catalog import FIGURES, NEEDS, TRANSFER, figures
from analysis.figures.plots import XY, Heatmap, Plot, Series
from analysis.load import load
from analysis.measures import family
from analysis.measures.importance import importances
from mmq_sweeps.store.store import Store
from tests.analysis.grids import PARTS, record, stored

FULL = {"none": [({}, 16.0, 1.0)]}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store two methods at 3, 4 and 16 bits of every part."""
    assignments = [dict(zip(PARTS, widths, strict=True)) for widths in itertools.product((3, 4, 16), repeat=3)]
    rows = [{part: bits for part, bits in one.items() if bits < 16} for one in assignments]

    def cells(loss: float) -> list[tuple[dict[str, int], float, float]]:
        return [
            (
                bits,
                16 - sum(16 - width for width in bits.values()) / 4,
                1 - loss * sum(5 - width for width in bits.values()),
            )
            for bits in rows
            if bits
        ]

    folder = tmp_path_factory.mktemp("grid") / "runs"
    stored(folder, {**FULL, "gptq": cells(0.02), "rtn": cells(0.1)}, items=10)
    return folder


@pytest.fixture(scope="module")
def cells(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load([str(grid)])


def test_a_grid_has_the_figures_that_its_cells_serve(cells: Cells) -> None:
    plots = figures(cells, names=[name for name in FIGURES if name != "importance"])
    # Nothing in the grid narrows its selections, so block groups and layer kinds have nothing to show.
    assert [plot.name.split("-")[0] for plot in plots] == [
        "tradeoff",
        "parts",
        "heatmaps",
        "pairs",
        "space",
        "interaction",
    ]


def test_figures_show_the_cells_scores(cells: Cells) -> None:
    plots = {plot.name.split("-")[0]: plot for plot in figures(cells, names=["parts", "heatmaps"])}
    vision = plots["parts"].panels[0]
    assert isinstance(vision, XY)
    gptq = next(series for series in vision.series if series.label == "gptq")
    assert (list(gptq.x), list(gptq.y)) == ([3, 4], pytest.approx([0.96, 0.98]))
    assert vision.level == pytest.approx(1.0)
    heatmap = plots["heatmaps"].panels[0]
    assert isinstance(heatmap, Heatmap)
    assert (heatmap.title, heatmap.columns, heatmap.rows) == ("gptq, language 16", ["3", "4", "16"], ["3", "4", "16"])
    assert np.array(heatmap.values)[0, 0] == pytest.approx(0.92)
    assert np.array(heatmap.values)[2, 2] == pytest.approx(1.0)


def test_curves_of_one_quantity_share_its_range(cells: Cells) -> None:
    (plot,) = figures(cells, names=["parts"])
    assert len({axes.get_ylim() for axes in paper.draw(plot, 6.9).axes}) == 1


def labels(plot: Plot) -> list[tuple[str, str]]:
    """Return the labels of both axes of each panel, as drawn."""
    return [(axes.get_xlabel(), axes.get_ylabel()) for axes in paper.draw(plot, 6.9).axes[: len(plot.panels)]]


def test_panels_that_share_an_axis_label_it_once(cells: Cells) -> None:
    plots = {plot.name.split("-")[0]: plot for plot in figures(cells, names=["parts", "heatmaps", "interaction"])}
    assert labels(plots["parts"]) == [("bits", "CIDEr"), ("bits", ""), ("bits", "")]
    # Two rows, of gptq and of rtn; the second and the third panel have the same rows.
    assert labels(plots["heatmaps"]) == [
        ("", "connector bits"), ("", "language bits"), ("", ""),
        ("vision bits", "connector bits"), ("vision bits", "language bits"), ("connector bits", ""),
    ]  # fmt: skip
    drawn = paper.draw(plots["interaction"], 6.9).axes
    assert len({axes.get_xlim() for axes in drawn}) == len({axes.get_ylim() for axes in drawn}) == 1


def test_three_parts_have_one_colour_bar_and_their_labels_inside(cells: Cells) -> None:
    (plot,) = figures(cells, names=["space"])
    figure = paper.draw(plot, 6.9)
    spaces = [axes for axes in figure.axes if axes.name == "3d"]
    assert (len(spaces), len(figure.axes)) == (2, 3)
    figure.draw_without_rendering()
    bar = figure.axes[-1].get_window_extent()
    for axes in spaces:
        assert [text.get_text() for text in axes.get_zticklabels()] == ["3", "4", "16"]
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            place = axis.label.get_window_extent()
            assert not place.overlaps(bar)
            assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1


def test_a_part_alone_is_no_grid(tmp_path: Path) -> None:
    alone = [({part: bits}, 16 - bits / 4, 0.5 + bits / 100) for part in PARTS for bits in (2, 3, 4, 8)]
    stored(tmp_path / "runs", {**FULL, "awq": alone})
    told = figures(load([str(tmp_path / "runs")]), names=["heatmaps", "space", "parts", "groups"])
    assert [plot.name.split("-")[0] for plot in told] == ["parts"]


def test_a_page_needs_no_network_and_names_its_cells(cells: Cells, tmp_path: Path) -> None:
    (plot,) = figures(cells, names=["tradeoff"])
    page = interactive.save(plot, tmp_path).read_text()
    assert "gptq vision 3 connector 4 language 4" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)


def test_the_same_cells_give_the_same_files(cells: Cells, tmp_path: Path) -> None:
    (plot,) = figures(cells, names=["tradeoff"])
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for first, second in zip(paper.save(plot, tmp_path / "a"), paper.save(plot, tmp_path / "b"), strict=True):
        assert first.read_bytes() == second.read_bytes()


def test_narrowed_selections_have_figures_of_their_own(published: Path) -> None:
    plots = {plot.name: plot for plot in figures(load([f"published:{published}"]), "cider", names=["groups", "layers"])}
    assert list(plots) == [f"{name}-blip2_opt_2_7b-coco_caption-uniform_captioning" for name in ("groups", "layers")]
    layers = plots["layers-blip2_opt_2_7b-coco_caption-uniform_captioning"]
    language = next(panel for panel in layers.panels if isinstance(panel, XY) and panel.title.startswith("language"))
    attention = next(series for series in language.series if series.label == "attention")
    # Never quantized in that file.
    assert np.ptp(attention.y) < 1e-4


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run ``python -m analysis figures``, with importances from few draws."""
    monkeypatch.setattr(sys, "argv", ["analysis", "figures", *map(str, arguments)])
    monkeypatch.setattr(family, "importances", partial(importances, resamples=2))
    main()


def test_an_unknown_figure_is_an_error(cells: Cells) -> None:
    with pytest.raises(ValueError, match="unknown figures tradeof: choose tradeoff, parts"):
        figures(cells, names=["tradeof"])


def test_heat_maps_of_one_figure_share_their_colours(cells: Cells) -> None:
    (plot,) = figures(cells, names=["pairs"])
    assert len(plot.panels) > 1
    images = [axes.images[0] for axes in paper.draw(plot, 6.9).axes if axes.images]
    assert {image.get_clim() for image in images} == {plot.colour_range()}
    traces = interactive.draw(plot).data
    assert {(trace.zmin, trace.zmax) for trace in traces} == {plot.colour_range()}
    values = np.array([panel.values for panel in plot.panels if isinstance(panel, Heatmap)])
    assert plot.colour_range() == (np.nanmin(values), np.nanmax(values))


def test_points_in_space_share_their_colours_and_one_bar(cells: Cells) -> None:
    (plot,) = figures(cells, names=["space"])
    assert len(plot.panels) == 2
    assert plot.colour_range() == (
        min(min(one.values) for one in plot.panels),
        max(max(one.values) for one in plot.panels),
    )
    markers = [trace.marker for trace in interactive.draw(plot).data]
    assert {(marker.cmin, marker.cmax) for marker in markers} == {plot.colour_range()}
    assert [marker.showscale for marker in markers] == [True, False]
    drawn = [axes.collections[0] for axes in paper.draw(plot, 6.9).axes if axes.name == "3d"]
    assert {points.get_clim() for points in drawn} == {plot.colour_range()}


def test_parts_by_part_at_equal_bits(cells: Cells) -> None:
    (plot,) = figures(cells, names=["pairs"])
    panel = plot.panels[0]
    assert isinstance(panel, Heatmap)
    assert (panel.title, panel.rows) == ("gptq, 3 bits", list(PARTS))
    values = np.array(panel.values)
    assert np.diag(values).tolist() == pytest.approx([0.96] * 3)
    assert values[0, 1] == values[1, 0] == pytest.approx(0.92)


def test_all_of_the_study_s_figures_at_both_widths_and_what_cells_lack_for_the_rest(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, "--source", grid, "--experiment", "paper", "--out", tmp_path / "out")
    written = list((tmp_path / "out").iterdir())
    drawn = FIGURES.keys() - {"groups", "layers", "risk_coverage"}
    assert {path.name.split("-")[0] for path in written} == drawn
    for width, inches in paper.COLUMN_INCHES.items():
        pictures = [path for path in written if path.name.endswith(f"-{width}.png")]
        assert {path.name.split("-")[0] for path in pictures} == drawn
        for path in pictures:
            with Image.open(path) as image:
                # Cropped to the drawing, so never wider than the column, and not much narrower.
                assert 0.7 * inches < image.width / paper.DPI <= inches + 0.1, path.name
            assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    said = capsys.readouterr()
    assert f"{len(written)} files in {tmp_path / 'out'}" in said.out
    told = sorted(said.err.splitlines())
    assert [line.split(": ")[1] for line in told] == ["groups", "layers", "risk_coverage"]
    assert told[0].startswith("not drawn: groups: needs cells that narrow a part's blocks")
    assert {*FIGURES, TRANSFER} == NEEDS.keys()


def test_risk_over_coverage_of_cells_that_hold_confidence(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for bits, errors in (({}, [0, 0, 0, 1]), ({"vision": 4}, [1, 0, 0, 1])):
        one = record("gptq", bits, 8.0 if bits else 16.0, 0.5)
        totals = [[1 - place / 10, float(error)] for place, error in enumerate(errors)]
        items = [
            {"id": str(place), "prediction": "x", "scores": {"cider": 0.5}, "totals": {"aurc": total}}
            for place, total in enumerate(totals)
        ]
        store.save(one, items)
    (plot,) = figures(load([str(tmp_path)]), names=["risk_coverage"])
    full, quantized = plot.panels[0].series
    assert (full.label, list(full.x)) == ("full precision", [0.25, 0.5, 0.75, 1.0])
    assert list(full.y) == [0, 0, 0, 0.25]
    assert list(quantized.y) == pytest.approx([1, 1 / 2, 1 / 3, 1 / 2])


@pytest.mark.parametrize("inches", paper.COLUMN_INCHES.values())
def test_a_legend_of_long_names_is_no_wider_than_its_figure(inches: float) -> None:
    names = [f"gptq vision {bits} connector {bits} language {bits}" for bits in (2, 3, 4, 5)]
    series = [Series(name, [1, 2], [place, place]) for place, name in enumerate(names)]
    with mpl.rc_context(paper.SETTINGS):
        figure = paper.draw(Plot("a", "a", [XY("", "x", "y", series)]), inches)
        figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().width <= figure.bbox.width
