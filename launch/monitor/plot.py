"""Draw the frontier so far in characters: quality over bits per weight, for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from rich.text import Text

from launch.monitor.frontier import Point, Results
from mmq_sweeps.reporting.counts import counted

# Beside the plot: a label of the y axis.
LEFT = 9
# Lines beside the canvas: title, axis, ticks, legend.
AROUND = 4
LEAST_WIDTH, LEAST_LINES = 30, 5
MARKS = ("o", "x", "+", "#", "@", "%")
COLOURS = ("bright_blue", "bright_red", "bright_green", "bright_magenta", "bright_cyan", "yellow")
BEST, BEST_COLOUR, FULL = "★", "bright_yellow", "full precision"
# A sign without dots.
EMPTY = "\u2800"
# Ticks of the x axis, and those beside them if it is shorter than ``LONG`` bits.
TICKS, HALVES, LONG = (1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16), (1.5, 2.5, 3.5, 4.5, 5.5), 5


def plot(found: Results, width: int, height: int, max_bpw: float | None = None) -> Text | None:
    """Draw ``found`` in ``height`` lines; None if there is no room, or fewer than two cells to draw.

    A method's frontier is a line between its marks, its other cells are dots, the best cell within ``max_bpw`` is a star.
    """
    columns, lines = width - LEFT - 1, height - AROUND
    if not fits(found, width, height):
        return None
    # Imported here since only terminals need it.
    from plotille import Canvas

    limits = _limits(found)
    methods = list(dict.fromkeys(point.method for point in found.points))
    layers = [(_level(found, max_bpw, Canvas(columns, lines, *limits)), "dim")]
    layers += [
        (_frontier(found, method, MARKS[number % len(MARKS)], Canvas(columns, lines, *limits)), _colour(number))
        for number, method in enumerate(methods)
    ]
    if (best := found.best(max_bpw)) is not None:
        star = Canvas(columns, lines, *limits)
        star.text(best.bpw, best.value, BEST)
        layers.append((star, f"bold {BEST_COLOUR}"))
    rows = _together([(canvas.plot("\n").split("\n"), style) for canvas, style in layers])
    title = f"{found.title}: {found.label} over bits per weight, {counted(len(found.points), 'cell')}"
    shown = [Text(title[:width]), *_labelled(rows, limits[1], limits[3]), Text(" " * LEFT + "└" + "─" * columns)]
    shown += [_ticks(limits[0], limits[2], columns), _legend(methods, found)]
    for line in shown:
        line.truncate(width)
    return Text("\n").join(shown)


def fits(found: Results, width: int, height: int) -> bool:
    """Return True if there is room for a plot of ``found``, and something to draw."""
    return width - LEFT - 1 >= LEAST_WIDTH and height - AROUND >= LEAST_LINES and len(found.points) > 1


def _level(found: Results, max_bpw: float | None, canvas: Any) -> Any:
    """Draw full precision and the budget as dotted lines."""
    x_low, x_high, y_low, y_high = canvas.xmin, canvas.xmax, canvas.ymin, canvas.ymax
    if found.full is not None:
        for place in range(0, canvas.width * 2, 4):
            canvas.point(x_low + place * (x_high - x_low) / (canvas.width * 2), found.full)
    if max_bpw is not None:
        for place in range(0, canvas.height * 4, 2):
            canvas.point(max_bpw, y_low + place * (y_high - y_low) / (canvas.height * 4))
    return canvas


def _frontier(found: Results, method: str, mark: str, canvas: Any) -> Any:
    """Draw the cells of ``method`` as dots, and its frontier as a line between marks."""
    frontier = found.frontier(method)
    for point in found.points:
        if point.method == method:
            canvas.point(point.bpw, point.value)
    for before, after in pairwise(frontier):
        canvas.line(before.bpw, before.value, after.bpw, after.value)
    for point in frontier:
        canvas.text(point.bpw, point.value, mark)
    return canvas


def _together(layers: Sequence[tuple[Sequence[str], str]]) -> list[Text]:
    """Lay canvases over each other, each in its style: the library's own colours ask standard output, not the console."""
    rows = []
    for lines in zip(*(rows for rows, _ in layers), strict=True):
        row = Text()
        for signs in zip(*lines, strict=True):
            top = max((number for number, sign in enumerate(signs) if sign != EMPTY), default=None)
            row.append(EMPTY if top is None else signs[top], style="" if top is None else layers[top][1])
        rows.append(row)
    return rows


def _labelled(rows: Sequence[Text], low: float, high: float) -> Iterator[Text]:
    """Yield the rows with labels of the y axis: the middle of the first, the central and the last row."""
    for number, row in enumerate(rows):
        value = high - (number + 0.5) * (high - low) / len(rows)
        if number in (0, len(rows) // 2, len(rows) - 1):
            yield Text(f"{value:>{LEFT - 1}.3g} ┤") + row
        else:
            yield Text(" " * LEFT + "│") + row


def _limits(found: Results) -> tuple[float, float, float, float]:
    """Return the lower left and the upper right corner, a little beyond the frontiers: other cells may lie below."""
    methods = {point.method for point in found.points}
    shown: Sequence[Point] = [point for method in methods for point in found.frontier(method)]
    xs = [point.bpw for point in shown]
    ys = [point.value for point in shown] + ([] if found.full is None else [found.full])
    (x_low, x_high), (y_low, y_high) = _padded(min(xs), max(xs)), _padded(min(ys), max(ys))
    return x_low, y_low, x_high, y_high


def _padded(low: float, high: float) -> tuple[float, float]:
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return (0.0 if 0 <= low < room else low - room), high + room


def _ticks(low: float, high: float, columns: int) -> Text:
    line = [" "] * (columns + LEFT + 8)
    free = 0
    for tick in sorted(TICKS if high - low > LONG else (*TICKS, *HALVES)):
        place = LEFT + 1 + int((tick - low) / (high - low) * columns)
        label = f"{tick:g}"
        if low <= tick <= high and place >= free and place + len(label) <= len(line):
            line[place : place + len(label)] = label
            free = place + len(label) + 2
    return Text("".join(line).rstrip())


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _legend(methods: Sequence[str], found: Results) -> Text:
    legend = Text(" " * (LEFT + 1))
    for number, method in enumerate(methods):
        legend.append(f"{MARKS[number % len(MARKS)]} {method}  ", style=_colour(number))
    if found.full is not None:
        legend.append(f"⠄⠄ {FULL}  ")
    legend.append(f"{BEST} best", style=BEST_COLOUR)
    return legend
