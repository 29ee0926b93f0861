"""Asking running cells to stop: by a signal, by ``python -m launch cancel``, or because who asked for them is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a scheduler sends before it takes a node away (TERM; USR2 where one asks for it), and Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stop:
    """Whether to stop, and why. Whoever runs cells asks between them; what runs is finished and recorded first."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        """Ask to stop; the first reason is kept."""
        self.reason = self.reason or reason

    @contextmanager
    def on(self, *signals: signal.Signals) -> Iterator[None]:
        """Inside, each of ``signals`` asks to stop. Only the main thread can be signalled; elsewhere nothing changes."""

        def asked(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
            self.ask(signal.Signals(number).name)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {one: signal.signal(one, asked) for one in signals}
        try:
            yield
        finally:
            for one, handler in before.items():
                # None: it was set by another language's code, which Python cannot put back.
                signal.signal(one, signal.SIG_DFL if handler is None else handler)
