"""The images of a report's samples are found in a data set on this machine."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from analysis.load import load
from analysis.report.blocks import Sample, Samples
from analysis.report.columns import numbers_of
from analysis.report.samples import THUMBNAIL, examples_of, samples
from mmq_sweeps.store.store import Store
from tests.analysis.grids import record
from tests.data.hub_folders import write_parquet
from tests.data.layouts import SIZE, write_coco

IDS = (37, 9, 139, 25)
COCO = {
    "limit": len(IDS),
    "split": "val2017",
    "data": {"_target_": "mmq_sweeps.data.coco.CocoCaptions", "annotations": "a digest"},
}


def told(folder: Path, images: Path | None) -> tuple[Samples, list[str]]:
    """Return samples of full precision and of a cell that disagrees with it on two of four images."""
    store = Store.open(folder / "runs")
    for method, bits, said in (("none", {}, ("a", "b", "c", "d")), ("gptq", {"vision": 3}, ("a", "x", "y", "d"))):
        one = record(method, bits, 16.0, 1.0)
        items = [
            {"id": str(item), "prediction": text, "scores": {"cider": 1.0}}
            for item, text in zip(IDS, said, strict=True)
        ]
        store.save(replace(one, cell={**one.cell, "task": COCO}), items)
    cells = load([str(folder / "runs")])
    chosen = [row for _, row in cells.frame.iterrows()]
    shown, sentences = samples(cells, "cider", chosen, numbers_of(cells.frame), images)
    assert shown is not None
    return shown, sentences


def test_rows_with_several_images_show_them_side_by_side_and_those_without_none(tmp_path: Path) -> None:
    write_parquet(tmp_path, [[Image.new("RGB", (8, 4)), Image.new("RGB", (6, 8))], []])
    task = {"limit": None, "split": "test", "data": {"_target_": "hub", "image": "images"}}
    found, sentences = examples_of(task, "mine", {"test/0", "test/1"}, tmp_path)
    assert not sentences
    assert opened(found["test/0"].image).size == (14, 8)
    assert found["test/1"] == Sample("test/1", "", "what is in test picture 1?", ("red", "a red one"))
    _, sentences = examples_of(task, "mine", {"test/0"}, None)
    assert sentences == ["No images: the records of mine do not say where they lie; name their folder with --images"]


def opened(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_images_of_a_published_set_are_read_where_they_lie(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", ids=IDS)
    shown, sentences = told(tmp_path, tmp_path / "coco")
    assert [row.id for row in shown.rows] == ["9", "139"]
    assert sentences == [
        "Shown are the first 2 items that cells answer differently.",
        "Of 4 items, gptq vision 3 says the same as full precision to 2.",
    ]
    # The answers of the two cells to these items, by number.
    assert shown.answers == {1: [("b", 1.0), ("c", 1.0)], 0: [("x", 1.0), ("y", 1.0)]}
    for row in shown.rows:
        assert opened(row.image).size == SIZE
        assert row.right == (f"A picture of thing {row.id}.\n", f"One more look at thing {row.id}.\n")


def test_a_large_image_is_a_thumbnail(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", ids=IDS)
    Image.new("RGB", (1200, 600), "red").save(tmp_path / "coco" / "val2017" / "000000000009.jpg")
    shown, _ = told(tmp_path, tmp_path / "coco")
    small = opened(shown.rows[0].image)
    assert (small.size, small.format) == ((THUMBNAIL, THUMBNAIL // 2), "JPEG")


@pytest.mark.parametrize(("place", "sentence"), [(None, "name their folder with --images"), ("nowhere", "No images: ")])
def test_images_that_are_not_there_are_told(tmp_path: Path, place: str | None, sentence: str) -> None:
    shown, sentences = told(tmp_path, None if place is None else tmp_path / place)
    assert [row.image for row in shown.rows] == ["", ""]
    assert sentence in sentences[-1]
