"""Karpathy's splits of captioned images (arXiv 1412.2306): ``dataset_coco.json``, ``dataset_flickr30k.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from mmq_sweeps.data.published import (
    Captioned,
    PublishedData,
    check_id,
    check_text,
    fields,
    listed,
    read_json,
    stamped,
)
from mmq_sweeps.identity.roles import LABEL

_EXPECTED = "one of Karpathy's files, with 'images' that have 'filename', 'split' and 'sentences'"


@dataclass(frozen=True, kw_only=True)
class KarpathyCaptions(PublishedData[Captioned]):
    """Images with about five captions each; ``split`` may join several: ``train+restval``.

    An image file is ``images`` / ``filepath`` (COCO only: ``val2014``) / ``filename``. Its id is COCO's own, or that
    path below ``images`` without the suffix.
    """

    annotations: str = field(metadata=LABEL)
    images: str = field(metadata=LABEL)

    def read(self) -> Sequence[Captioned]:
        (path,) = self.sources()
        splits = _read(*stamped(path))
        wanted = self.split.split("+")
        for name in wanted:
            if name not in splits:
                self.fail(f"{path} has no split {name!r}; choose {', '.join(splits)}, or several joined by +")
        folder = self.below("images")
        named = sorted((place, entry) for name in dict.fromkeys(wanted) for place, entry in splits[name])
        return [Captioned(found.id, folder / found.file, found.references) for _, found in named]


@dataclass(frozen=True, order=True)
class _Entry:
    id: str
    file: str
    references: tuple[Any, ...]


@lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> Mapping[str, list[tuple[int, _Entry]]]:  # noqa: ARG001
    """Return the images of each split with their positions in the file."""
    content = read_json(path, _EXPECTED)
    splits: dict[str, list[tuple[int, _Entry]]] = {}
    for place, image in enumerate(listed(path, content, "images", _EXPECTED)):
        where = f"images[{place}]"
        name, split, sentences = fields(path, where, image, ("filename", "split", "sentences"), _EXPECTED)
        if not isinstance(sentences, list) or not isinstance(name, str) or not name:
            raise ValueError(f"{path}: {where} needs a filename that is text and a list of sentences")
        raw = tuple(_raw(path, place, sentence) for sentence in sentences)
        file = PurePosixPath(check_text(path, where, "filepath", image.get("filepath", "")), name)
        identity = str(check_id(path, where, image["cocoid"]) if "cocoid" in image else file.with_suffix(""))
        entry = _Entry(identity, str(file), raw)
        splits.setdefault(check_text(path, where, "split", split), []).append((place, entry))
    return splits


def _raw(path: Path, place: int, sentence: Any) -> Any:
    (raw,) = fields(path, f"a sentence of images[{place}]", sentence, ("raw",), _EXPECTED)
    return raw
