"""Write counts in words."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return ``1 cell`` or ``1,200 cells``; pass ``plural`` if it is not ``noun`` with an s, as for ``cell fails``."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"
