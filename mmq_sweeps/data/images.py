"""Image files: decode one, and tell of many which cannot be decoded."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

SUFFIXES = (".jpg", ".jpeg", ".png")
# What Pillow raises for a file that it cannot decode, besides OSError.
_UNDECODABLE = (SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_VERSION = 1


class ImageError(ValueError):
    """An image file cannot be used; ``reason`` is one of missing, empty, truncated, not an image, unreadable."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path}: {reason}")


def open_image(path: Path) -> Image.Image:
    """The whole file decoded, as RGB, turned by no EXIF orientation; an ``ImageError`` says why it cannot be."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, *_UNDECODABLE) as error:
        raise ImageError(path, _reason(path, error)) from error


def problems(
    paths: Iterable[Path], cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[Path, str]:
    """Decode every file of ``paths`` and say what is wrong with those that cannot be used, in the order of ``paths``.

    ``cache`` is a JSON file that remembers verdicts by path, size and time of change; a damaged one is written anew.
    ``progress`` is told the number of files done and of all.
    """
    asked = list(dict.fromkeys(paths))
    known = _read_cache(cache)
    found: dict[Path, str | None] = {}
    stamps: dict[Path, list[int]] = {}
    for path in asked:
        try:
            status = path.stat()
        except OSError as error:
            found[path] = _reason(path, error)
            continue
        stamps[path] = [status.st_size, status.st_mtime_ns]
        entry = known.get(_key(path))
        if entry is not None and entry[:2] == stamps[path]:
            found[path] = entry[2]
    unknown = [path for path in asked if path not in found]
    # Pillow decodes outside the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for path, reason in zip(unknown, pool.map(_problem, unknown), strict=True):
            found[path] = reason
            if progress is not None:
                progress(len(found), len(asked))
    if cache is not None and unknown:
        _write_cache(cache, known | {_key(path): [*stamps[path], found[path]] for path in unknown})
    return {path: reason for path in asked if (reason := found[path]) is not None}


def describe(found: Mapping[Path, str], total: int, shown: int = 3) -> str:
    """``2 of 5000 images cannot be used (1 missing, 1 truncated): a.jpg: missing, b.jpg: truncated``."""
    kinds = Counter(reason.partition(":")[0] for reason in found.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    names = ", ".join(f"{path}: {reason}" for path, reason in list(found.items())[:shown])
    return f"{len(found)} of {total} images cannot be used ({counts}): {names}" + (
        ", ..." if len(found) > shown else ""
    )


def _problem(path: Path) -> str | None:
    try:
        open_image(path)
    except ImageError as error:
        return error.reason
    return None


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "missing"
    if isinstance(error, UnidentifiedImageError):
        return "not an image" if path.stat().st_size else "empty"
    if isinstance(error, OSError) and error.strerror:
        return f"unreadable: {error.strerror}"
    return "truncated" if "truncated" in str(error).lower() else f"unreadable: {error}"


def _key(path: Path) -> str:
    return str(path.absolute())


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
    return {key: entry for key, entry in content["images"].items() if isinstance(entry, list) and len(entry) == 3}


def _write_cache(cache: Path, images: Mapping[str, list[Any]]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"version": _VERSION, "images": images}))
    temporary.replace(cache)
