"""List a family's answers that differ from full precision, are empty, or are repeated too often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from analysis.audit.answers import alike_lines
from analysis.cells.selections import assignment
from analysis.measures.family import Family
from analysis.measures.flips import Flips
from analysis.report.blocks import Block, Drawn, Sentences
from analysis.report.columns import rounded
from analysis.report.words import sentence
from mmq_sweeps.reporting.counts import counted

# Cells that are named with their empty or repeated answers.
NAMED = 8


def changed(family: Family, frontier: pd.DataFrame, numbers: Mapping[tuple[str, str], int]) -> Iterator[Block]:
    """Yield bars of the flips of the cells on the ``frontier``, and sentences on answers that are empty or repeated."""
    found, reason = family.flips
    rows = [] if found is None else list(_rows(found, frontier, numbers))
    if rows and found is not None:
        words = ("scored lower", "scored higher") if found.graded else ("right, now wrong", "wrong, now right")
        yield Drawn("changes", {"rows": rows, "words": list(words)}, "Answers that differ from full precision")
    notes = [] if found is None else list(found.notes)
    lacking = [f"Answers cannot be compared with full precision: this family {reason}."] if reason else []
    yield Sentences([*map(sentence, notes), *lacking])
    # A method's name keeps its letters at the beginning of a sentence.
    if lines := [f"{line}." for line in alike_lines(family.cells.frame)]:
        more = [f"And {counted(len(lines) - NAMED, 'more cell')}."] if len(lines) > NAMED else []
        yield Sentences(["Empty and repeated answers:", *lines[:NAMED], *more])


def _rows(found: Flips, frontier: pd.DataFrame, numbers: Mapping[tuple[str, str], int]) -> Iterator[dict[str, Any]]:
    """Yield each cell's share of answers that differ, its interval, and the shares that lost and that gained."""
    for _, row in frontier.iterrows():
        if row["id"] not in found.table.index:
            continue
        told = found.table.loc[row["id"]].fillna(0.0)
        shares = {name.removeprefix("flips_"): told[name] for name in ("flips", "flips_low", "flips_high")}
        shares |= {name: told["flips"] * told[name] for name in ("lost", "gained")}
        yield {
            "cell": numbers[row["id"], row["where"]],
            "name": assignment(row),
            **{name: rounded(float(share)) or 0.0 for name, share in shares.items()},
        }


def flip_columns(found: Iterable[Flips | None]) -> dict[str, dict[str, float]]:
    """Return by column, ``flips`` and its parts, the values by cell id."""
    tables = [one.table for one in found if one is not None and not one.table.empty]
    if not tables:
        return {}
    joined = pd.concat(tables)
    return {name: joined[name].dropna().to_dict() for name in ("flips", "flips_low", "flips_high", "lost", "gained")}
