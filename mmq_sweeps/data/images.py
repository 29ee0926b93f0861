"""Decode image files, and report which of many cannot be decoded."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from PIL import ExifTags, Image, UnidentifiedImageError

from mmq_sweeps.whole_files import write_whole

SUFFIXES = (".jpg", ".jpeg", ".png")
APicture = TypeVar("APicture", bound="Path | Encoded")
# Raised by Pillow for a file that it cannot decode, besides OSError.
_UNDECODABLE = (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# Bump when the same file may get another verdict: it invalidates cached ones.
_VERSION = 3

# Ways in which a viewer may show a picture differently from its decoding here.
TURNED = "an EXIF orientation, which is not applied"
FRAMES = "several frames, of which the first is used"

# Modes that Pillow converts to RGB as a viewer shows them.
_CONVERTIBLE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N")
# Formats in which Pillow's 32-bit mode I holds 16-bit values; elsewhere it has no agreed range.
_GREY16_AS_I = ("PNG", "PPM")
# TIFF tags, and the sample format of signed integers.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2


@dataclass(frozen=True)
class Encoded:
    """Image that lies encoded inside another file, such as a column of Parquet.

    ``name`` says where, and is unique in a process; ``key`` is the same for the same image only, and ``size`` is in bytes.
    """

    name: str
    key: str
    size: int
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the encoded image, as ``content_digests`` gives of a file with the same bytes."""
        return hashlib.sha256(self.read()).hexdigest()


# An image that can be decoded: a file, or an image inside one.
Picture = Path | Encoded


class ImageError(ValueError):
    """An image cannot be used.

    ``reason`` begins with missing, empty, truncated, not an image, unreadable or unsupported.
    """

    def __init__(self, path: Picture, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


def images_of(example: Any) -> list[Image.Image]:
    """Decode the images of an example, of which readers with one image each only say ``image``; some have none."""
    return list(example.images) if hasattr(example, "images") else [example.image]


def pictures_of(example: Any) -> tuple[Picture, ...] | None:
    """Return the files, or images in files, that an example is decoded from; None for a drawn image."""
    if hasattr(example, "pictures"):
        return tuple(example.pictures)
    path: Path | None = getattr(example, "path", None)
    return None if path is None else (path,)


def image_count(example: Any) -> int:
    """Return how many images an example has, without decoding them if that can be told."""
    if (known := getattr(example, "image_count", None)) is not None:
        return int(known)
    pictures = pictures_of(example)
    return len(pictures) if pictures is not None else len(getattr(example, "images", (None,)))


def pixels_digest(image: Image.Image) -> str:
    """Return a digest that images with the same pixels share."""
    return hashlib.sha256(f"{image.size}{image.mode}".encode() + image.tobytes()).hexdigest()


def side_by_side(images: Sequence[Image.Image]) -> Image.Image | None:
    """Return images as one, to be shown to a person; None if there are none."""
    if len(images) < 2:
        return images[0] if images else None
    whole = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width
    return whole


def open_image(path: Picture) -> Image.Image:
    """Decode the first frame of a file as 8-bit RGB, without applying its EXIF orientation.

    16-bit grey is scaled to 8 bits and transparency is composited on white. ``inspect`` reports ignored orientations
    and further frames. Raises ImageError if the file cannot be used; this includes pixels without an agreed range
    (float, 32-bit).
    """
    return _decoded(path)[0]


def _decoded(path: Picture) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the picture, and ``TURNED`` or ``FRAMES`` if a viewer may show it differently."""
    try:
        with Image.open(path if isinstance(path, Path) else io.BytesIO(path.read())) as image:
            # Further pictures of an MPO are previews of the first, or its stereo twin.
            several = image.format != "MPO" and getattr(image, "n_frames", 1) > 1
            rgb = _to_rgb(image, path)
            # Read after decoding: Pillow applies a TIFF's orientation itself.
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            return rgb, (TURNED,) * turned + (FRAMES,) * several
    except (OSError, *_UNDECODABLE) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(path, _reason(path, error)) from error


def _to_rgb(image: Image.Image, path: Picture) -> Image.Image:
    """Convert to RGB as a viewer shows it.

    Pillow's own ``convert("RGB")`` clips 16-bit values at 255 and reveals the colour hidden by transparency.
    """
    if image.mode == "L" and _SIGNED in _numbers(getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT)):
        raise ImageError(path, "unsupported: signed values; save it as RGB, or as grey of 8 or 16 bits")
    _scale_transparent(image, path)
    if image.mode in _GREY16 or (image.mode == "I" and image.format in _GREY16_AS_I):
        return _scaled(image)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        image.mode in _CONVERTIBLE and "transparency" in image.info
    ):
        # Premultiplied modes convert only to their plain ones.
        plain = image.convert({"La": "LA"}.get(image.mode, "RGBA")).convert("RGBA")
        white = Image.new("RGBA", plain.size, "white")
        return Image.alpha_composite(white, plain).convert("RGB")
    if image.mode not in _CONVERTIBLE:
        raise ImageError(path, f"unsupported: pixels of mode {image.mode}; save it as RGB, or as grey of 8 or 16 bits")
    return image.convert("RGB")


def _scale_transparent(image: Image.Image, path: Picture) -> None:
    """Scale the transparent value of a PNG to 8 bits like its pixels; Pillow leaves it as the file has it.

    Raises ImageError for 16-bit colour, whose pixels have lost the digits that tell the value from its neighbours.
    """
    tiles: Any = getattr(image, "tile", ())
    if image.format != "PNG" or "transparency" not in image.info or not tiles:
        return
    stored = str(tiles[0].args)
    if stored == "RGB;16B":
        raise ImageError(path, "unsupported: a transparent colour of 16 bits; save it as RGB, or with an alpha channel")
    if image.mode == "L" and (narrow := re.fullmatch(r"L;([24])", stored)):
        image.info["transparency"] *= 255 // (2 ** int(narrow[1]) - 1)


def _numbers(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _scaled(image: Image.Image) -> Image.Image:
    """Scale the full range of 16-bit grey to 0..255 in RGB; the value that a PNG marks as transparent becomes white."""
    import numpy as np  # Commands that only look for files work without numpy.

    values = np.asarray(image).astype(np.int64)
    # A TIFF declares how many bits are used, and whether 0 is white.
    tags = getattr(image, "tag_v2", {})
    used = tags.get(_BITS_PER_SAMPLE, 16)
    most = 2 ** int(_numbers(used)[0]) - 1
    grey = (values * 255 + most // 2) // most
    if tags.get(_PHOTOMETRIC) == 0:
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


@dataclass(frozen=True)
class Verdict:
    """Reason why a file cannot be used, or None.

    For a usable file, ``remarks`` holds ``TURNED`` and ``FRAMES`` if a viewer may show it differently.
    """

    problem: str | None
    remarks: tuple[str, ...] = ()


def problems(
    paths: Iterable[APicture], cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[APicture, str]:
    """Return the unusable ones of ``paths`` with the reason for each; arguments as for ``inspect``."""
    found = inspect(paths, cache, progress)
    return {path: verdict.problem for path, verdict in found.items() if verdict.problem is not None}


def inspect(
    paths: Iterable[APicture], cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[APicture, Verdict]:
    """Decode every picture of ``paths`` and return its verdict, in the order of ``paths``.

    ``cache`` is a JSON file of verdicts by path, size, times and inode, or by the key of an image inside a file; a
    damaged cache is rewritten. ``progress`` is called with the number of files done and their total.
    """
    asked = list(dict.fromkeys(paths))
    known = _read_cache(cache)
    found: dict[APicture, Verdict] = {}
    stamps: dict[APicture, list[int]] = {}
    for path in asked:
        try:
            stamps[path] = _stamp(path)
        except OSError as error:
            found[path] = Verdict(_reason(path, error))
            continue
        entry = known.get(_key(path))
        if entry is not None and entry[:4] == stamps[path]:
            found[path] = Verdict(entry[4], tuple(entry[5]))
    unknown = [path for path in asked if path not in found]
    # Pillow releases the GIL while it decodes.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, verdict in zip(unknown, pool.map(_judged, unknown), strict=True):
            found[path] = verdict
            if progress is not None:
                progress(len(found), len(asked))
    if cache is not None and unknown:
        new = {_key(path): [*stamps[path], found[path].problem, list(found[path].remarks)] for path in unknown}
        write_whole(cache, json.dumps({"version": _VERSION, "images": known | new}))
    return {path: found[path] for path in asked}


def describe(found: Mapping[Any, str], total: int, shown: int = 3) -> str:
    """Format as ``2 of 5000 images cannot be used (1 missing, 1 truncated): a.jpg: missing, b.jpg: truncated``."""
    kinds = Counter(reason.partition(":")[0] for reason in found.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    names = ", ".join(f"{path}: {reason}" for path, reason in list(found.items())[:shown])
    return f"{len(found)} of {total} images cannot be used ({counts}): {names}" + (
        ", ..." if len(found) > shown else ""
    )


def _stamp(path: Picture) -> list[int]:
    """Return the properties that change with a file; zeros for an image inside one, whose key tells it from any other."""
    if isinstance(path, Encoded):
        return [0, 0, 0, 0]
    status = path.stat()
    # Programs can set the modification time, but not the others.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _judged(path: Picture) -> Verdict:
    try:
        return Verdict(None, _decoded(path)[1])
    except ImageError as error:
        return Verdict(error.reason)


def _reason(path: Picture, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        size = path.stat().st_size if isinstance(path, Path) else path.size
        return "not an image" if size else "empty"
    if isinstance(error, OSError) and error.strerror:
        return f"unreadable: {error.strerror}"
    return "truncated" if "truncated" in str(error).lower() else f"unreadable: {str(error).rstrip('.')}"


def _key(path: Picture) -> str:
    return str(path.absolute()) if isinstance(path, Path) else f"inside:{path.key}"


def _read_cache(cache: Path | None) -> dict[str, list[Any]]:
    if cache is None:
        return {}
    try:
        content = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    if (
        not isinstance(content, dict)
        or content.get("version") != _VERSION
        or not isinstance(content.get("images"), dict)
    ):
        return {}
    return {key: entry for key, entry in content["images"].items() if isinstance(entry, list) and len(entry) == 6}
