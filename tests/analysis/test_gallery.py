"""The gallery of the documents: every figure is on the page, small, and the script that makes it works."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from analysis.figures.catalog import FIGURES
from tests.analysis.grids import PARTS, stored

DOCS = Path(__file__).resolve().parents[2] / "docs"
LARGEST = 100_000


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
    for path in shown:
        assert (DOCS / path).stat().st_size < LARGEST, path


def test_the_numbers_beside_the_study_s_figures_are_those_that_it_prints(gallery: ModuleType) -> None:
    lines = (DOCS / gallery.PAGE).read_text().splitlines()
    head = lines.index("| part | drawn | 95% interval | printed in the study |")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 : head + 5]]
    assert {part: float(printed) for part, _, _, printed in rows} == gallery.PRINTED
    assert all(abs(float(drawn) - float(printed)) <= 0.2 for _, drawn, _, printed in rows)


def test_the_script_writes_the_page_again_and_keeps_the_study_s_part(gallery: ModuleType, tmp_path: Path) -> None:
    widths = itertools.product((3, 16), repeat=3)
    cells = [dict(zip(PARTS, one, strict=True)) for one in widths]
    rows = [({part: bits for part, bits in one.items() if bits < 16}, float(sum(one.values())), 0.5) for one in cells]
    stored(tmp_path / "runs", {"none": rows[-1:], "rtn": rows[:-1]})
    (tmp_path / gallery.PAGE).write_text(f"old\n{gallery.MARK}\nthe study's part\n")
    gallery.write(str(tmp_path / "runs"), None, tmp_path, ["parts", "space"])
    page = (tmp_path / gallery.PAGE).read_text()
    assert "8 cells of `tiny_blip2`" in page
    assert page.endswith(f"{gallery.MARK}\nthe study's part\n")
    for path in gallery.pictures(page):
        with Image.open(tmp_path / path) as image:
            assert image.format == "PNG"
    assert len(gallery.pictures(page)) == 2
