"""Measure how well the cells of one model or task predict another.

Regret: of the assignments that both measured, the one that is best on the first is used on the second within a budget, and
compared there with the second's own best. A part that only one of them has takes what its best cell with that assignment
has. Rank correlation: whether the same parts and units are the sensitive ones in
both. Parts and units are matched by name, methods by name and fields. Both have 95% intervals over the items of each side,
if all cells have scores by item whose mean is the metric.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from analysis.cells import Cells
from analysis.cells.columns import BITS, WHOLE
from analysis.cells.selections import Choice, assignment, by_number, choices, mixes_methods
from analysis.measures.family import Family, families
from analysis.measures.frontier import drawn_scores
from mmq_sweeps.identity.assignment import part_order
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.reporting.counts import counted

BUDGETS = (3.0, 4.0, 5.0, 6.0, 8.0)
# Fewer assignments leave no choice, fewer units no order.
LEAST_ASSIGNMENTS, LEAST_UNITS = 2, 3
UNRANKED = (
    f"no rank correlation, since fewer than {LEAST_UNITS} parts or units were quantized alone in both, by one method at one "
    "bit-width"
)
REGRETS = (
    "from",
    "to",
    "metric",
    "budget",
    "assignments",
    "chosen",
    "best",
    "regret",
    "low",
    "high",
    "by_chance",
    "full",
)
CORRELATIONS = ("first", "second", "method", "of", "bits", "units", "correlation", "low", "high")
_PERCENTILES = (2.5, 97.5)

# A method, and the choices of some parts.
_Key = tuple[str, frozenset[Choice]]


@dataclass(frozen=True)
class Transfer:
    """Tables over pairs of families, and ``notes`` on pairs that cannot be compared and why.

    ``regrets`` has a row per ordered pair and budget of at most ``budget`` bits per weight (by the paper's formula): the
    assignment ``chosen`` by the cells of ``from``, the ``best`` of ``to``, and how much worse ``chosen`` is in the
    ``metric`` of ``to`` (``regret``, zero or above, with the paired interval ``low`` to ``high``). ``by_chance`` is the mean
    regret of the common ``assignments`` within the budget, ``full`` the metric at full precision, NaN if no cell has it.

    ``correlations`` has a row per pair, method, bit-width and kind of unit (``of``): Spearman's ``correlation`` of the
    damages of the ``units`` that both quantized alone. Drawn items add noise to damages, and noise pulls a rank correlation
    towards zero: an interval may lie nearer to zero than the value if damages are as small as their own intervals.
    """

    regrets: pd.DataFrame
    correlations: pd.DataFrame
    notes: tuple[str, ...]


def transfer(cells: Cells, metric: str | None = None, budgets: Sequence[float] = BUDGETS) -> Transfer:
    """Compare every two models or tasks; of several families of one model and task the one with the most cells counts.

    Raises ValueError if there are no two families, or no two have anything in common.
    """
    sides, notes = _sides(cells, metric)
    if len(sides) < 2:
        told = sides[0].title if sides else f"none with {metric or 'a metric'}"
        raise ValueError(
            f"transfer needs cells of at least two models or tasks; there is {told}. Name several --source"
        )
    lacking: dict[str, list[str]] = {}
    regrets: list[dict[str, Any]] = []
    for source, target in permutations(sides, 2):
        found, reason = _regrets(source, target, budgets)
        regrets += found
        if reason:
            lacking.setdefault(reason, []).append(f"{source.title} to {target.title}")
    correlations: list[dict[str, Any]] = []
    for first, second in combinations(sides, 2):
        rows = list(_correlations(first, second))
        correlations += rows
        if not rows:
            lacking.setdefault(UNRANKED, []).append(f"{first.title} and {second.title}")
    notes += [f"{reason}: {'; '.join(pairs)}" for reason, pairs in lacking.items()]
    if not regrets and not correlations:
        raise ValueError("nothing can be compared: " + "; ".join(notes))
    return Transfer(
        pd.DataFrame(regrets, columns=list(REGRETS)),
        pd.DataFrame(correlations, columns=list(CORRELATIONS)),
        tuple(notes),
    )


def _sides(cells: Cells, metric: str | None) -> tuple[list[_Side], list[str]]:
    largest: dict[tuple[str, str], Family] = {}
    left_out = 0
    for family in families(cells, metric):
        key = tuple(family.cells.frame[["model", "task"]].iloc[0])
        known = largest.get(key)
        left_out += known is not None
        if known is None or len(family.cells.frame) > len(known.cells.frame):
            largest[key] = family
    note = f"{counted(left_out, 'family', 'families')} of the same model and task with fewer cells left out"
    return [_Side(family) for family in largest.values()], [note] * bool(left_out)


class _Side:
    """A family, read once: the choices of its cells, their scores (higher is better) and draws of these."""

    def __init__(self, family: Family) -> None:
        self.title, self.quality, self.task = family.title, family.quality, family.cells.frame["task"].iloc[0]
        self._family = family.cells
        frame = family.cells.frame
        self.rows = frame[frame[self.quality.column].notna()].reset_index(drop=True)
        self.parts = [part for part in family.cells.parts if self.rows[f"{BITS}{part}"].notna().any()]
        self.scores = self.quality.score(self.rows)
        self.bpw = (
            self.rows["bpw_paper"].to_numpy(dtype=np.float64)
            if "bpw_paper" in self.rows
            else np.full(len(self.rows), np.nan)
        )
        self.choices = [choices(row, self.parts) for row in self.rows.to_dict("records")]
        self.full = self.quality.baseline(self.rows)

    @cached_property
    def draws(self) -> np.ndarray | None:
        """Scores ``[draws, cells]`` over drawn items; None unless all cells have scores whose mean is the metric."""
        return drawn_scores(self._family, self.rows, self.quality)

    def best_by(self, parts: Sequence[str], within: np.ndarray) -> dict[_Key, int]:
        """Return the best of the cells ``within`` for every assignment of ``parts``, whatever its other parts have."""
        found: dict[_Key, int] = {}
        for place in np.flatnonzero(within):
            selection = frozenset(choice for choice in self.choices[place] if choice.part in parts)
            if selection:
                key = (str(self.rows["method"][place]), selection)
                if key not in found or self.scores[place] > self.scores[found[key]]:
                    found[key] = int(place)
        return found

    def alone(self) -> dict[tuple[str, str, float], dict[str, int]]:
        """Return the cells that quantize one unit alone: by method, kind of unit and bits, and by the unit's name."""
        found: dict[tuple[str, str, float], dict[str, int]] = {}
        for place, chosen in enumerate(self.choices):
            method = str(self.rows["method"][place])
            if len(chosen) == 1 and not mixes_methods(method) and (unit := _unit(next(iter(chosen)))) is not None:
                kind, name, bits = unit
                found.setdefault((method, kind, bits), {})[name] = place
        return found


def _unit(choice: Choice) -> tuple[str, str, float] | None:
    """Return the kind, name and bits of the unit that a cell quantizes alone; None if it is no single one."""
    part, bits, blocks, layers, group, selection = choice
    if selection:
        units = by_number(selection)
        if len(units) != 1:
            return None
        name, rule = next(iter(units.items()))
        return "units", f"{part} {name}", float(rule["bits"])
    own = f" g{group}" if group else ""
    if part in END_PARTS or (blocks == WHOLE["blocks"] and layers == WHOLE["layers"]):
        return "parts", f"{part}{own}", float(bits)
    if layers == WHOLE["layers"]:
        return "block groups", f"{part} {blocks}{own}", float(bits)
    kind = "layer kinds" if blocks == WHOLE["blocks"] else "layer kinds of block groups"
    return kind, f"{part} {blocks} {layers}{own}", float(bits)


def _regrets(source: _Side, target: _Side, budgets: Sequence[float]) -> tuple[list[dict[str, Any]], str]:
    """Return a row per budget, or the reason why there is none."""
    shared = [part for part in source.parts if part in target.parts]
    if not shared:
        return [], "no regret, since they have no part in common"
    known = source.best_by(shared, np.ones(len(source.rows), dtype=bool))
    if not known.keys() & target.best_by(shared, np.ones(len(target.rows), dtype=bool)).keys():
        return [], f"no regret, since no assignment of {', '.join(shared)} was measured in both"
    found, seen = [], 0
    for budget in sorted(budgets):
        own = target.best_by(shared, target.bpw <= budget)
        # Of equal ones the first, in an order that is the same in all runs.
        common = sorted(known.keys() & own.keys(), key=lambda key: (key[0], sorted(key[1])))
        # A budget that lets in nothing new says nothing new.
        if len(common) >= LEAST_ASSIGNMENTS and len(common) > seen:
            seen = len(common)
            found.append(_regret(source, target, budget, [known[key] for key in common], [own[key] for key in common]))
    reason = (
        f"no regret, since fewer than {LEAST_ASSIGNMENTS} assignments that both measured are within {max(budgets):g} bits per "
        "weight (--max-bpw)"
    )
    return found, "" if found else reason


def _regret(source: _Side, target: _Side, budget: float, there: list[int], here: list[int]) -> dict[str, Any]:
    """Compare the best of the cells ``here`` with the one whose assignment is the best of the cells ``there``."""
    chosen, best = here[int(np.argmax(source.scores[there]))], here[int(np.argmax(target.scores[here]))]
    low = high = np.nan
    if target.draws is not None:
        low, high = np.percentile(target.draws[:, best] - target.draws[:, chosen], _PERCENTILES)
    scores = target.scores
    return {
        "from": source.title,
        "to": target.title,
        "metric": target.quality.metric,
        "budget": budget,
        "assignments": len(here),
        "chosen": assignment(target.rows.loc[chosen]),
        "best": assignment(target.rows.loc[best]),
        "regret": float(scores[best] - scores[chosen]),
        "low": float(low),
        "high": float(high),
        "by_chance": float(np.mean(scores[best] - scores[here])),
        "full": np.nan if target.full is None else float(target.quality.sign * scores[target.full]),
    }


def _correlations(first: _Side, second: _Side) -> Iterator[dict[str, Any]]:
    ours, theirs = first.alone(), second.alone()
    for key in sorted(ours.keys() & theirs.keys()):
        units = sorted(ours[key].keys() & theirs[key].keys(), key=lambda unit: (part_order(unit.split(" ")[0]), unit))
        if len(units) < LEAST_UNITS:
            continue
        method, kind, bits = key
        places = [[alone[key][unit] for unit in units] for alone in (ours, theirs)]
        value, low, high = _spearman(first, places[0], second, places[1])
        yield {
            "first": first.title,
            "second": second.title,
            "method": method,
            "of": kind,
            "bits": bits,
            "units": len(units),
            "correlation": value,
            "low": low,
            "high": high,
        }


def _spearman(first: _Side, ours: list[int], second: _Side, theirs: list[int]) -> tuple[float, float, float]:
    """Return the rank correlation of the damages of cells of two sides, with its interval; NaN where all tie."""
    value = float(correlations(-first.scores[ours][None], -second.scores[theirs][None])[0])
    if first.draws is None or second.draws is None:
        return value, np.nan, np.nan
    # Full precision is the same in every damage of a draw, so it changes no rank.
    drawn = [-first.draws[:, ours], -second.draws[:, theirs]]
    if first.task != second.task:
        # Draws of as many items are the same draws, which mean nothing to the items of another task.
        drawn[1] = np.roll(drawn[1], len(drawn[1]) // 2, axis=0)
    found = correlations(*drawn)
    if np.isnan(found).all():
        return value, np.nan, np.nan
    low, high = np.nanpercentile(found, _PERCENTILES)
    return value, float(low), float(high)


def correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each row of ``first`` and ``second`` ``[B, N]``; NaN if all of a row tie."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    norms = [np.sqrt((rank**2).sum(axis=1)) for rank in centred]
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (centred[0] * centred[1]).sum(axis=1) / (norms[0] * norms[1])
    return found
