"""Phrase the page's sentences: each a finding with its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from analysis.cells import Cells
from analysis.measures.sensitivity import Sensitivity
from mmq_sweeps.reporting.counts import counted

KEEP = 0.98
BUDGETS = (8.0, 6.0, 4.0)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """Add a capital and a full stop to ``text``."""
    return capital(text) + ("" if text.endswith(".") else ".")


def of_sensitivity(one: Sensitivity) -> Iterator[str]:
    """Describe the damage of each part alone at the fewest bits that all parts have, of pairs, and between methods."""
    whole = one.whole_alone
    for method, rows in whole.groupby("method") if not whole.empty else ():
        shared = set.intersection(*(set(of_part["bits"]) for _, of_part in rows.groupby("part")))
        if not shared or rows["part"].nunique() < 2:
            continue
        here = rows[rows["bits"] == min(shared)].sort_values("damage", ascending=False)
        told = ", ".join(f"{part} {damage:.4f}" for part, damage in zip(here["part"], here["damage"], strict=True))
        yield f"{method} at {min(shared)} bits of one part alone costs {one.quality.label}: {told}."
    for method, pairs in one.pairs.groupby("method") if not one.pairs.empty else ():
        together, alone = pairs["together"].mean(), pairs["sum"].mean()
        worse = int((pairs["interaction"] > 0).sum())
        yield (
            f"{method} in two parts together costs {together:.4f} on average, against {alone:.4f} for the sum of each alone; "
            f"worse together in {worse} of {counted(len(pairs), 'pair')}."
        )
    for _, row in one.methods.iterrows():
        by = f"{abs(row['better_by']):.4f} {'better' if row['better_by'] > 0 else 'worse'} than"
        yield (
            f"{row['method']} scores {by if row['better_by'] else 'the same as'} {row['than']} on average at the same bits, "
            f"better in {row['better_in']} of {counted(row['cells'], 'assignment')}."
        )


def of_cells(cells: Cells, defects: int) -> str:
    """Count the cells, and the failures, defects and notes that cast doubt on them."""
    done = int((cells.frame["status"] == "done").sum())
    failed = len(cells.frame) - done
    odd = ((failed, "failed cell"), (defects, "defect"), (len(cells.notes), "note"))
    return ", ".join([counted(done, "finished cell"), *(counted(number, noun) for number, noun in odd if number)])
