"""Which cells are not there: assignments that a method's grid lacks, and full precision that differs or was not measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import BITS, FULL_PRECISION_BITS, METRIC, Cells

# What has less than this share of all combinations of its bit-widths was not meant as a grid.
A_GRID = 0.5
SHOWN = 5


@dataclass(frozen=True)
class Gaps:
    """Of a ``method``: the bits by part of the ``missing`` assignments, of a grid of so ``many``."""

    method: str
    missing: list[dict[str, int]]
    many: int

    def sentence(self, model: str, task: str) -> str:
        commands = [command(model, task, self.method, bits) for bits in self.missing[:SHOWN]]
        more = f"; and {len(self.missing) - SHOWN} more" if len(self.missing) > SHOWN else ""
        return f"{len(self.missing)} of {self.many} assignments of {self.method} were not measured: {'; '.join(commands)}{more}"


def gaps(family: Cells) -> Iterator[Gaps]:
    """Where a method has most of the combinations of its parts' bit-widths: those that it has not."""
    parts = family.parts
    for method in sorted(set(family.frame["method"]) - {"none"}):
        own = family.frame[family.frame["method"].isin([method, "none"])]
        own = own[_whole(own, parts)]
        bits = own[[f"{BITS}{part}" for part in parts]].dropna(axis=1)
        levels = [sorted(set(bits[name])) for name in bits]
        many = int(np.prod([len(one) for one in levels])) if levels else 0
        measured = set(bits.itertuples(index=False, name=None))
        if many <= len(measured) or len(measured) < A_GRID * many:
            continue
        every = pd.MultiIndex.from_product(levels)
        missing = [line for line in every if line not in measured]
        named = [name.removeprefix(BITS) for name in bits]
        yield Gaps(method, [dict(zip(named, map(int, line), strict=True)) for line in missing], many)


def command(model: str, task: str, method: str, bits: dict[str, int]) -> str:
    """What measures an assignment."""
    if set(bits.values()) == {FULL_PRECISION_BITS}:
        return f"python -m mmq_sweeps model={model} task={task} method=none"
    widths = " ".join(f"component.{part}.bits={width}" for part, width in bits.items())
    return f"python -m mmq_sweeps model={model} task={task} method={method} {widths}"


def unlike_baselines(families: Sequence[tuple[str, Cells, str]]) -> Iterator[tuple[str, str]]:
    """``(title, sentence)`` of models and tasks whose full precision differs between families ``(title, cells, metric)``."""
    found: dict[tuple[Any, ...], dict[str, float]] = {}
    for title, family, metric in families:
        full = family.frame.loc[family.frame["method"] == "none", f"{METRIC}{metric}"].dropna()
        if len(full):
            model, task = family.frame[["model", "task"]].iloc[0]
            found.setdefault((model, task, metric), {})[title] = float(full.median())
    for (model, task, metric), figures in found.items():
        if len(set(figures.values())) > 1:
            told = ", ".join(f"{value:.4f} in {title}" for title, value in figures.items())
            yield f"{model}, {task}", f"full precision has a {metric} of {told}: compare within a source only"


def _whole(rows: pd.DataFrame, parts: Sequence[str]) -> pd.Series:
    kept = pd.Series(data=True, index=rows.index)
    for part in parts:
        low = rows[f"{BITS}{part}"] < FULL_PRECISION_BITS
        kept &= ~low | ((rows[f"blocks.{part}"] == "front+middle+end") & (rows[f"layers.{part}"] == "attention+mlp"))
    return kept
