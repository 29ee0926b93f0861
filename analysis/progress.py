"""Report the progress of long commands on standard error.

A terminal gets a single line, rewritten every second; other streams get a line per step, repeated every 30 seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

# Seconds before the first output.
PATIENCE = 5.0
TERMINAL_SECONDS, FILE_SECONDS = 1.0, 30.0


@dataclass
class Progress:
    """A context manager that reports progress from a thread; ``say`` sets the current step."""

    stream: TextIO = field(default_factory=lambda: sys.stderr)
    patience: float = PATIENCE
    _step: str = ""
    _width: int = 0
    _done: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._clear()

    def say(self, step: str) -> None:
        self._step = step
        if time.monotonic() - self._began >= self.patience and not self.stream.isatty():
            self._tell()

    def _run(self) -> None:
        if self._done.wait(self.patience):
            return
        self._tell()
        while not self._done.wait(TERMINAL_SECONDS if self.stream.isatty() else FILE_SECONDS):
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            text = f"{time.monotonic() - self._began:.0f} s: {self._step}"
            if self.stream.isatty():
                self._clear()
                self.stream.write(text)
                self._width = len(text)
            else:
                self.stream.write(text + "\n")
            self.stream.flush()

    def _clear(self) -> None:
        if self._width:
            self.stream.write("\r" + " " * self._width + "\r")
            self.stream.flush()
            self._width = 0
