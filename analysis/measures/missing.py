"""Find gaps in the cells: assignments missing from a method's grid, and full-precision baselines that disagree."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import BITS
from analysis.cells.selections import methods_in, of_method, whole
from analysis.load.overrides import value_text
from analysis.measures.quality import Quality
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS
from mmq_sweeps.reporting.compare import ROUNDING

# Cells that cover less than this share of all combinations of their bit-widths are not meant as a grid.
A_GRID = 0.5
SHOWN = 5


@dataclass(frozen=True)
class Gaps:
    """The assignments (bits by part) ``missing`` from a method's grid of ``many``, and ``commands`` to measure the first."""

    method: str
    missing: list[dict[str, int]]
    many: int
    commands: list[str]

    @property
    def sentence(self) -> str:
        more = f"; and {len(self.missing) - SHOWN} more" if len(self.missing) > SHOWN else ""
        not_measured = f"{'was' if len(self.missing) == 1 else 'were'} not measured: {'; '.join(self.commands)}{more}"
        return f"{len(self.missing)} of {self.many} assignments of {self.method} {not_measured}"


def gaps(family: Cells) -> Iterator[Gaps]:
    """Yield the gaps of every method that has at least ``A_GRID`` of the combinations of its parts' bit-widths."""
    parts = family.parts
    for method in methods_in(family.frame):
        own = of_method(family.frame, method)
        own = own[whole(own, parts)]
        bits = own[[f"{BITS}{part}" for part in parts]].dropna(axis=1)
        levels = [sorted(set(bits[name])) for name in bits]
        many = int(np.prod([len(one) for one in levels])) if levels else 0
        measured = set(bits.itertuples(index=False, name=None))
        if many <= len(measured) or len(measured) < A_GRID * many:
            continue
        every = pd.MultiIndex.from_product(levels)
        missing = [line for line in every if line not in measured]
        named = [name.removeprefix(BITS) for name in bits]
        lacking = [dict(zip(named, map(int, line), strict=True)) for line in missing]
        yield Gaps(method, lacking, many, [command(own, method, one) for one in lacking[:SHOWN]])


def command(rows: pd.DataFrame, method: str, bits: dict[str, int]) -> str:
    """Return the command that measures the assignment ``bits`` with the settings of ``rows``, into the same store.

    If the rows' source does not report settings, the command names only model, task and method.
    """
    full = set(bits.values()) == {FULL_PRECISION_BITS}
    alike = rows[rows["method"] == ("none" if full and (rows["method"] == "none").any() else method)]
    row = alike.iloc[0]
    said = row.get("overrides")
    if not isinstance(said, str):
        said = shlex.join([f"model={row['model']}", f"task={row['task']}", f"method={'none' if full else method}"])
    elif full:
        said = _at_full_precision(said)
    words = [] if full else [f"component.{part}.bits={width}" for part, width in bits.items()]
    for part, width in bits.items():
        low = alike[alike[f"{BITS}{part}"] < FULL_PRECISION_BITS]
        own = [size for size in low.get(f"group.{part}", pd.Series()).dropna() if size]
        if own and width < FULL_PRECISION_BITS:
            words.append(f"component.{part}.group_size={own[0]}")
    return " ".join(["python -m mmq_sweeps", said, *words, *_store(str(row["where"]))])


def again(row: pd.Series) -> str:
    """Return the command that measures the cell ``row`` again, into the same store; empty if its source does not say."""
    said, assigned, store = row.get("overrides"), row.get("assigned"), _store(str(row["where"]))
    if not isinstance(said, str) or not isinstance(assigned, str):
        return ""
    run = ["python -m mmq_sweeps", said, *([assigned] if assigned else []), *store]
    if not assigned.startswith("assignment="):
        return " ".join(run)
    root = shlex.quote(str(Path(str(row["where"])).parents[2])) if store else "runs"
    write = ["python -m mmq_sweeps.assignment", str(row["id"]), "--source", root, "--out", assigned.partition("=")[2]]
    return f"{' '.join(write)} && {' '.join(run)}"


def _at_full_precision(overrides: str) -> str:
    """Replace the method of ``overrides`` by ``none``; its fields and its calibration are no part of such a cell.

    Without bits, any other method would quantize every part at the default bits.
    """
    words = [
        word
        for word in shlex.split(overrides)
        if not word.startswith(("method=", "method.", "calibration.", "component."))
    ]
    return shlex.join([*words, "method=none"])


def _store(where: str) -> list[str]:
    """Return the override for the store of the record at ``where``; empty for the default store or another source."""
    path = Path(where)
    if path.name != "record.json" or len(path.parts) < 4:
        return []
    root = path.parents[2]
    return [] if str(root) == "runs" else [shlex.quote(f"store.dir={value_text(str(root))}")]


def unlike_baselines(families: Sequence[tuple[str, Cells, str]]) -> Iterator[tuple[str, str]]:
    """Yield ``(title, sentence)`` for each model and task whose full precision differs between sources.

    ``families`` are ``(title, cells, metric)``. Families of the same source are not compared: they differ in settings.
    """
    found: dict[tuple[Any, ...], dict[str, tuple[str, float]]] = {}
    for title, family, metric in families:
        full = Quality(metric).full(family.frame)
        if full is not None:
            model, task, source = family.frame[["model", "task", "source"]].iloc[0]
            found.setdefault((model, task, metric), {})[title] = source, full
    for (model, task, metric), told in found.items():
        figures = [value for _, value in told.values()]
        if len({source for source, _ in told.values()}) > 1 and np.ptp(figures) > ROUNDING * np.max(np.abs(figures)):
            shown = ", ".join(f"{value:.4f} in {title}" for title, (_, value) in told.items())
            yield f"{model}, {task}", f"full precision has a {metric} of {shown}: compare within a source only"
