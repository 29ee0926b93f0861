"""Errors that a user can fix, each with a readable message, and helpers that phrase and report them."""

from __future__ import annotations

import argparse
import difflib
import math
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

# As a shell tells of a program that a closed pipe ended.
PIPE_CLOSED = 141


class ConfigError(ValueError):
    """Invalid configuration, found before any work starts.

    ``problems`` has a sentence for every problem found, each with key, value and choices.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class StoreError(OSError):
    """The store cannot be read or written."""


class Parser(argparse.ArgumentParser):
    """Argument parser that reports bad input as a line per problem, with exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, "".join(f"error: {line}\n" for line in message.splitlines()))


@contextmanager
def output_may_close() -> Iterator[None]:
    """Exit without a word if the reader of standard output has closed it, as ``head`` does. Other broken pipes are raised."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        output = select.poll()
        output.register(1, 0)
        if not any(event & select.POLLERR for _, event in output.poll(0)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes it once more at its end.
        raise SystemExit(PIPE_CLOSED) from None


class OutOfMemory(MemoryError):
    """CPU or GPU memory was exhausted. ``asked_bytes`` is the size of the refused allocation, None if unknown."""

    def __init__(self, message: str, asked_bytes: int | None) -> None:
        super().__init__(message)
        self.asked_bytes = asked_bytes


class TargetError(ValueError):
    """The linears selected by a cell cannot be quantized as requested."""


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes, and how they are told."""

    told: str
    holds: Callable[[float], bool]


BITS = Range("a number of bits above 0", lambda value: 0 < value < math.inf)
SHARE = Range("a share above 0, at most 1", lambda value: 0 < value <= 1)
COUNT = Range("0 or more", lambda value: 0 <= value < math.inf)


def check_ranges(options: Mapping[str, object], ranges: Mapping[str, Range]) -> None:
    """Raise a ``ConfigError`` that lists every number among ``options``, by name, that is not in its range.

    Options that are no numbers, or not given, are left to others.
    """
    found = []
    for name, allowed in ranges.items():
        given = options.get(name)
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, int | float) and not isinstance(value, bool) and not allowed.holds(value):
                found.append(f"--{name.replace('_', '-')} {value:g}: choose {allowed.told}")
    if found:
        raise ConfigError(found)


def some_of(names: Iterable[object], shown: int = 3) -> str:
    """Return ``a, b, c, ...``: the first of ``names``."""
    told = [str(name) for name in names]
    return ", ".join(told[:shown]) + (", ..." if len(told) > shown else "")


def unknown(what: str, value: object, choices: Iterable[str]) -> str:
    """Return ``Unknown part 'visoin'. Did you mean vision? Choose connector, language or vision.``"""
    names = list(choices)
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Unknown {what} {value!r}.{hint} {one_of(names)}"


def one_of(choices: Iterable[object]) -> str:
    """Return ``Choose a, b or c.``"""
    names = [str(choice) for choice in choices]
    if len(names) < 2:
        return f"Choose {''.join(names)}."
    return f"Choose {', '.join(names[:-1])} or {names[-1]}."
