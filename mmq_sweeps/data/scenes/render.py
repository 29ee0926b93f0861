"""Draw scenes in integer arithmetic only: the same bytes on every platform, with every version of Pillow."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmq_sweeps.data.scenes.scene import CANVAS, DOT_RADIUS, PIXELS, UNITS, Scene

Grid = NDArray[np.int64]
Mask = NDArray[np.bool_]
_Inside = Callable[[Grid, Grid, int], Mask]

DOT_GREY = 235
GRAIN = 4


def render(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of 48 x 48 pixels."""
    return Image.fromarray(render_array(scene), "RGB")


def render_array(scene: Scene) -> NDArray[np.uint8]:
    """Return the scene as uint8 ``[48, 48, 3]``: nine samples per pixel, averaged, plus a grain of a few levels.

    Shapes and dots never overlap.
    """
    canvas = np.full((CANVAS, CANVAS, 3), scene.ground, dtype=np.uint16)
    for shape in scene.shapes:
        _paint(canvas, shape.x, shape.y, shape.radius, _KINDS[shape.kind], shape.rgb)
    for x, y in scene.dots:
        _paint(canvas, x, y, DOT_RADIUS, _KINDS["circle"], (DOT_GREY,) * 3)
    pixels = np.zeros((PIXELS, PIXELS, 3), dtype=np.uint16)
    for down, across in np.ndindex(UNITS, UNITS):
        pixels += canvas[down::UNITS, across::UNITS]
    raw = np.random.PCG64(np.random.SeedSequence(scene.grain)).random_raw(PIXELS * PIXELS * 3 // 8)
    # Little-endian byte order on every machine.
    grain = raw.astype("<u8").view(np.uint8).reshape(pixels.shape) % (2 * GRAIN + 1)
    return np.clip((pixels // UNITS**2).astype(np.int16) + grain - GRAIN, 0, 255).astype(np.uint8)


def _paint(canvas: NDArray[np.uint16], x: int, y: int, radius: int, inside: _Inside, colour: tuple[int, ...]) -> None:
    top, left = max(y - radius, 0), max(x - radius, 0)
    window = canvas[top : y + radius + 1, left : x + radius + 1]
    down = np.arange(top, top + window.shape[0], dtype=np.int64)[:, None] - y
    across = np.arange(left, left + window.shape[1], dtype=np.int64)[None, :] - x
    window[inside(across, down, radius)] = colour


# Whether a point, relative to the centre of a shape of radius r, lies inside the shape.
_KINDS: dict[str, _Inside] = {
    "circle": lambda x, y, r: x * x + y * y <= r * r,
    "ring": lambda x, y, r: (x * x + y * y <= r * r) & (25 * (x * x + y * y) >= 9 * r * r),
    "square": lambda x, y, r: 8 * np.maximum(abs(x), abs(y)) <= 7 * r,
    "diamond": lambda x, y, r: abs(x) + abs(y) <= r,
    "triangle": lambda x, y, r: (4 * y <= 3 * r) & (2 * abs(x) <= y + r),
    "cross": lambda x, y, r: 3 * np.minimum(abs(x), abs(y)) <= r,
    "hourglass": lambda x, y, r: (abs(x) <= abs(y)) & (8 * abs(y) <= 7 * r),
    "bar": lambda x, y, r: (5 * abs(y) <= 2 * r) & (abs(x) <= r),
}
