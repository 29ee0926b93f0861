"""Scenes whose images have unequal sizes, as photographs have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from mmq_sweeps.data.scenes import Scenes

SIZES = ((56, 56), (28, 42), (42, 28), (56, 28))


@dataclass(frozen=True)
class UnequalScenes:
    split: str
    seed: int = 0
    count: int | None = None

    def __iter__(self) -> Iterator[Any]:
        for place, scene in enumerate(Scenes(self.split, 16 if self.count is None else self.count, self.seed)):
            image = scene.image.resize(SIZES[place % len(SIZES)])
            yield SimpleNamespace(id=scene.id, image=image, references=scene.references, questions=scene.questions)
