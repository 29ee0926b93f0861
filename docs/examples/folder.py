"""Captioned images in folders: ``ROOT/SPLIT/captions.json`` maps a file's name to its captions."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from PIL import Image

from mmq_sweeps.data.images import open_image
from mmq_sweeps.identity.roles import LABEL


@dataclass(frozen=True)
class Captioned:
    id: str
    path: Path
    references: tuple[str, ...]

    @property
    def image(self) -> Image.Image:
        return open_image(self.path)


@dataclass(frozen=True)
class Folder:
    """The first ``count`` images of a split, by name, or all with None; ``seed`` is there for readers that draw."""

    root: str = field(metadata=LABEL)  # ids hold what lies there
    split: str
    count: int | None = None
    seed: int | None = None

    known_as: ClassVar[str] = "folder"

    def sources(self) -> list[Path]:
        return [Path(self.root, self.split, "captions.json")]

    def __iter__(self) -> Iterator[Captioned]:
        (annotations,) = self.sources()
        captions = json.loads(annotations.read_text())
        for name in sorted(captions)[: self.count]:
            yield Captioned(f"{self.split}/{name}", annotations.with_name(name), tuple(captions[name]))
