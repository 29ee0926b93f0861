"""Reading Flickr30k in Karpathy's splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmq_sweeps.data.flickr30k import Flickr30k
from tests.data.layouts import karpathy_image, write_flickr30k, write_json


def test_images_with_five_captions_each(tmp_path: Path) -> None:
    write_flickr30k(tmp_path, test=3, train=5)
    found = Flickr30k(root=str(tmp_path), split="test")
    assert [example.id for example in found] == ["1000092795", "1000092797", "1000092799"]
    assert found.paths[1] == tmp_path / "flickr30k-images" / "1000092797.jpg"
    assert found[1].references == ("A thing 2.", "One thing 2.", "Some thing 2.", "The thing 2.", "Any thing 2.")
    drawn = Flickr30k(root=str(tmp_path), split="train", count=4, seed=3)
    assert len({example.id for example in drawn} - {example.id for example in found}) == 4
    assert found[0].image.mode == "RGB"


def test_images_in_a_folder_of_another_name(tmp_path: Path) -> None:
    write_flickr30k(tmp_path, folder="flickr30k_images")
    with pytest.raises(ValueError, match=r"no images in .*flickr30k-images.*data prepare flickr30k --root"):
        len(Flickr30k(root=str(tmp_path), split="test"))
    assert len(Flickr30k(root=str(tmp_path), split="test", images="flickr30k_images")) == 4


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            {"filename": "a.jpg", "split": "test"},
            r"images\[0\] has no 'sentences' but filename, split; expected one of",
        ),
        (
            {**karpathy_image(0, "test", "a.jpg"), "sentences": None},
            r"images\[0\] needs a filename that is text and a list of sentences",
        ),
        (
            {**karpathy_image(0, "test", "a.jpg"), "sentences": [{}]},
            r"a sentence of images\[0\] has no 'raw' but nothing",
        ),
        ("a.jpg", r"images\[0\] has no 'filename' but 'a.jpg'"),
    ],
)
def test_a_file_of_another_form(image: object, message: str, tmp_path: Path) -> None:
    write_json(tmp_path / "dataset_flickr30k.json", {"images": [image]})
    with pytest.raises(ValueError, match=message):
        len(Flickr30k(root=str(tmp_path), split="test"))
