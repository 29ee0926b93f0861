"""Order cells so that neighbours share as much work as possible.

Cells are grouped by model and task, full precision first; then cells that quantize the first part alike follow each other,
within these the cells that quantize the second part alike, and so on. Each cell then finds in memory the data that its
predecessor left there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mmq_sweeps.identity.cell import Cell, digest


@dataclass(frozen=True)
class SharingPath:
    """Cell with its path of shareable work: digests of model, task and each part's quantization, in the model's order."""

    cell: Cell
    id: str
    path: tuple[str, ...]

    @staticmethod
    def of(cell: Cell) -> SharingPath:
        """Compute the path of a cell."""
        # Without metrics: the outputs of parts do not depend on them.
        task = digest({key: value for key, value in cell.task.items() if key != "metrics"})
        return SharingPath(cell, cell.id, (digest(cell.model), task, *(cell.part_key(part) for part in cell.order)))


def in_order(cells: Iterable[Cell]) -> list[SharingPath]:
    """Sort cells so that those with longer common paths are closer; otherwise keep their order."""
    placed = [SharingPath.of(cell) for cell in cells]
    # Baselines first, and with them all cells whose first parts are at full precision.
    placed.sort(key=lambda one: bool(one.cell.parts))
    first: dict[tuple[str, ...], int] = {}
    for index, one in enumerate(placed):
        for depth in range(1, len(one.path) + 1):
            first.setdefault(one.path[:depth], index)
    return sorted(placed, key=lambda one: tuple(first[one.path[:depth]] for depth in range(1, len(one.path) + 1)))


def common(one: SharingPath, other: SharingPath) -> int:
    """Return the length of two cells' common path: 0 nothing, 1 the model, 2 the task as well, plus 1 for each part."""
    return next(
        (depth for depth, (a, b) in enumerate(zip(one.path, other.path, strict=False)) if a != b),
        min(len(one.path), len(other.path)),
    )


def packed(placed: Sequence[SharingPath], jobs: int, most: int) -> list[list[SharingPath]]:
    """Cut ``placed``, as sorted by ``in_order``, into ``jobs`` runs of at most ``most`` cells.

    Cuts between the neighbours that share least; ties go to the cut that makes the runs most even in length. A run has at
    least half of the even length.
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
