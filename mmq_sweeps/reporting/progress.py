"""Show the progress of a sweep on standard error: bars on a terminal, otherwise a line per cell."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

# Top-level packages whose log is shown.
PACKAGES = ("mmq_sweeps", "launch", "analysis")


class Reporter(Protocol):
    """Receiver of progress events. ``cell`` is the id of the current cell, "" for work that several cells share."""

    def begin(self, title: str, cell: str = "") -> None:
        """Report the start of a cell, or of work that several cells share."""

    def stage(self, name: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` steps of the stage ``name`` are complete."""

    def finish(self, title: str, outcome: str, cell: str = "") -> None:
        """Report the end of a cell and its ``outcome``."""

    def say(self, text: str) -> None:
        """Report a message."""


class _Bars(Bars):
    """rich's bars, below the drawing of ``above``."""

    above: Callable[[Console], RenderableType] | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above(self.console)
        yield from super().get_renderables()


class Progress:
    """``Reporter`` for a terminal or log: progress over ``total`` cells and over the stages of the current cell.

    On a terminal, the drawing of ``above`` stands above the bars.
    """

    def __init__(self, total: int, above: Callable[[Console], RenderableType] | None = None) -> None:
        # Users' names may contain text that rich would take for markup or an emoji.
        self.console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self.total, self.done = total, 0
        self.bars = _Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bars.above = above
        self._cells = self.bars.add_task("cells", total=total)
        self._stage = self.bars.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    @property
    def shows_bars(self) -> bool:
        """True on a terminal."""
        return not self.bars.disable

    def skip(self, count: int) -> None:
        """Count ``count`` cells as done already."""
        self.done += count
        self.bars.update(self._cells, completed=self.done)

    def begin(self, title: str, cell: str = "") -> None:  # noqa: ARG002
        self.bars.update(self._cells, description=f"cells · {title}", refresh=True)

    def stage(self, name: str, done: int, total: int) -> None:
        self.bars.update(self._stage, description=f"  {name}", completed=done, total=total, visible=True)

    def finish(self, title: str, outcome: str, cell: str = "") -> None:  # noqa: ARG002
        self.done += 1
        self.bars.update(self._cells, completed=self.done)
        self.bars.update(self._stage, visible=False)
        if not self.console.is_terminal:
            self.say(f"cell {self.done} of {self.total}: {title}: {outcome}")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, soft_wrap=True)


class _Lines(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        self._say(f"{level}{record.getMessage()}")


def to_stderr(text: str) -> None:
    """Write a line to standard error."""
    sys.stderr.write(f"{text}\n")


@contextmanager
def warnings_to(say: Callable[[str], None] = to_stderr) -> Iterator[None]:
    """Hand the log of our packages, from INFO on, to ``say`` while the context is open; the innermost context gets it.

    So a command shows warnings on standard error, and between its bars while there are any.
    """
    lines = _Lines(say)
    with ExitStack() as undo:
        for logger in map(logging.getLogger, PACKAGES):
            for outer in [handler for handler in logger.handlers if isinstance(handler, _Lines)]:
                logger.removeHandler(outer)
                undo.callback(logger.addHandler, outer)
            logger.addHandler(lines)
            undo.callback(logger.removeHandler, lines)
            undo.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.INFO)
        yield
