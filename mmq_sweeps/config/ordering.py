"""The order in which cells share work: those of a model and task together, full precision first, then by what they share.

Cells that quantize the first part alike follow each other, among them those that quantize the second part alike, and so
on: what one of them left in memory is what the next one needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmq_sweeps.identity.cell import Cell, digest


@dataclass(frozen=True)
class SharingPath:
    """A cell and the work that it can share: names of its model, task and of each part's quantization, in the model's order."""

    cell: Cell
    id: str
    path: tuple[str, ...]

    @staticmethod
    def of(cell: Cell) -> SharingPath:
        # Metrics are left out: what parts give does not depend on them.
        task = digest({key: value for key, value in cell.task.items() if key != "metrics"})
        return SharingPath(
            cell, cell.id, (digest(cell.model), task, *(cell.part_key(part) for part in cell.model["parts"]))
        )


def in_order(cells: Iterable[Cell]) -> list[SharingPath]:
    """``cells`` so that those with a longer common path are nearer to each other; what is alike keeps its order."""
    placed = [SharingPath.of(cell) for cell in cells]
    # The baseline of a model and task goes first, and with it all cells whose first parts are at full precision.
    placed.sort(key=lambda one: bool(one.cell.parts))
    first: dict[tuple[str, ...], int] = {}
    for index, one in enumerate(placed):
        for depth in range(1, len(one.path) + 1):
            first.setdefault(one.path[:depth], index)
    return sorted(placed, key=lambda one: tuple(first[one.path[:depth]] for depth in range(1, len(one.path) + 1)))


def common(one: SharingPath, other: SharingPath) -> int:
    """How much two cells share: 0 not even the model, 1 the model, 2 the task as well, then one more for each part."""
    return next(
        (depth for depth, (a, b) in enumerate(zip(one.path, other.path, strict=False)) if a != b),
        min(len(one.path), len(other.path)),
    )


def packed(placed: Sequence[SharingPath], jobs: int, most: int) -> list[list[SharingPath]]:
    """``placed``, in order, as ``jobs`` runs of at most ``most`` cells, cut where neighbours share least.

    Among equally good places the one that makes runs equally long is taken; a run is at least half of that long.
    """
    groups, start = [], 0
    for left in range(jobs, 0, -1):
        remaining = len(placed) - start
        ideal = remaining / left
        lowest = max(1, int(ideal / 2), remaining - (left - 1) * most)
        highest = max(lowest, min(most, remaining - (left - 1)))
        sizes = range(lowest, highest + 1) if left > 1 else [remaining]

        def cost(size: int, start: int = start, ideal: float = ideal) -> tuple[int, float]:
            cut = start + size
            return common(placed[cut - 1], placed[cut]) if cut < len(placed) else 0, abs(size - ideal)

        size = min(sizes, key=cost)
        groups.append(list(placed[start : start + size]))
        start += size
    return groups
