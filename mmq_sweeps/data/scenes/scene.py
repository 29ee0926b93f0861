"""Scenes and their sampling from a stream of random words.

Lengths are in thirds of a pixel, on a canvas of ``CANVAS`` units a side; hues in 1/1536 of the colour circle.
Everything is an integer derived from the raw words of PCG64, whose stream numpy guarantees, so a seed gives the same
scene on every platform.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PIXELS = 48
UNITS = 3
CANVAS = PIXELS * UNITS

# Each shape and each dot has a cell of the 3 x 3 grid to itself.
CELLS = 3
CELL = CANVAS // CELLS

KINDS = ("circle", "ring", "square", "diamond", "triangle", "cross", "hourglass", "bar")
# A size's radii, and a tone's brightness and saturation. Neighbouring words lie close together, so that a small error in
# a model's perception changes a word.
SIZES = {"tiny": (8, 11), "small": (12, 15), "big": (16, 19), "huge": (20, 23)}
TONES = {"dark": ((95, 160), (165, 255)), "bright": ((175, 255), (165, 255)), "pale": ((175, 255), (70, 150))}
COLOURS = (
    *("red", "orange", "yellow", "lime", "green", "mint"),
    *("cyan", "azure", "blue", "violet", "magenta", "rose"),
)
HUES = 1536
HUE_STEP = HUES // len(COLOURS)
# Hues stay this far from the border between two names, half a step from each.
HUE_GUARD = 3
MOST_SHAPES = 3
MOST_DOTS = 5
DOT_RADIUS = 5
# Largest offset of a centre from its cell's, if the shape leaves room.
JITTER = 3


class Words:
    """Stream of integers below given bounds from PCG64's raw 64-bit words, seeded by non-negative integers."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.PCG64(np.random.SeedSequence(seed))
        self._buffer: Iterator[int] = iter(())

    def below(self, bound: int) -> int:
        """Return the next integer in ``[0, bound)``; the modulo bias is below 1e-15 for the bounds used here."""
        word = next(self._buffer, None)
        if word is None:
            self._buffer = iter(self._generator.random_raw(64).tolist())
            word = next(self._buffer)
        return word % bound

    def between(self, low: int, high: int) -> int:
        """Return the next integer in ``[low, high]``."""
        return low + self.below(high - low + 1)


@dataclass(frozen=True)
class Shape:
    """Coloured shape: centre and radius (units), hue, brightness, saturation (0..255), and the words for them."""

    kind: str
    size: str
    tone: str
    colour: str
    x: int
    y: int
    radius: int
    hue: int
    brightness: int
    saturation: int

    @property
    def column(self) -> int:
        """Column 0..2, left to right."""
        return self.x // CELL

    @property
    def row(self) -> int:
        """Row 0..2, top to bottom."""
        return self.y // CELL

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as 0..255, converted from HSV."""
        sector, part = divmod(self.hue, 256)
        low = self.brightness * (255 - self.saturation) // 255
        rise = low + (self.brightness - low) * part // 256
        fall = low + (self.brightness - low) * (256 - part) // 256
        high = self.brightness
        wheel = ((high, rise, low), (fall, high, low), (low, high, rise), (low, fall, high), (rise, low, high))
        return wheel[sector] if sector < 5 else (high, low, fall)


@dataclass(frozen=True)
class Scene:
    """Shapes in column order, dots as centres (units), the ground's grey (0..255) and the seed of its grain."""

    shapes: tuple[Shape, ...]
    dots: tuple[tuple[int, int], ...]
    ground: int
    grain: int

    def digest(self) -> bytes:
        """Return the SHA-256 of everything that makes the picture; equal for equal scenes, on every platform."""
        return hashlib.sha256(repr(self).encode()).digest()


def draw_scene(words: Words) -> Scene:
    """Draw the next scene of the stream: one to three shapes of different kinds, and one to five dots."""
    cells, kinds = list(range(CELLS * CELLS)), list(KINDS)
    shapes = [
        _draw_shape(words, kinds.pop(words.below(len(kinds))), cells.pop(words.below(len(cells))))
        for _ in range(words.between(1, MOST_SHAPES))
    ]
    dots = [_place(words, cells.pop(words.below(len(cells))), DOT_RADIUS) for _ in range(words.between(1, MOST_DOTS))]
    ordered = tuple(sorted(shapes, key=lambda shape: (shape.column, shape.row)))
    return Scene(ordered, tuple(sorted(dots)), words.between(12, 44), words.below(2**32))


def _draw_shape(words: Words, kind: str, cell: int) -> Shape:
    size = tuple(SIZES)[words.below(len(SIZES))]
    tone = tuple(TONES)[words.below(len(TONES))]
    index = words.below(len(COLOURS))
    radius = words.between(*SIZES[size])
    reach = HUE_STEP // 2 - HUE_GUARD
    x, y = _place(words, cell, radius)
    return Shape(
        kind=kind,
        size=size,
        tone=tone,
        colour=COLOURS[index],
        x=x,
        y=y,
        radius=radius,
        hue=(index * HUE_STEP + words.between(-reach, reach)) % HUES,
        brightness=words.between(*TONES[tone][0]),
        saturation=words.between(*TONES[tone][1]),
    )


def _place(words: Words, cell: int, radius: int) -> tuple[int, int]:
    """Draw a centre near the middle of ``cell`` (0..8, row by row) with room for ``radius``."""
    row, column = divmod(cell, CELLS)
    room = min(JITTER, CELL // 2 - radius)
    return (
        column * CELL + CELL // 2 + words.between(-room, room),
        row * CELL + CELL // 2 + words.between(-room, room),
    )
