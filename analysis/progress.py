"""Show the progress of long commands as a bar on standard error; only on a terminal, and gone when the command is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

T = TypeVar("T")


class Progress:
    """A context manager; ``say`` sets the current step, and ``counted`` counts within it wherever work is done."""

    def __init__(self, console: Console | None = None) -> None:
        # Users' names may contain text that rich would take for markup or an emoji.
        console = console or Console(stderr=True, markup=False, emoji=False, highlight=False)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bars = Bars(
            *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._bars.add_task("", total=None)
        self._step = ""

    def __enter__(self) -> Self:
        self._token = _shown.set(self)
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
        _shown.reset(self._token)

    def say(self, step: str) -> None:
        self._step = step
        self._bars.reset(self._task, description=step, total=None)

    def begin(self, what: str, total: int) -> None:
        self._bars.update(self._task, description=f"{self._step}, {what}" if self._step else what)
        self._bars.update(self._task, completed=0, total=total)

    def advance(self) -> None:
        self._bars.advance(self._task)


_shown: ContextVar[Progress | None] = ContextVar("shown", default=None)


def counted(work: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Yield from ``work``, and count in the command's bar, if there is one, up to ``total`` of ``what``."""
    progress = _shown.get()
    if progress is not None:
        progress.begin(what, total)
    for one in work:
        yield one
        if progress is not None:
            progress.advance()
