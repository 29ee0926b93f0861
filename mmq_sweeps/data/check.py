"""Report which files of a published set are present and which are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmq_sweeps.data.catalog import DataSet
from mmq_sweeps.data.images import describe, problems
from mmq_sweeps.data.manifest import FOLDER, recorded_sizes
from mmq_sweeps.data.published import Pictured


@dataclass(frozen=True)
class Draw:
    """Calibration images: ``count`` of them (None: all of the training split), drawn with ``seed``."""

    count: int | None = 128
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """Result for a split: required images and texts, and the problem of each bad file or of the split."""

    split: str
    drawn: str = ""
    images: int = 0
    texts: int = 0
    wrong: Mapping[Path, str] = field(default_factory=dict)
    error: str = ""

    @property
    def complete(self) -> bool:
        return not self.error and not self.wrong

    def describe(self) -> str:
        if self.error:
            return f"{self.split}: {self.error}"
        found = "all there" if not self.wrong else describe(self.wrong, self.images)
        return f"{self.split}: {self.images:,} images{self.drawn}, {self.texts:,} texts: {found}"


@dataclass(frozen=True)
class Report:
    name: str
    root: Path
    parts: Sequence[Part]
    decoded: bool

    @property
    def complete(self) -> bool:
        return all(part.complete for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        parts = [
            {
                "split": part.split, "images": part.images, "texts": part.texts, "complete": part.complete,
                "error": part.error or None, "wrong": {str(path): reason for path, reason in part.wrong.items()},
            }
            for part in self.parts
        ]  # fmt: skip
        return {
            "name": self.name, "root": str(self.root), "complete": self.complete, "decoded": self.decoded,
            "splits": parts,
        }  # fmt: skip


def check(
    one: DataSet, root: Path, draw: Draw, decode: bool = False, progress: Callable[[int, int], None] | None = None
) -> Report:
    """Read the annotations of ``one`` below ``root`` and look for every image that evaluation and ``draw`` need.

    A file is wrong if it is missing or differs in size from the unpacked original; with ``decode`` also if it cannot be
    decoded. Missing data raise nothing; they are in the report.
    """
    # A folder of the user's own is not the content of an archive that was unpacked before.
    linked = bool(one.by_hand_folder) and (root / one.by_hand_folder).is_symlink()
    sizes = {} if linked else recorded_sizes(root)

    def part(split: str, drawn: str = "", **fields: int) -> Part:
        try:
            chosen: Sequence[Pictured] = one.reader(root=str(root), split=split, **fields).choose()
        except ValueError as error:
            return Part(split, error=str(error))
        paths = [example.path for example in chosen]
        wrong = {path: reason for path in paths if (reason := _wrong(root, path, sizes))}
        if decode:
            sound = [path for path in paths if path not in wrong]
            wrong |= problems(sound, root / FOLDER / "images.json", progress)
        return Part(split, drawn, len(chosen), sum(example.texts for example in chosen), wrong)

    parts = [part(one.evaluation_split)]
    if draw.count is None:
        parts.append(part(one.training_split))
    elif draw.count:
        parts.append(part(one.training_split, f" drawn with seed {draw.seed}", count=draw.count, seed=draw.seed))
    return Report(one.name, root, parts, decode)


def _wrong(root: Path, path: Path, sizes: Mapping[str, int]) -> str:
    try:
        size = path.stat().st_size
    except OSError:
        return "missing"
    wanted = sizes.get(path.relative_to(root).as_posix(), size) if path.is_relative_to(root) else size
    return "" if size == wanted else f"of another size: has {size:,} of {wanted:,} bytes"
