"""Read COCO's captions and Karpathy's splits of them; behaviour that all readers of published sets share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmq_sweeps.data import images
from mmq_sweeps.data.coco import CocoCaptions, CocoKarpathy
from tests.data.layouts import SIZE, write_coco, write_coco_karpathy, write_json, write_picture


def read(root: Path, split: str = "val2017", **fields: object) -> CocoCaptions:
    return CocoCaptions(root=str(root), split=split, **fields)  # type: ignore[arg-type]


def test_examples_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    write_coco(tmp_path)
    reader = read(tmp_path)
    assert [example.id for example in reader] == ["37", "9", "139", "25"]
    assert reader[2].references == ("A picture of thing 139.\n", "One more look at thing 139.\n")
    assert reader.paths[0] == tmp_path / "val2017" / "000000000037.jpg"
    assert (reader[0].image.size, reader[0].image.mode) == (SIZE, "RGB")
    assert reader[0].image.tobytes() == Image.open(reader.paths[0]).tobytes()
    assert [example.id for example in read(tmp_path, count=2)] == ["37", "9"]
    assert (len(read(tmp_path, count=2)), len(reader)) == (2, 4)
    assert reader.sources() == [tmp_path / "annotations" / "captions_val2017.json"]


def test_an_image_without_captions_is_no_example(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    content = json.loads(path.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 9]
    write_json(path, content)
    assert [example.id for example in read(tmp_path)] == ["37", "139", "25"]


def test_a_draw_is_the_same_everywhere_and_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    write_coco(tmp_path, "train2017", range(1, 101))
    drawn = [example.id for example in read(tmp_path, "train2017", count=8, seed=0)]
    # Written down once: another platform, Python or numpy must draw the same.
    assert drawn == ["16", "46", "31", "87", "92", "96", "10", "93"]
    larger = [example.id for example in read(tmp_path, "train2017", count=50, seed=0)]
    assert larger[:8] == drawn
    assert len(set(larger)) == 50
    other = [example.id for example in read(tmp_path, "train2017", count=8, seed=1)]
    assert other != drawn
    everything = [example.id for example in read(tmp_path, "train2017", seed=0)]
    assert sorted(everything, key=int) == [str(number) for number in range(1, 101)]


def test_a_split_of_one_s_own_may_hold_images_of_any(tmp_path: Path) -> None:
    write_coco(tmp_path)
    reader = read(tmp_path, "mine", annotations="annotations/captions_val2017.json", images="val2017")
    assert [example.id for example in reader] == ["37", "9", "139", "25"]


def test_a_folder_of_one_s_own(tmp_path: Path) -> None:
    content = {
        "images": [{"id": "a", "file_name": "cat.png"}, {"id": "b", "file_name": "more/dog.jpg"}],
        "annotations": [{"image_id": "b", "caption": "a dog"}, {"image_id": "a", "caption": "a cat"}],
    }
    write_json(tmp_path / "my captions" / "mine.json", content)
    write_picture(tmp_path / "bilder" / "more" / "dog.jpg", 1)
    Image.new("L", (5, 4), 7).save(tmp_path / "bilder" / "cat.png")
    reader = read(tmp_path / "my captions", "mine", annotations="{split}.json", images=str(tmp_path / "bilder"))
    assert [(example.id, example.references) for example in reader] == [("a", ("a cat",)), ("b", ("a dog",))]
    assert reader[0].image.getpixel((0, 0)) == (7, 7, 7)


def test_annotations_are_read_again_when_they_change(tmp_path: Path) -> None:
    write_coco(tmp_path)
    assert len(read(tmp_path)) == 4
    write_coco(tmp_path, ids=(1, 2))
    assert len(read(tmp_path)) == 2


def test_karpathy_s_splits(tmp_path: Path) -> None:
    write_coco_karpathy(tmp_path)
    found = CocoKarpathy(root=str(tmp_path), split="test")
    assert [example.id for example in found] == ["1", "5"]
    assert found[0].references[:2] == ("A thing 1.", "One thing 1.")
    assert len(found[0].references) == 5
    both = CocoKarpathy(root=str(tmp_path), split="train+restval")
    assert [path.relative_to(tmp_path).as_posix() for path in both.paths] == [
        "val2014/COCO_val2014_000000000002.jpg",
        "train2014/COCO_train2014_000000000003.jpg",
    ]
    with pytest.raises(ValueError, match="has no split 'training'; choose test, restval, train, val, or several"):
        len(CocoKarpathy(root=str(tmp_path), split="training"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"count": 0}, "count=0: choose an integer from 1"),
        ({"count": True}, "count=True: choose"),
        ({"seed": -1}, "seed=-1: choose an integer from 0"),
        ({"count": 5}, "count=5, but it has 4 images; choose 1 to 4"),
        (
            {"images": "{year}"},
            r"images='\{year\}' does not fit split='val2017' \(KeyError\('year'\)\); only \{split\} may",
        ),
        ({"images": "elsewhere"}, "there are no images in .*elsewhere; expected 4 images, the first 000000000037.jpg"),
    ],
)
def test_fields_that_do_not_fit(fields: dict, message: str, tmp_path: Path) -> None:
    write_coco(tmp_path)
    with pytest.raises(ValueError, match=message):
        len(read(tmp_path, **fields))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"root=.*absent: there is no such folder.*data prepare coco_caption --root"):
        read(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"captions_val2017.json is missing\. To get it: python -m mmq_sweeps.data"):
        read(tmp_path)
    write_coco(tmp_path, "train2017")
    with pytest.raises(
        ValueError, match=r"captions_val2017.json is missing\. The folder has captions_train2017.json\."
    ):
        read(tmp_path)


def test_a_folder_without_images(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for path in (tmp_path / "val2017").iterdir():
        path.unlink()
    (tmp_path / "val2017" / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"no images in .*val2017; expected 4 images, the first 000000000037.jpg\. To"):
        len(read(tmp_path))
    (tmp_path / "val2017" / "000000000139.jpg").touch()
    assert len(read(tmp_path)) == 4  # faults of single images are reported by images.problems


def test_annotations_of_another_split(tmp_path: Path) -> None:
    write_coco(tmp_path)
    write_coco(tmp_path, "train2017", (1, 2, 3))
    told = "captions_train2017.json is of another split: it names http://images.cocodataset.org/train2017/0"
    with pytest.raises(ValueError, match=told):
        len(read(tmp_path, annotations="annotations/captions_train2017.json"))
    path = tmp_path / "annotations" / "captions_train2017.json"
    content = json.loads(path.read_text())
    for entry in content["images"]:
        del entry["coco_url"]
    write_json(path, content)
    told = (
        "val2017 has 4 images, but none of those that captions_train2017.json names.*3 images, the first 000000000001"
    )
    with pytest.raises(ValueError, match=told):
        len(read(tmp_path, annotations="annotations/captions_train2017.json"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"images": [{"id": 1, "file_', "is cut short or no JSON .*get it again"),
        ("[1]", "holds a list; expected a captions file"),
        ('{"questions": []}', "has no list 'images' but questions; expected a captions file such as"),
        ('{"images": [{"id": 1}], "annotations": []}', r"images\[0\] has no 'file_name' but id"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}',
            r"annotations\[0\] has no 'caption' but image_id, bbox; expected a captions file",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            r"annotations\[0\] is of image 2, which 'images' does not have",
        ),
        (
            '{"images": [{"id": [1], "file_name": "a"}], "annotations": []}',
            r"images\[0\] has the id \[1\], which is neither a whole number nor text",
        ),
        ('{"images": [], "annotations": []}', "captions_val2017.json has no images of it"),
    ],
)
def test_annotations_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        len(read(tmp_path))


def damage(folder: Path) -> dict[str, Path]:
    """Write a whole image and one of each kind of damage; return the files by kind."""
    found = {name: folder / f"{name}.jpg" for name in ("whole", "truncated", "empty", "missing", "text", "folder")}
    for name in ("whole", "truncated"):
        write_picture(found[name], 3)
    content = found["truncated"].read_bytes()
    found["truncated"].write_bytes(content[: len(content) * 2 // 3])
    found["empty"].touch()
    found["text"].write_text("<html>404</html>")
    found["folder"].mkdir()
    return found


def test_images_that_cannot_be_used_are_told_apart(tmp_path: Path) -> None:
    found = damage(tmp_path / "ünter wegs")
    told = images.problems(found.values())
    assert told == {
        found["truncated"]: "truncated",
        found["empty"]: "empty",
        found["missing"]: "missing",
        found["text"]: "not an image",
        found["folder"]: "unreadable: Is a directory",
    }
    text = images.describe(told, len(found), shown=1)
    assert text.startswith(
        "5 of 6 images cannot be used (1 truncated, 1 empty, 1 missing, 1 not an image, 1 unreadable)"
    )
    assert text.endswith(f"{found['truncated']}: truncated, ...")
    with pytest.raises(images.ImageError, match=r"truncated\.jpg: truncated"):
        images.open_image(found["truncated"])


def test_images_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, cache = damage(tmp_path), tmp_path / "cache" / "images.json"
    first = images.problems(found.values(), cache)
    decoded: list[Path] = []
    monkeypatch.setattr(images, "_judged", lambda path: decoded.append(path) or images.Verdict(None))
    assert images.problems(found.values(), cache) == first
    assert decoded == []
    whole = found["whole"].read_bytes()
    found["truncated"].write_bytes(whole)
    found["missing"].write_bytes(whole)
    os.utime(found["whole"], ns=(1, 1))
    images.problems(found.values(), cache)
    assert sorted(path.stem for path in decoded) == ["missing", "truncated", "whole"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0, "images": {}}', '{"version": 1}'])
def test_a_damaged_cache_is_written_anew(content: str, tmp_path: Path) -> None:
    found, cache = damage(tmp_path), tmp_path / "images.json"
    cache.write_text(content)
    told: list[tuple[int, int]] = []
    assert len(images.problems(found.values(), cache, lambda done, total: told.append((done, total)))) == 5
    assert told[-1] == (6, 6)
    assert len(json.loads(cache.read_text())["images"]) == 5


def test_orientation_is_left_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    assert images.open_image(path).size == (8, 4)


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    write_coco(tmp_path)
    program = (
        "import sys\nfrom mmq_sweeps.data import coco, flickr30k, gqa, images, vqav2, __main__\n"
        f"reader = coco.CocoCaptions(root={str(tmp_path)!r}, split='val2017')\n"
        "assert not images.problems(reader.paths)\n"
        "print(len(reader), [name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "4 []"
