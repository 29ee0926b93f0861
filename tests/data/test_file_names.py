"""Templates of file names mean the same to every reader, and errors name key, value and choices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mmq_sweeps.data.coco import CocoCaptions
from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.vqav2 import VqaV2
from tests.data.layouts import write_coco, write_gqa, write_vqav2

SPLITS = {Gqa: "testdev_balanced", VqaV2: "val2014"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_gqa(tmp_path)
    write_vqav2(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("reader", "template", "identity", "reason"),
    [
        (Gqa, "{id:012d}.jpg", "'n161313'", "Unknown format code 'd'"),
        (Gqa, "{image}.jpg", "'n161313'", "KeyError"),
        (Gqa, "{}.jpg", "'n161313'", "IndexError"),
        (Gqa, "{id", "'n161313'", "ValueError"),
        (Gqa, "{id.name}.jpg", "'n161313'", "AttributeError"),
        (VqaV2, "{number}.jpg", "262148", "KeyError"),
        (VqaV2, "{id:s}.jpg", "262148", "Unknown format code 's'"),
        (VqaV2, "{id[0]}.jpg", "262148", "TypeError"),
    ],
)
def test_a_template_that_does_not_fit_an_image_id_is_named_with_both(
    reader: Any, template: str, identity: str, reason: str, root: Path
) -> None:
    begins = re.escape(f"file_names={template!r} does not fit split={SPLITS[reader]!r} and id={identity} (")
    ends = re.escape("; only {split} and {id} may stand in braces")
    with pytest.raises(ValueError, match=f"^{begins}.*{reason}.*{ends}$"):
        len(reader(root=str(root), split=SPLITS[reader], file_names=template))


@pytest.mark.parametrize(
    ("key", "template"),
    [("annotations", "{year}.json"), ("annotations", "{split:d}.json"), ("images", "{split.name}"), ("images", "{")],
)
def test_a_template_of_a_path_is_named_with_its_key(key: str, template: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(ValueError, match="^" + re.escape(f"{key}={template!r} does not fit split='val2017' (")):
        len(CocoCaptions(root=str(tmp_path), split="val2017", **{key: template}))


@pytest.mark.parametrize(
    ("reader", "template", "ids"),
    [(Gqa, "same.jpg", "n161313 and n7"), (Gqa, "{id:.1}.jpg", "n161313 and n7"), (VqaV2, "a.jpg", "262148 and 42")],
)
def test_a_template_that_shows_two_images_one_file_is_refused(reader: Any, template: str, ids: str, root: Path) -> None:
    """Otherwise every question would be asked about the same picture, and scored."""
    with pytest.raises(ValueError, match=rf"file_names='.*' names one file, .*\.jpg, for the images {ids}; it needs"):
        len(reader(root=str(root), split=SPLITS[reader], file_names=template))
