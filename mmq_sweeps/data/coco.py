"""COCO captions (arXiv 1504.00325): the 2017 annotations, and Karpathy's splits of 2014 (arXiv 1412.2306)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from mmq_sweeps.data.karpathy import KarpathyCaptions
from mmq_sweeps.data.published import (
    Captioned,
    PublishedData,
    check_id,
    check_text,
    fields,
    is_other_split,
    listed,
    read_json,
    stamped,
)
from mmq_sweeps.identity.roles import LABEL

_EXPECTED = "a captions file such as captions_val2017.json, with 'images' and 'annotations' that have a 'caption'"


@dataclass(frozen=True, kw_only=True)
class CocoCaptions(PublishedData[Captioned]):
    """Reader of ``captions_val2017.json`` or ``captions_train2017.json``: images with about five captions each."""

    annotations: str = field(default="annotations/captions_{split}.json", metadata=LABEL)
    images: str = field(default="{split}", metadata=LABEL)

    known_as: ClassVar[str] = "coco_caption"

    def read(self) -> Sequence[Captioned]:
        (path,) = self.sources()
        captions = _read(*stamped(path))
        for _, name, url in captions.images:
            # In the published files, each image's URL names its split.
            if any(is_other_split(self.split, part) for part in url.split("/")):
                self.fail(f"{path} is of another split: it names {url}, for {name}")
        folder = self.below("images")
        return [
            Captioned(str(image), folder / name, captions.texts[image])
            for image, name, _ in captions.images
            if image in captions.texts
        ]


@dataclass(frozen=True, kw_only=True)
class CocoKarpathy(KarpathyCaptions):
    """Reader of ``dataset_coco.json``: splits train, restval, val and test of COCO 2014.

    The images lie in ``train2014`` and ``val2014``.
    """

    annotations: str = field(default="dataset_coco.json", metadata=LABEL)
    images: str = field(default=".", metadata=LABEL)

    known_as: ClassVar[str] = "coco_karpathy"


@dataclass(frozen=True)
class _Captions:
    """``(id, file name, URL)`` of each image, and the captions by image id."""

    images: list[tuple[int | str, str, str]]
    texts: dict[int | str, tuple[Any, ...]]


@lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> _Captions:  # noqa: ARG001 - the cache key
    content = read_json(path, _EXPECTED)
    images = []
    for index, entry in enumerate(listed(path, content, "images", _EXPECTED)):
        where = f"images[{index}]"
        image, name = fields(path, where, entry, ("id", "file_name"), _EXPECTED)
        file = check_text(path, where, "file_name", name)
        images.append((check_id(path, where, image), file, str(entry.get("coco_url", ""))))
    known = {image for image, *_ in images}
    owners: dict[str, int | str] = {}
    for image, file, _ in images:
        if owners.setdefault(file, image) != image:
            raise ValueError(
                f"{path}: images {owners[file]!r} and {image!r} have one file_name, {file!r}, so one picture would be scored "
                "as two; give each id a file of its own"
            )
    texts: dict[int | str, list[Any]] = {}
    for index, entry in enumerate(listed(path, content, "annotations", _EXPECTED)):
        image, caption = fields(path, f"annotations[{index}]", entry, ("image_id", "caption"), _EXPECTED)
        if check_id(path, f"annotations[{index}]", image) not in known:
            raise ValueError(f"{path}: annotations[{index}] is of image {image!r}, which 'images' does not have")
        texts.setdefault(image, []).append(caption)
    return _Captions(images, {image: tuple(found) for image, found in texts.items()})
