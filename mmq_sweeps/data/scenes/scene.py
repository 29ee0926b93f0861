"""What a scene is made of, and how one is drawn from a stream of random words.

Lengths are in units of a third of a pixel, on a canvas of ``CANVAS`` units a side; hues in 1/1536 of the colour circle.
Everything is an integer taken from the raw words of PCG64, whose stream numpy guarantees, so a seed means the same
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

KINDS = ("circle", "ring", "square", "frame", "diamond", "triangle", "cross", "moon", "hourglass", "bar")
# A size's radii and a tone's brightness and saturation; what lies between two classes is never drawn.
SIZES = {"tiny": (11, 13), "small": (16, 19), "big": (22, 26), "huge": (29, 34)}
TONES = {"dark": ((95, 130), (200, 255)), "bright": ((215, 255), (200, 255)), "pale": ((215, 255), (90, 125))}
COLOURS = (
    *("red", "orange", "yellow", "lime", "green", "mint"),
    *("cyan", "azure", "blue", "violet", "magenta", "rose"),
)
HUES = 1536
HUE_STEP = HUES // len(COLOURS)
# Hues stay this far from the border between two names, which is half a step from either.
HUE_GUARD = 10
MOST_SHAPES = 3
MOST_DOTS = 6
DOT_RADIUS = 4
# Two shapes are mentioned from left to right, so their centres are never at (nearly) the same height or breadth.
LEAST_OFFSET = 5


class Words:
    """A stream of integers below given bounds from PCG64's raw 64-bit words, seeded by non-negative integers."""

    def __init__(self, *seed: int) -> None:
        self._generator = np.random.PCG64(np.random.SeedSequence(seed))
        self._buffer: Iterator[int] = iter(())

    def below(self, bound: int) -> int:
        """The next integer in ``[0, bound)``; the bias of the modulo is below 1e-15 for the bounds used here."""
        word = next(self._buffer, None)
        if word is None:
            self._buffer = iter(self._generator.random_raw(64).tolist())
            word = next(self._buffer)
        return word % bound

    def between(self, low: int, high: int) -> int:
        """The next integer in ``[low, high]``."""
        return low + self.below(high - low + 1)


@dataclass(frozen=True)
class Shape:
    """One coloured shape: centre and radius (units), hue, brightness, saturation (0..255), and the words for them."""

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
    def rgb(self) -> tuple[int, int, int]:
        """The colour as 0..255, in the HSV model."""
        sector, part = divmod(self.hue, 256)
        low = self.brightness * (255 - self.saturation) // 255
        rise = low + (self.brightness - low) * part // 256
        fall = low + (self.brightness - low) * (256 - part) // 256
        high = self.brightness
        wheel = ((high, rise, low), (fall, high, low), (low, high, rise), (low, fall, high), (rise, low, high))
        return wheel[sector] if sector < 5 else (high, low, fall)


@dataclass(frozen=True)
class Scene:
    """Shapes from left to right, dots as centres (units), the grey of the ground (0..255) and the seed of its grain."""

    shapes: tuple[Shape, ...]
    dots: tuple[tuple[int, int], ...]
    ground: int
    grain: int

    def digest(self) -> bytes:
        """SHA-256 of everything that makes the picture; equal for equal scenes, on every platform."""
        return hashlib.sha256(repr(self).encode()).digest()


def draw_scene(words: Words) -> Scene:
    """The next scene of the stream; layouts that do not fit are drawn again."""
    while True:
        shapes = _draw_shapes(words)
        dots = _draw_dots(words, shapes) if shapes else None
        if dots is not None:
            ordered = tuple(sorted(shapes, key=lambda shape: shape.x))
            return Scene(ordered, tuple(sorted(dots)), words.between(12, 44), words.below(2**32))


def _draw_shapes(words: Words) -> list[Shape]:
    shapes: list[Shape] = []
    kinds = list(KINDS)
    for _ in range(words.between(1, MOST_SHAPES)):
        kind = kinds.pop(words.below(len(kinds)))
        shape = _draw_shape(words, kind)
        for _ in range(8):
            if all(_apart(shape, other) for other in shapes):
                break
            shape = _draw_shape(words, kind)
        else:
            return []
        shapes.append(shape)
    return shapes


def _draw_shape(words: Words, kind: str) -> Shape:
    size = tuple(SIZES)[words.below(len(SIZES))]
    tone = tuple(TONES)[words.below(len(TONES))]
    index = words.below(len(COLOURS))
    radius = words.between(*SIZES[size])
    reach = HUE_STEP // 2 - HUE_GUARD
    return Shape(
        kind=kind,
        size=size,
        tone=tone,
        colour=COLOURS[index],
        x=words.between(radius, CANVAS - radius),
        y=words.between(radius, CANVAS - radius),
        radius=radius,
        hue=(index * HUE_STEP + words.between(-reach, reach)) % HUES,
        brightness=words.between(*TONES[tone][0]),
        saturation=words.between(*TONES[tone][1]),
    )


def _apart(one: Shape, other: Shape) -> bool:
    """Whether neither hides more than a corner of the other and no order or relation between them is close to a tie."""
    across, down = abs(one.x - other.x), abs(one.y - other.y)
    reach = 4 * (one.radius + other.radius) // 5
    return max(across, down) >= reach and across >= LEAST_OFFSET and abs(across - down) >= LEAST_OFFSET


def _draw_dots(words: Words, shapes: list[Shape]) -> list[tuple[int, int]] | None:
    dots: list[tuple[int, int]] = []
    for _ in range(words.between(1, MOST_DOTS)):
        for _ in range(20):
            x, y = words.between(DOT_RADIUS, CANVAS - DOT_RADIUS), words.between(DOT_RADIUS, CANVAS - DOT_RADIUS)
            clear = all(max(abs(x - s.x), abs(y - s.y)) > s.radius + DOT_RADIUS for s in shapes)
            if clear and all(max(abs(x - a), abs(y - b)) > 3 * DOT_RADIUS for a, b in dots):
                dots.append((x, y))
                break
        else:
            return None
    return dots
