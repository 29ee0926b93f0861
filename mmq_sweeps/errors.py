"""Errors that a user can fix, each with a readable message, and helpers that phrase them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """Invalid configuration, found before any work starts.

    ``problems`` has a sentence for every problem found, each with key, value and choices.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class StoreError(OSError):
    """The store cannot be read or written."""


class OutOfMemory(MemoryError):
    """CPU or GPU memory was exhausted. ``asked_bytes`` is the size of the refused allocation, None if unknown."""

    def __init__(self, message: str, asked_bytes: int | None) -> None:
        super().__init__(message)
        self.asked_bytes = asked_bytes


class TargetError(ValueError):
    """The linears selected by a cell cannot be quantized as requested."""


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
