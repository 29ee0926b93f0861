"""The gallery of the documents: every figure is on the page, small, and the script that makes it works."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import re
import shutil
import statistics
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from PIL import Image

from analysis.figures.catalog import FIGURES, figures
from analysis.load import load
from tests.analysis.grids import PARTS, stored

DOCS = Path(__file__).resolve().parents[2] / "docs"
LARGEST = 100_000
Uniform = dict[tuple[int, str, tuple[str, ...]], list[float]]
GPTQ = {"vision": "vit_bits", "connector": "qformer_bits", "language": "llm_bits"}
UNIFORM = {"vision": "VIT", "connector": "QFORMER", "language": "LLM"}
KINDS = {"attention": "ATTENTION", "mlp": "MLP", "all": "BOTH"}


@pytest.fixture(scope="module")
def gallery() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery", DOCS / "gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_every_figure_as_a_small_picture(gallery: ModuleType) -> None:
    page = (DOCS / gallery.PAGE).read_text()
    shown = gallery.pictures(page)
    assert [name for name in FIGURES if f"images/gallery_{name}.png" not in shown] == []
    of_study = {"gptq": {"space"}, "uniform": {"groups", "layers"}}
    both = {"tradeoff", "parts", "heatmaps", "pairs", "importance", "interaction"}
    for source, own in of_study.items():
        assert {path for path in shown if path.endswith(f"_{source}.png")} == {
            f"images/study_{name}_{source}.png" for name in both | own
        }
    for path in shown:
        assert (DOCS / path).stat().st_size < LARGEST, path


def test_the_numbers_beside_the_study_s_figures_are_those_that_it_prints(gallery: ModuleType) -> None:
    head, *rows = tables("gptq")["importance"]
    assert head == ["part", "drawn", "95% from", "95% to", "printed in the study"]
    assert {row[0]: float(row[-1]) for row in rows} == gallery.PRINTED
    assert all(abs(float(row[1]) - float(row[-1])) <= 0.2 for row in rows)


def tables(source: str) -> dict[str, list[list[str]]]:
    """Return the rows of the tables that the page links about a file of the study, heads first, by the name of the figure."""
    named = re.findall(rf"\]\((tables/study_(\w+)_{source}\.csv)\)", (DOCS / "gallery.md").read_text())
    return {name: [*csv.reader((DOCS / path).read_text().splitlines())] for path, name in named}


def test_every_picture_of_the_study_has_its_numbers_above_it(gallery: ModuleType) -> None:
    page = (DOCS / gallery.PAGE).read_text()
    pairs = re.findall(r"\(tables/(study_\w+)\.csv\)\):\n\n!\[[^\]]*\]\(images/(study_\w+)\.png\)", page)
    assert [numbers for numbers, _ in pairs] == [picture for _, picture in pairs]
    assert len(pairs) == sum("study_" in path for path in gallery.pictures(page))


@pytest.fixture(scope="module")
def gptq(published: Path) -> dict[tuple[int, ...], float]:
    """Return CIDEr by the bits of vision, connector and language, from the study's file."""
    rows = pd.read_csv(published / "gptq_captioning.csv")
    bits = rows[[*GPTQ.values()]].itertuples(index=False, name=None)
    return dict(zip(bits, rows["cider"], strict=True))


@pytest.fixture(scope="module")
def uniform(published: Path) -> Uniform:
    """Return CIDEr by bits, kind and quantized block groups; rows that the study's file has twice count once."""
    rows = pd.read_csv(published / "uniform_captioning.csv")
    flags = [f"{part}_{group}" for part in UNIFORM.values() for group in ("FIRST", "MIDDLE", "LAST")]
    found: Uniform = {}
    for _, row in rows.iterrows():
        chosen = tuple(flag for flag in flags if row[flag])
        found.setdefault((row["bit_size"], row["type"], chosen), []).append(row["CIDEr"])
    return found


def test_the_figures_show_what_the_study_s_files_hold(gallery: ModuleType, published: Path) -> None:
    """Each picture is drawn from the panels whose numbers stand beside it."""
    names = [name for name in FIGURES if name != "importance"]  # Its forests take half a minute: test_importance.py.
    plots = figures(load([f"published:{published}"]), "cider", names)
    assert len(plots) == 13
    for plot in plots:
        with (DOCS / "tables" / f"{gallery.study_name(plot)}.csv").open() as file:
            assert [*csv.reader(file)] == gallery.numbers(plot), plot.name


def test_the_numbers_of_gptq_are_those_of_the_file(gptq: dict[tuple[int, ...], float]) -> None:
    told, full, parts = tables("gptq"), 16, list(GPTQ)

    def score(**bits: int) -> str:
        return f"{gptq[tuple(bits.get(part, full) for part in parts)]:.4f}"

    for _, name, bits, cider, share in told["tradeoff"][1:]:
        own = tuple(int(name.split()[place]) for place in (2, 4, 6))
        assert f"{gptq[own]:.4f}" == cider
        assert f"{gptq[own] / gptq[16, 16, 16]:.1%}" == share
        assert min(own) <= float(bits) <= max(own) + 1
    widths = [int(head.split()[0]) for head in told["parts"][0][2:]]
    for row in told["parts"][1:]:
        (part,) = (part for part in parts if row[0] == f"{part} alone")
        assert row[2:] == [score(**{part: width}) if part != "language" or width > 2 else "" for width in widths]
    for name, *values in told["pairs"][1:]:
        chosen = name.split(" and ")
        known = [width for width in widths if "language" not in chosen or width > 2]
        assert [value for value in values if value] == [score(**dict.fromkeys(chosen, width)) for width in known]
    for _, cell, cider in told["heatmaps"][1:]:
        bits = {part: int(width) for part, width in re.findall(r"(\w+) bits (\d+)", cell)}
        assert score(**bits) == cider
    for level, *means in told["space"][1:]:
        for place, mean in enumerate(means):
            values = [value for bits, value in gptq.items() if bits[place] == int(level)]
            assert mean == (f"{statistics.fmean(values):.4f}" if values else "")


def test_the_damages_of_gptq_are_those_of_the_file(gptq: dict[tuple[int, ...], float]) -> None:
    damage = {bits: gptq[16, 16, 16] - value for bits, value in gptq.items()}
    pairs = [bits for bits in damage if sum(width < 16 for width in bits) == 2]
    alone = [
        sum(
            damage[tuple(width if place == own else 16 for place in range(3))]
            for own, width in enumerate(bits)
            if width < 16
        )
        for bits in pairs
    ]
    means = [f"{statistics.fmean(values):.4f}" for values in ([damage[bits] for bits in pairs], alone)]
    assert tables("gptq")["interaction"][1:] == [["gptq", str(len(pairs)), *means]]


def test_the_numbers_of_uniform_quantization_are_those_of_the_file(uniform: Uniform) -> None:
    told, thirds = tables("uniform"), {"front": ["FIRST"], "middle": ["MIDDLE"], "end": ["LAST"]}

    def scores(width: int, kind: str, *chosen: tuple[str, list[str]]) -> set[str]:
        flags = tuple(f"{UNIFORM[part]}_{group}" for part, groups in chosen for group in groups)
        return {f"{value:.4f}" for value in uniform.get((width, kind, flags), [])}

    every = ["FIRST", "MIDDLE", "LAST"]
    for name in ("parts", "groups", "layers"):
        head, *rows = told[name]
        widths = [int(width.split()[0]) for width in head[2:]]
        for title, label, *values in rows:
            part = title.split()[0].strip(",")
            groups, kind = thirds.get(label, every), KINDS.get(label, "BOTH")
            for width, value in zip(widths, values, strict=True):
                held = scores(width, kind, (part, groups))
                assert value in held if value else not held, (name, title, label, width)
    for name, *values in told["pairs"][1:]:
        chosen = [(part, every) for part in name.split(" and ")]
        for head, value in zip(told["pairs"][0][1:], values, strict=True):
            assert value in scores(int(head.split()[0]), "BOTH", *chosen), (name, head)


def test_the_script_writes_the_page_again_and_keeps_the_study_s_part(gallery: ModuleType, tmp_path: Path) -> None:
    widths = itertools.product((3, 16), repeat=3)
    cells = [dict(zip(PARTS, one, strict=True)) for one in widths]
    rows = [({part: bits for part, bits in one.items() if bits < 16}, float(sum(one.values())), 0.5) for one in cells]
    stored(tmp_path / "runs", {"none": rows[-1:], "rtn": rows[:-1]})
    study = "images/study_space_gptq.png"
    (tmp_path / "images").mkdir()
    shutil.copy(DOCS / study, tmp_path / study)
    gallery.write(str(tmp_path / "runs"), None, tmp_path, ["parts", "space"])
    page = (tmp_path / gallery.PAGE).read_text()
    assert re.search(r"shows 8\s+cells of\s+`tiny_blip2`", page)
    assert f"(tables/study_space_gptq.csv)):\n\n![space, GPTQ]({study})" in page
    for path in gallery.pictures(page):
        with Image.open(tmp_path / path) as image:
            assert image.format == "PNG"
    assert gallery.pictures(page) == ["images/gallery_parts.png", "images/gallery_space.png", study]
    assert (tmp_path / study).read_bytes() == (DOCS / study).read_bytes()
