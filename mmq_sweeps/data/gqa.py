"""GQA (arXiv 1902.09506): questions generated from scene graphs, with one answer each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any, ClassVar

from mmq_sweeps.data.published import Asked, PublishedData, Questioned, check_id, check_text, read_json, stamped
from mmq_sweeps.identity.roles import LABEL

_EXPECTED = (
    "a questions file such as testdev_balanced_questions.json: an object of question id -> "
    "{'imageId', 'question', 'answer', 'types': {'structural', ...}}"
)


@dataclass(frozen=True, kw_only=True)
class Gqa(PublishedData[Questioned]):
    """Reader of ``testdev_balanced``, ``train_balanced`` and the other splits.

    A question's ``kind`` is its structural type: query, verify, choose, ... ``file_names`` is the template of an
    image's file name, with ``{id}`` for the image id.
    """

    questions: str = field(default="{split}_questions.json", metadata=LABEL)
    images: str = field(default="images", metadata=LABEL)
    file_names: str = field(default="{id}.jpg", metadata=LABEL)

    known_as: ClassVar[str] = "gqa"
    annotated_by: ClassVar[tuple[str, ...]] = ("questions",)

    def read(self) -> Sequence[Questioned]:
        (path,) = self.sources()
        by_image = _read(*stamped(path))
        files = self.files_of(by_image)
        return [Questioned(image, files[image], asked) for image, asked in by_image.items()]


@lru_cache(maxsize=4)
def _read(path: Path, size: int, changed: int) -> Mapping[str, tuple[Asked, ...]]:  # noqa: ARG001
    """Return the questions of each image id."""
    content = read_json(path, _EXPECTED, _keep, keyed_by_id=True)
    by_image: dict[str, list[Asked]] = {}
    for identity, kept in content.items():
        if not isinstance(kept, _Kept):
            shown = ", ".join(list(map(str, kept))[:8]) if isinstance(kept, dict) else repr(kept)[:80]
            raise ValueError(f"{path}: {identity!r} is no question but has {shown or 'nothing'}; expected {_EXPECTED}")
        image = intern(str(check_id(path, f"{identity!r}.imageId", kept.image)))
        kind = intern(check_text(path, repr(identity), "structural type", kept.kind))
        by_image.setdefault(image, []).append(Asked(str(identity), kept.question, (kept.answer,), kind))
    return {image: tuple(asked) for image, asked in by_image.items()}


@dataclass(frozen=True, slots=True)
class _Kept:
    image: Any
    question: Any
    answer: Any
    kind: Any


def _keep(entry: dict[str, Any]) -> Any:
    """Drop programs and scene graph links while parsing: they are most of a gigabyte and not used here."""
    if not {"imageId", "question", "answer"} <= entry.keys():
        return entry
    types = entry.get("types") or {}
    kind = types.get("structural", "") if isinstance(types, dict) else types
    return _Kept(_shared(entry["imageId"]), entry["question"], _shared(entry["answer"]), _shared(kind))


def _shared(value: Any) -> Any:
    return intern(value) if isinstance(value, str) else value
