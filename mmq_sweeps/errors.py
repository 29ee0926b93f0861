"""What goes wrong in ways a person can mend, told in one readable line each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """The configuration asks for something that cannot be; found before any work starts.

    ``problems`` are complete sentences that name the key, the value and the choices; all that were found, not the first.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(dict.fromkeys(problems))
        super().__init__("\n".join(self.problems))


class StoreError(OSError):
    """The store cannot be read or written."""


class OutOfMemory(MemoryError):
    """Something did not fit into the memory of the CPU or of a GPU; ``asked_bytes`` is what was refused, if that is known."""

    def __init__(self, message: str, asked_bytes: int | None) -> None:
        super().__init__(message)
        self.asked_bytes = asked_bytes


class TargetError(ValueError):
    """The linears that a cell selects cannot be quantized as asked."""


def unknown(what: str, value: object, choices: Iterable[str]) -> str:
    """``Unknown part 'visoin' for tiny_blip2. Did you mean vision? Choose connector, language or vision.``"""
    names = list(choices)
    close = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"Unknown {what} {value!r}.{hint} {one_of(names)}"


def one_of(choices: Iterable[object]) -> str:
    """``Choose a, b or c.``"""
    names = [str(choice) for choice in choices]
    if len(names) < 2:
        return f"Choose {''.join(names)}."
    return f"Choose {', '.join(names[:-1])} or {names[-1]}."
