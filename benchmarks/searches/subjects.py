"""The subjects of the benchmark of the search: three embedded models with their tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmq_sweeps.search.space import Point, Space

WIDTHS = (2, 3, 4, 5, 6, 8, 16)
# Of the drawn order of the pool: the calibration samples have the reader's own seed 0.
POOL_SEED = 7


@dataclass(frozen=True)
class Subject:
    """An embedded model with its task: the overrides, the searched parts, the pool's items, budgets by part and by unit."""

    name: str
    overrides: tuple[str, ...]
    parts: tuple[str, ...]
    metric: str
    pool: int
    budgets: tuple[float, ...]
    finer: tuple[float, ...]

    @property
    def axes(self) -> list[str]:
        widths = ",".join(map(str, WIDTHS))
        return [f"component.{part}.bits={widths}" for part in self.parts]


SUBJECTS = {
    "captioner": Subject(
        "captioner", (), ("vision", "connector", "language"), "cider", 600, (3, 3.5, 4, 5), (3.1, 3.3, 3.6, 4.0, 4.5)
    ),
    # The least that these weigh is 4.01 and 3.83 bits: the same distances from the least as the captioner's 2.99.
    "llava": Subject(
        "llava", ("model=tiny_llava", "task=scenes_vqa", "component=vision_language"), ("vision", "language"),
        "gqa_accuracy", 1500, (4.02, 4.52, 5.02, 6.02), (4.12, 4.32, 4.62, 5.02, 5.52),
    ),
    "retriever": Subject(
        "retriever", ("model=tiny_blip2_itm", "task=scenes_retrieval", "component=vision_connector"),
        ("vision", "connector"), "text_recall_at_1", 300, (3.84, 4.34, 4.84, 5.84), (3.94, 4.14, 4.44, 4.84, 5.34),
    ),
}  # fmt: skip


def bits_of(space: Space, point: Point | None, parts: Sequence[str]) -> tuple[int, ...]:
    """Return the bits of every part of a point of a space by part."""
    if point is None:
        return (16,) * len(parts)
    return tuple(axis.options[place].bits for axis, place in zip(space.axes, point, strict=True))
