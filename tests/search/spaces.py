"""Spaces without a model, for tests."""

from __future__ import annotations

from collections.abc import Sequence

from mmq_sweeps.search.space import Axis, Option, Space

WIDTHS = (2, 3, 4, 5, 6, 8, 16)


def space_of(
    weights: Sequence[int], widths: Sequence[int] = WIDTHS, rest: int = 1000, granularity: str = "part"
) -> Space:
    """Return a space with an axis for each number of ``weights``; scales take 16 bits for every 100 of them."""
    axes = tuple(
        Axis(
            f"part{number}", f"part{number}", (f"part{number}.0.mlp",), count,
            tuple(Option(bits, label=str(bits)) for bits in widths),
            tuple(16 * count if bits == 16 else bits * count + 16 * (count // 100) for bits in widths),
        )
        for number, count in enumerate(weights)
    )  # fmt: skip
    return Space("made", granularity, axes, 16 * rest, rest + sum(weights))
