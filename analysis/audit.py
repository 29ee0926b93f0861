"""What a sweep's figures do not show by themselves: cells that measured nothing, or something else than they say.

Six questions to every family of comparable cells:

- how many distinct outputs there are, told by the predictions where there are any, else by the scores;
- which cells lower bits and score exactly as full precision does;
- which layer kinds of which parts are counted as quantized but never change a score: cells that differ in nothing else
  are compared, at every setting of the rest;
- which cells state the same assignment, or one that differs in such a layer kind only, and yet score differently;
- how far cells lie apart that lose next to nothing, with every part at many bits, where bits do not explain it;
- which assignments a grid lacks.

And to all of them together: whether full precision scores the same wherever it should.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import BITS, FULL_PRECISION_BITS, METRIC, Cells, part_order
from analysis.missing import gaps, unlike_baselines

KINDS = ("attention", "mlp")
GROUPS = ("front", "middle", "end")
# Fewer comparisons than these prove nothing about a layer kind.
LEAST_COMPARISONS = 5
# From so many bits on a good method loses next to nothing, and so many cells are enough to tell their scatter.
MANY_BITS, LEAST_SCATTERED = 6, 20
# What of the score is scatter worth telling, and what share of it bits may explain.
SCATTER, EXPLAINED = 0.005, 0.25


@dataclass(frozen=True)
class Finding:
    """One defect: its kind, a sentence, and how many cells it touches of how many."""

    family: str
    defect: str
    sentence: str
    cells: int
    of: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def audit(cells: Cells, metric: str | None = None) -> list[Finding]:
    """Every finding in every family of ``cells``, by the family's first metric unless one is named; empty if none."""
    done = cells.of(cells.frame[cells.frame["status"] == "done"])
    found: list[Finding] = []
    measured = []
    for title, family in done.families():
        name = metric or (family.metrics or [""])[0]
        if name in family.metrics:
            found += [Finding(title, *finding) for finding in _of_family(family, name)]
            measured.append((title, family, name))
    for title, sentence in unlike_baselines(measured):
        found.append(Finding(title, "baselines differ", sentence, 0, len(done.frame)))
    return found


def _of_family(family: Cells, metric: str) -> Iterator[tuple[str, str, int, int]]:
    rows = family.frame[family.frame[f"{METRIC}{metric}"].notna()].reset_index(drop=True)
    score = rows[f"{METRIC}{metric}"].to_numpy(dtype=np.float64)
    settings = effective(rows)
    yield from _outputs(rows)
    yield from _ties(settings, score, metric)
    idle = list(never_applied(settings, score))
    for name, compared in idle:
        touched = int((settings[name] != _untouched(settings[name])).sum())
        yield (
            "not applied",
            f"{name} is counted as quantized in {touched} cells and never changes {metric} "
            f"({compared} comparisons of cells that differ in nothing else)",
            touched,
            len(rows),
        )
    yield from _unchanged(rows, settings, score, metric, [name for name, _ in idle])
    yield from _scatter(family, rows, score, metric)
    for one in gaps(family):
        model, task = family.frame[["model", "task"]].iloc[0]
        yield "missing cells", one.sentence(model, task), len(one.missing), one.many


def effective(rows: pd.DataFrame) -> pd.DataFrame:
    """What a cell quantizes, a column a part and layer kind: bits of front, middle and end, such as ``3/16/16``; the method."""
    columns = {"method": rows["method"].where(rows["method"] != "none", "")}
    for part in sorted((name[len(BITS) :] for name in rows if name.startswith(BITS)), key=part_order):
        bits = rows[f"{BITS}{part}"].fillna(FULL_PRECISION_BITS).astype(int).astype(str)
        blocks, layers = rows[f"blocks.{part}"].fillna(""), rows[f"layers.{part}"].fillna("")
        for kind in KINDS:
            here = layers.str.contains(kind)
            told = [bits.where(here & blocks.str.contains(group), str(FULL_PRECISION_BITS)) for group in GROUPS]
            columns[f"{part} {kind}"] = told[0] + "/" + told[1] + "/" + told[2]
    return pd.DataFrame(columns)


def _untouched(column: pd.Series) -> str:
    return "" if column.name == "method" else "/".join([str(FULL_PRECISION_BITS)] * len(GROUPS))


def tolerance(settings: pd.DataFrame, score: np.ndarray) -> float:
    """How far scores of one and the same setting lie apart at full precision: what no difference below can mean."""
    full = (settings.drop(columns="method") == "16/16/16").all(axis=1).to_numpy()
    return float(np.ptp(score[full])) if full.sum() > 1 else 0.0


def never_applied(settings: pd.DataFrame, score: np.ndarray) -> Iterator[tuple[str, int]]:
    """Part and layer kind whose setting never changes the score while all else is equal, and the comparisons that show it.

    Cells with the lowest score that the family has are left out: where nothing is left of quality, nothing can be lost.
    """
    allowed = tolerance(settings, score) + 1e-12
    alive = score > score.min() + 0.1 * np.ptp(score)
    for name in settings.columns.drop("method"):
        others = [column for column in settings.columns if column not in (name, "method")]
        grouped = settings[alive].assign(score=score[alive]).groupby(others, sort=False)
        spread = grouped["score"].agg(np.ptp)[grouped[name].nunique() > 1]
        if len(spread) >= LEAST_COMPARISONS and (spread <= allowed).all():
            yield name, len(spread)


def _outputs(rows: pd.DataFrame) -> Iterator[tuple[str, str, int, int]]:
    figures = [column for column in rows if column.startswith(METRIC)]
    distinct = len(rows[figures].drop_duplicates())
    by = "by their scores: predictions of all cells would tell exactly"
    if "output" in rows and rows["output"].notna().all():
        distinct, by = rows["output"].nunique(), "by their predictions"
    if distinct < len(rows):
        yield (
            "duplicated outputs",
            f"{len(rows)} cells have {distinct} distinct outputs, {by}",
            len(rows) - distinct,
            len(rows),
        )


def _ties(settings: pd.DataFrame, score: np.ndarray, metric: str) -> Iterator[tuple[str, str, int, int]]:
    grouped = settings.assign(score=score).groupby(list(settings.columns), sort=False)["score"]
    repeated = grouped.size() > 1
    spread = grouped.agg(np.ptp)[repeated]
    if (spread > 0).any():
        touched = int(grouped.size()[repeated][spread > 0].sum())
        yield (
            "do not tie",
            f"{touched} cells state an assignment that another has as well and score differently: "
            f"{metric} up to {spread.max():.4g} apart",
            touched,
            len(score),
        )


def _scatter(family: Cells, rows: pd.DataFrame, score: np.ndarray, metric: str) -> Iterator[tuple[str, str, int, int]]:
    """Cells that should all but tie, by method: the deviation of the score around what the parts' bits explain."""
    parts = [f"{BITS}{part}" for part in family.parts]
    bits = rows[parts].fillna(FULL_PRECISION_BITS).to_numpy(dtype=np.float64)
    for method in sorted(set(rows["method"]) - {"none"}):
        near = ((rows["method"] == method) | (rows["method"] == "none")).to_numpy() & (bits >= MANY_BITS).all(axis=1)
        if near.sum() < LEAST_SCATTERED:
            continue
        design = np.column_stack([np.ones(int(near.sum())), bits[near]])
        rest = score[near] - design @ np.linalg.lstsq(design, score[near], rcond=None)[0]
        if rest.std() > SCATTER * abs(score[near].mean()) and rest.var() > (1 - EXPLAINED) * score[near].var():
            yield (
                "scatter",
                f"{int(near.sum())} cells of {method} have every part at {MANY_BITS} bits or more and should all but tie, yet "
                f"{metric} lies between {score[near].min():.4f} and {score[near].max():.4f} (standard deviation "
                f"{score[near].std(ddof=1):.4f}, {1 - rest.var() / score[near].var():.0%} of it explained by bits): "
                "smaller differences than these mean nothing",
                int(near.sum()),
                len(rows),
            )


def _unchanged(
    rows: pd.DataFrame, settings: pd.DataFrame, score: np.ndarray, metric: str, idle: list[str]
) -> Iterator[tuple[str, str, int, int]]:
    untouched = (settings.drop(columns="method") == "16/16/16").all(axis=1).to_numpy()
    if not untouched.any():
        yield (
            "missing baseline",
            "no cell at full precision: whether quantization changed anything cannot be told",
            0,
            len(rows),
        )
        return
    same = ~untouched & np.isin(score, score[untouched])
    if same.any():
        explained = ""
        if idle:
            real = (settings.drop(columns=["method", *idle]) == "16/16/16").all(axis=1).to_numpy()
            explained = f"; {int((same & real).sum())} of them quantize nothing but {' and '.join(idle)}"
        yield (
            "changed nothing",
            f"{int(same.sum())} cells lower bits and have exactly the {metric} of full precision{explained}",
            int(same.sum()),
            len(rows),
        )
