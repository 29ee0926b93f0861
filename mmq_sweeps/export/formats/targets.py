"""Names of linears as targets of compressed-tensors: a pattern for the blocks that share one, or the names themselves.

A loader compares targets with the names of modules, which another loader may begin otherwise: vLLM leaves out
``vision_model.``. Patterns are therefore as short as they can be without matching one of the other linears.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

# A name with the number of a block in it.
NUMBERED = re.compile(r"(?P<blocks>.+?)\.(?P<number>\d+)\.(?P<linear>.+)")
# Components of the path of blocks that a pattern begins with: "encoder.layers".
FEWEST = 2


def targets(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Return targets that match all of ``names`` and none of ``others``."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name in names:
        if match := NUMBERED.fullmatch(name):
            layers.setdefault((match["blocks"], match["linear"]), []).append(match["number"])
    shared: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (blocks, linear), numbers in layers.items():
        shared.setdefault((blocks, tuple(numbers)), []).append(linear)
    found = [name for name in names if not NUMBERED.fullmatch(name)]
    for (blocks, block_numbers), linears in shared.items():
        meant = [f"{blocks}.{number}.{linear}" for number in block_numbers for linear in linears]
        pattern = _pattern(blocks, block_numbers, linears, {*names, *others} - set(meant)) if len(meant) > 1 else None
        found += [pattern] if pattern else meant
    return found


def _pattern(blocks: str, numbers: Iterable[str], linears: Iterable[str], others: Collection[str]) -> str | None:
    """Return the shortest pattern of ``linears`` in blocks ``numbers`` that matches none of ``others``; None if none does."""
    path = [re.escape(component) for component in blocks.split(".")]
    starts = [r"\.".join(path[-count:]) for count in range(min(FEWEST, len(path)), len(path) + 1)]
    for start in (*(rf".*\b{start}" for start in starts), starts[-1]):
        pattern = rf"{start}\.{_one_of(numbers)}\.{_one_of(linears)}$"
        if not any(re.match(pattern, name) for name in others):
            return f"re:{pattern}"
    return None


def _one_of(choices: Iterable[str]) -> str:
    escaped = [re.escape(choice) for choice in choices]
    return escaped[0] if len(escaped) == 1 else f"(?:{'|'.join(escaped)})"
