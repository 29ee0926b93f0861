"""Stop running cells: on a signal, on ``python -m launch cancel``, or because the parent process is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Sent by a scheduler before it reclaims a node (TERM; USR2 on request), and by Ctrl-C.
SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)


class Stop:
    """A stop request and its reason. Checked between cells; the current cell is finished and recorded first."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def ask(self, reason: str) -> None:
        """Request a stop; only the first reason is stored."""
        self.reason = self.reason or reason

    @contextmanager
    def on(self, *signals: signal.Signals) -> Iterator[None]:
        """Request a stop on any of ``signals`` inside the context.

        Has no effect outside the main thread, since Python handles signals only there.
        """

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
                # None means a handler that was not installed from Python, which Python cannot restore.
                signal.signal(one, signal.SIG_DFL if handler is None else handler)
