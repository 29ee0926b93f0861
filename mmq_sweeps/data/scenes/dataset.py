"""Scenes as a data set in three splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

from mmq_sweeps.data.scenes.render import render
from mmq_sweeps.data.scenes.scene import Scene, Words, draw_scene
from mmq_sweeps.data.scenes.words import Question, questions, references

# Each split's tenths of all scenes; a scene's own digest assigns it to a split.
_SHARES = {"train": range(8), "calibration": range(8, 9), "evaluation": range(9, 10)}
SPLITS = tuple(_SHARES)


@dataclass(frozen=True)
class Example:
    """Image with five captions and the questions it answers; ``id`` names split, seed and index.

    ``image`` is drawn on access, so that many examples fit in memory.
    """

    id: str
    scene: Scene
    references: tuple[str, str, str, str, str]
    questions: tuple[Question, ...]

    @property
    def image(self) -> Image.Image:
        return render(self.scene)


@dataclass(frozen=True)
class Scenes:
    """Sequence of ``count`` scenes of a split; scene ``i`` depends on split, seed and ``i``, never on ``count``.

    Equal scenes are always in the same split, whatever the seed. Raises ValueError for an unknown split, or a count or
    seed that is not a non-negative integer.
    """

    split: str = "evaluation"
    count: int = 500
    seed: int = 0

    known_as: ClassVar[str] = "scenes"
    # Bump when the same fields start to yield other pictures or texts: there are no files to digest.
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.split not in _SHARES:
            raise ValueError(f"Unknown split {self.split!r}: choose {', '.join(SPLITS)}")
        for name, value in (("count", self.count), ("seed", self.seed)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r}: choose an integer from 0")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        scene = self.scene(index)
        name = f"{self.split}-{self.seed}-{index % self.count:06d}"
        return Example(name, scene, references(scene), questions(scene))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(self.count))

    def scene(self, index: int) -> Scene:
        """Return the scene of image ``index``; raises IndexError outside the data set."""
        if not -self.count <= index < self.count:
            raise IndexError(f"index {index} in {self.count} scenes")
        words = Words(self.seed, SPLITS.index(self.split), index % self.count)
        while True:
            scene = draw_scene(words)
            if int.from_bytes(scene.digest()[:8], "big") % 10 in _SHARES[self.split]:
                return scene
