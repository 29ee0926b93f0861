"""Say how alike a cell's answers are, given ``answers`` of its record; empty for records that do not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

EMPTY, SAME = "empty", "same"
# Right answers repeat themselves too: a cell that does so less than this share of the items more often says little of it.
EXCESS = 0.05


def alike_columns(family: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield a column of shares for a table of ``family``, rows with ``answers``, if there is something to show.

    ``empty``: items without an answer, if a cell has one. ``same``: items with the commonest answer, if one ``repeats``.
    """
    told = [row.get("answers") or {} for row in family]
    if any(one.get("empty") for one in told):
        yield EMPTY, [_share(one.get("empty")) for one in told]
    if any(repeats(one) for one in told):
        yield SAME, [_share(one.get("identical")) for one in told]


def repeats(answers: Mapping[str, Any]) -> bool:
    """Return true if a cell repeats its commonest answer more than right answers would, by ``EXCESS`` of the items."""
    return bool(answers) and answers["identical"] >= answers["expected"] + EXCESS


def called(answers: Mapping[str, Any]) -> str:
    """Describe a cell that says nothing, or the same to everything; empty for any other."""
    if answers.get("empty") == 1:
        return "says nothing"
    if answers.get("identical") == 1 and answers["expected"] < 1:
        return f"says {answers['commonest']!r} to everything"
    return ""


def _share(value: float | None) -> str:
    if not value:
        return ""
    return "all" if value == 1 else f"{value:.1%}"
