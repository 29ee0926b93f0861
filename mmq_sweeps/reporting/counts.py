"""Write counts in words, with nouns and verbs that agree with them."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str | None = None) -> str:
    """Return ``1 cell`` or ``1,200 cells``; ``plural`` is for words without an s: ``counted(2, "cell has", "cells have")``."""
    shown = f"{int(number):,}" if float(number).is_integer() else f"{number:g}"
    return f"{shown} {noun if number == 1 else plural or noun + 's'}"


def are(number: float) -> str:
    """Return ``is`` of one and ``are`` of others."""
    return "is" if number == 1 else "are"


def out_of(number: int, whole: int, noun: str, verb: str, plural: str) -> str:
    """Return ``1 of 3 cells has`` or ``2 of 3 cells have``."""
    return f"{number:,} of {counted(whole, noun)} {verb if number == 1 else plural}"
