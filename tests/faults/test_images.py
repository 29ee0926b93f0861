"""Images are read as a person sees them, or fail with an error that names the file."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data.images import FRAMES, TURNED, ImageError, inspect, open_image, problems
from mmq_sweeps.data.vqav2 import VqaV2
from tests.data.layouts import write_flickr30k, write_vqav2

# 256 steps from black to white, with 16 bits.
RAMP = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
GREY = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)


def pixels(path: Path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(path: Path, image: Image.Image, mode: str, **options: Any) -> Path:
    image.save(path, **options)
    with Image.open(path) as opened:
        assert opened.mode == mode
    return path


@pytest.mark.parametrize(
    ("name", "values", "mode"),
    [
        ("grey.png", RAMP, "I;16"),
        ("grey.tif", RAMP, "I;16"),
        ("big_endian.tif", RAMP.astype(">u2"), "I;16B"),
        ("grey.pgm", RAMP, "I"),
    ],
)
def test_grey_of_16_bits_keeps_its_shades(name: str, values: np.ndarray, mode: str, tmp_path: Path) -> None:
    assert np.array_equal(pixels(saved(tmp_path / name, Image.fromarray(values), mode)), GREY)


def write_tiff(path: Path, width: int, bits: int, photometric: int, row: bytes) -> Path:
    """Write a TIFF of one row of grey, with the tags that Pillow does not let a caller choose."""
    tags = [
        (256, width),
        (257, 1),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, 1),
        (279, len(row)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    place = 8 + len(row) + len(row) % 2
    head = b"II*\0" + struct.pack("<I", place)
    path.write_bytes((head + row).ljust(place, b"\0") + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0")
    return path


def test_a_tiff_is_scaled_by_the_bits_that_it_says_and_its_zero_may_be_white(tmp_path: Path) -> None:
    twelve = write_tiff(tmp_path / "twelve.tif", 2, 12, 1, bytes([0xFF, 0xF8, 0x00]))
    assert pixels(twelve)[0, :, 0].tolist() == [255, 128]
    white_is_zero = write_tiff(tmp_path / "white.tif", 3, 16, 0, struct.pack("<3H", 0, 65535, 32768))
    assert pixels(white_is_zero)[0, :, 0].tolist() == [255, 0, 127]


def test_what_is_transparent_is_white_and_not_the_colour_underneath(tmp_path: Path) -> None:
    red = np.zeros((3, 1, 4), np.uint8)
    red[..., 0], red[:, 0, 3] = 200, [0, 128, 255]
    picture = Image.fromarray(red)
    for name, mode in (("rgba.png", "RGBA"), ("rgba.tif", "RGBA")):
        path = saved(tmp_path / name, picture, mode)
        assert pixels(path)[:, 0].tolist() == [[255, 255, 255], [227, 127, 127], [200, 0, 0]]
    grey = pixels(saved(tmp_path / "la.png", picture.convert("LA"), "LA"))
    assert grey[:, 0].tolist() == [[255] * 3, [157] * 3, [60] * 3]


@pytest.mark.parametrize(
    ("image", "mode", "key"),
    [
        (Image.fromarray(RAMP), "I;16", 0),
        (Image.fromarray(GREY[..., 0]), "L", 0),
        (Image.fromarray(GREY), "RGB", (0, 0, 0)),
        (Image.fromarray(GREY[..., 0]).convert("P"), "P", 0),
    ],
    ids=["16 bits", "grey", "colour", "palette"],
)
def test_a_colour_that_is_called_transparent_is_white(image: Image.Image, mode: str, key: Any, tmp_path: Path) -> None:
    found = pixels(saved(tmp_path / "key.png", image, mode, transparency=key))
    assert found[0, 0].tolist() == [255] * 3
    assert np.array_equal(found.reshape(-1, 3)[1:], GREY.reshape(-1, 3)[1:])


def test_a_palette_with_shares_of_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([200, 0, 0] * 3)
    image.putdata([0, 1, 2])
    path = saved(tmp_path / "palette.png", image, "P", transparency=bytes([0, 128, 255]))
    assert pixels(path)[0].tolist() == [[255, 255, 255], [227, 127, 127], [200, 0, 0]]


def test_one_bit_and_four_inks_are_shown_as_viewers_do(tmp_path: Path) -> None:
    bits = saved(tmp_path / "bits.png", Image.fromarray(RAMP > 30000), "1")
    assert set(np.unique(pixels(bits))) == {0, 255}
    inks = saved(tmp_path / "inks.jpg", Image.new("RGB", (8, 8), (200, 0, 0)).convert("CMYK"), "CMYK", quality=95)
    assert np.abs(pixels(inks).astype(int) - [200, 0, 0]).max() <= 3


@pytest.mark.parametrize(
    ("values", "mode"),
    [(RAMP.astype(np.float32) / 65535, "F"), (RAMP.astype(np.int32), "I")],
    ids=["float", "32 bits"],
)
def test_pixels_without_an_agreed_range_are_refused_by_name(values: np.ndarray, mode: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.tif", Image.fromarray(values), mode)
    with pytest.raises(ImageError, match=rf"odd\.tif: unsupported: pixels of mode {mode}; save it as RGB"):
        open_image(path)
    cache = tmp_path / "verdicts.json"
    assert problems([path], cache) == problems([path], cache)
    assert problems([path], cache)[path].startswith("unsupported")


def test_verdicts_of_an_earlier_version_are_not_believed(tmp_path: Path) -> None:
    path = saved(tmp_path / "odd.tif", Image.fromarray(RAMP.astype(np.float32)), "F")
    cache, status = tmp_path / "verdicts.json", path.stat()
    entry = f'"{path.absolute()}": [{status.st_size}, {status.st_mtime_ns}, null, []]'
    cache.write_text(f'{{"version": 1, "images": {{{entry}}}}}')
    assert path in problems([path], cache)


def test_a_picture_that_is_broken_under_its_old_size_and_time_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.png", Image.fromarray(GREY), "RGB")
    cache, status = tmp_path / "verdicts.json", path.stat()
    assert problems([path], cache) == {}
    time.sleep(0.01)  # so that the file's change time, which has the clock's ticks, differs
    path.write_bytes(b"\0" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert problems([path], cache) == {path: "not an image"}


def test_readers_show_what_the_file_shows(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    reader = VqaV2(root=str(tmp_path), split="val2014")
    Image.fromarray(RAMP).save(reader[0].path, format="PNG")
    assert np.array_equal(np.asarray(reader[0].image), GREY)


def test_pictures_that_a_viewer_shows_otherwise_are_told_of(tmp_path: Path) -> None:
    turned, plain, animated = (tmp_path / name for name in ("turned.jpg", "plain.jpg", "animated.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(turned, exif=exif)
    Image.new("RGB", (8, 4)).save(plain)
    white = Image.new("RGB", (4, 4), "white")
    white.save(animated, save_all=True, append_images=[Image.new("RGB", (4, 4), "red")])
    expected = {turned: (TURNED,), plain: (), animated: (FRAMES,)}
    for _ in range(2):
        found = inspect([turned, plain, animated], tmp_path / "verdicts.json")
        assert {path: verdict.remarks for path, verdict in found.items()} == expected
    assert open_image(turned).size == (8, 4)
    assert (pixels(animated) == 255).all()


def test_an_orientation_that_is_not_applied_is_told_at_the_number(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_vqav2(tmp_path / "vqav2")
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))
    config = composed("task=vqav2", "task.limit=6", "method=none")
    task = build("task", next(iter(plan([config]).configs.values()))["task"])
    exif = Image.Exif()
    exif[0x0112] = 3
    path = task.items[0].example.path
    open_image(path).save(path, exif=exif)
    task.check([], tmp_path)
    answers = {item.id: f"answer {item.id}" for item in task.items}
    result = task.score(answers, tmp_path)["vqa_accuracy"]
    assert result.warnings == (f"1 of 3 images has {TURNED}",)


def turn(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    open_image(path).save(path, exif=exif)


def test_images_that_are_left_out_are_not_counted_among_the_turned(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three turned images, of which one cannot be asked about, and a missing image, two turned images are left."""
    write_vqav2(tmp_path / "vqav2", ids=(1, 2, 3, 4))
    write_flickr30k(tmp_path / "flickr30k", test=4)
    questions = tmp_path / "vqav2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    content = json.loads(questions.read_text())
    for asked in content["questions"]:
        asked["question"] = None if asked["image_id"] == 2 else asked["question"]
    questions.write_text(json.dumps(content))
    captions = tmp_path / "flickr30k" / "dataset_flickr30k.json"
    content = json.loads(captions.read_text())
    second = [image for image in content["images"] if image["split"] == "test"][1]
    second["sentences"][0]["raw"] = None
    captions.write_text(json.dumps(content))
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))

    def checked(*overrides: str) -> Any:
        config = composed(*overrides, "task.allow_missing=true", "method=none", "tracker=none")
        task = build("task", next(iter(plan([config]).configs.values()))["task"])
        paths = [example.path for example in task.examples.first(None)]
        for path in paths[:3]:
            turn(path)
        paths[3].unlink()
        task.check([], tmp_path)
        return task

    task = checked("task=vqav2", "task.limit=8")
    answers = {item.id: f"answer {item.id}" for item in task.items}
    warnings = task.score(answers, tmp_path)["vqa_accuracy"].warnings
    assert len(answers) == 4
    assert f"2 of 2 images have {TURNED}" in warnings
    task = checked("task=flickr30k_retrieval", "model=tiny_blip2_itm", "task.shortlist=2")
    ranks = {text: '{"rank": 0}' for one in task.images for text in (one.id, *(f"{one.id}/{n}" for n in range(5)))}
    warnings = task.score(ranks, tmp_path)["text_recall_at_1"].warnings
    assert f"2 of 2 images have {TURNED}" in warnings


def test_ranks_of_other_images_or_too_few_are_refused(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_flickr30k(tmp_path / "flickr30k", test=3)
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))
    config = composed("task=flickr30k_retrieval", "model=tiny_blip2_itm", "task.shortlist=2", "method=none")
    task = build("task", next(iter(plan([config]).configs.values()))["task"])
    ranks = {text: '{"rank": 0}' for one in task.images for text in (one.id, *(f"{one.id}/{n}" for n in range(5)))}
    assert task.score(ranks, tmp_path)["text_recall_at_1"].value == 1.0
    missing = dict(list(ranks.items())[:-1])
    with pytest.raises(ValueError, match=r"1 of 18 items have no rank, for example '1000092799/4'"):
        task.score(missing, tmp_path)
    with pytest.raises(ValueError, match=r"1 ranks are for items that were not asked for, for example 'other'"):
        task.score(ranks | {"other": '{"rank": 0}'}, tmp_path)


def write_png(path: Path, depth: int, colour: int, row: bytes, key: bytes) -> Path:
    """Write a PNG of one row of four pixels with a transparent value, at a depth that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    return path


@pytest.mark.parametrize(("depth", "row"), [(2, b"\x1b"), (4, b"\x01\x23")])
def test_a_shade_of_few_bits_that_is_called_transparent_is_white(depth: int, row: bytes, tmp_path: Path) -> None:
    """Pillow scales the pixels to 8 bits, but not the transparent value."""
    found = pixels(write_png(tmp_path / "key.png", depth, 0, row, b"\0\1"))[0, :, 0].tolist()
    step = 255 // (2**depth - 1)
    assert found == [0, 255, 2 * step, 3 * step]


def test_what_loses_the_digits_of_a_transparent_colour_is_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "deep.png", 16, 2, b"\x4e\x20" * 12, b"\x4e\x20" * 3)
    with pytest.raises(ImageError, match=r"deep\.png: unsupported: a transparent colour of 16 bits; save it as RGB"):
        open_image(path)


def test_signed_shades_are_refused(tmp_path: Path) -> None:
    """Pillow reads signed shades as unsigned, so that black and white change places in the middle."""
    path = tmp_path / "signed.tif"
    Image.fromarray(GREY[..., 0]).save(path, tiffinfo={339: 2})
    with pytest.raises(ImageError, match=r"signed\.tif: unsupported: signed values; save it as RGB"):
        open_image(path)
