"""Check that the settings of cells explain their scores: parts never applied, ties, scatter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.audit.answers import Answers, rounded
from analysis.audit.finding import Told, labels
from analysis.cells import Cells
from analysis.cells.columns import BITS, METRIC, SELECTION
from analysis.cells.selections import by_number, methods_in, mixed, parts_in, slots
from analysis.measures.quality import Quality
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.reporting.compare import ROUNDING
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import metric_label

# The setting of a layer kind that is not quantized.
UNTOUCHED = "/".join([str(FULL_PRECISION_BITS)] * len(BLOCK_GROUPS))
# Fewer comparisons prove nothing about a layer kind.
LEAST_COMPARISONS = 5
# At this many bits or more a good method loses almost nothing; scatter needs at least this many such cells.
MANY_BITS, LEAST_SCATTERED = 6, 20
# Report scatter above this share of the mean score, unless bits explain at least this share of its variance.
SCATTER, EXPLAINED = 0.005, 0.25


def effective(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the method and, per part and layer kind, the bits of front, middle and end, such as ``3/16/16``.

    Bits carry the part's own group size if it has one: ``3g64``; units by number are a digest behind them.
    """
    columns = {"method": rows["method"].where(rows["method"] != "none", "")}
    for part in parts_in(rows):
        bits = rows[f"{BITS}{part}"].fillna(FULL_PRECISION_BITS).map("{:g}".format)
        blocks, layers = rows[f"blocks.{part}"].fillna(""), rows[f"layers.{part}"].fillna("")
        own = rows[f"group.{part}"].fillna("") if f"group.{part}" in rows else pd.Series("", rows.index)
        stored = bits.where(own == "", bits + "g" + own)
        if part in END_PARTS:
            columns[part] = stored.where(bits != str(FULL_PRECISION_BITS), UNTOUCHED)
            continue
        own_selection = rows[f"{SELECTION}{part}"] if f"{SELECTION}{part}" in rows else pd.Series("", rows.index)
        for kind in LAYER_KINDS:
            here = layers.str.contains(kind)
            told = [stored.where(here & blocks.str.contains(group), str(FULL_PRECISION_BITS)) for group in BLOCK_GROUPS]
            plain = told[0] + "/" + told[1] + "/" + told[2]
            columns[f"{part} {kind}"] = plain.where(~mixed(rows, part), own_selection.map(partial(_of_kind, kind)))
    return pd.DataFrame(columns)


def _of_kind(kind: str, selection: Any) -> str:
    """Return the setting of a layer kind in a selection that bits do not describe."""
    if not isinstance(selection, str) or not selection:
        return UNTOUCHED
    found = slots(selection)
    told = "/".join(
        _stored(found[group, kind]) if (group, kind) in found else str(FULL_PRECISION_BITS) for group in BLOCK_GROUPS
    )
    units = {unit: _stored(rule) for unit, rule in by_number(selection).items() if unit.endswith(f".{kind}")}
    return f"{told} {digest(units)[:8]}" if units else told


def _stored(rule: Mapping[str, Any]) -> str:
    size = f"g{rule['group_size']}" if rule.get("group_size") else ""
    return f"{rule['bits']}{size}" + (digest(rule["method"])[:4] if "method" in rule else "")


def tolerance(settings: pd.DataFrame, score: np.ndarray) -> float:
    """Return the spread of full-precision scores: smaller differences are noise. 0 with fewer than two such cells."""
    full = (settings.drop(columns="method") == UNTOUCHED).all(axis=1).to_numpy()
    return float(np.ptp(score[full])) if full.sum() > 1 else 0.0


def never_applied(settings: pd.DataFrame, score: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yield each part and layer kind whose setting never changes the score, all else equal, and the number of comparisons.

    ``settings`` are those of a single method and full precision: two methods at the same bits score differently whatever
    the part. Cells within 10% of the score range above the minimum are left out: they have no quality left to lose.
    """
    allowed = tolerance(settings, score) + ROUNDING * float(np.abs(score).max())
    alive = score > score.min() + 0.1 * np.ptp(score)
    for name in settings.columns.drop("method"):
        others = [column for column in settings.columns if column not in (name, "method")]
        grouped = settings[alive].assign(score=score[alive]).groupby(others, sort=False)
        spread = grouped["score"].agg(np.ptp)[grouped[name].nunique() > 1]
        if len(spread) >= LEAST_COMPARISONS and (spread <= allowed).all():
            yield name, len(spread)


def never_applied_in_any(
    family: Cells, rows: pd.DataFrame, settings: pd.DataFrame, metrics: Sequence[str]
) -> Iterator[tuple[str, str, int]]:
    """Yield method, part and layer kind, and comparisons of the findings of ``never_applied``.

    They hold for every metric: a change in any metric is a change.
    """
    scores = [Quality.of(family, name).score(rows) for name in metrics]
    for method in sorted(set(settings["method"]) - {""}):
        own = settings["method"].isin([method, ""]).to_numpy()
        found = [dict(never_applied(settings[own], score[own])) for score in scores]
        for name, compared in found[0].items():
            if all(name in other for other in found):
                yield method, name, compared


def ties(settings: pd.DataFrame, score: np.ndarray, metric: str) -> Iterator[Told]:
    """Report cells with the same assignment and different scores."""
    grouped = settings.assign(score=score).groupby(list(settings.columns), sort=False)["score"]
    repeated = grouped.size() > 1
    spread = grouped.agg(np.ptp)[repeated]
    apart = spread > ROUNDING * np.abs(score).max()
    if apart.any():
        touched = int(grouped.size()[repeated][apart].sum())
        yield (
            "do not tie",
            f"{touched} cells state an assignment that another has as well and score differently: "
            f"{metric_label(metric)} up to {spread.max():.4g} apart",
            touched,
            len(score),
        )


def scatter(family: Cells, rows: pd.DataFrame, score: np.ndarray, metric: str) -> Iterator[Told]:
    """Report methods whose cells at many bits should nearly tie, but scatter around a linear fit to the parts' bits."""
    parts = [f"{BITS}{part}" for part in family.parts]
    bits = rows[parts].fillna(FULL_PRECISION_BITS).to_numpy(dtype=np.float64)
    for method in methods_in(rows):
        near = rows["method"].isin([method, "none"]).to_numpy() & (bits >= MANY_BITS).all(axis=1)
        if near.sum() < LEAST_SCATTERED:
            continue
        design = np.column_stack([np.ones(int(near.sum())), bits[near]])
        rest = score[near] - design @ np.linalg.lstsq(design, score[near], rcond=None)[0]
        if rest.std() > SCATTER * abs(score[near].mean()) and rest.var() > (1 - EXPLAINED) * score[near].var():
            yield (
                "scatter",
                f"{counted(int(near.sum()), 'cell')} of {method} have every part at {MANY_BITS} bits or more "
                f"and should all but tie, yet {metric_label(metric)} lies between {score[near].min():.4f} and "
                f"{score[near].max():.4f} (standard deviation "
                f"{score[near].std(ddof=1):.4f}, {1 - rest.var() / score[near].var():.0%} of it explained by bits): "
                "smaller differences than these mean nothing",
                int(near.sum()),
                len(rows),
            )


def unchanged(
    rows: pd.DataFrame,
    settings: pd.DataFrame,
    answers: Sequence[Answers | None],
    metrics: Sequence[str],
    idle: Sequence[tuple[str, str]],
) -> Iterator[Told]:
    """Report quantized cells with full precision's predictions, or with all of its metrics if predictions are missing.

    ``idle`` lists methods with the part and layer kind that they never apply.
    """
    untouched = (settings.drop(columns="method") == UNTOUCHED).all(axis=1).to_numpy()
    if not untouched.any():
        yield (
            "missing baseline",
            "no cell at full precision: whether quantization changed anything cannot be told",
            0,
            len(rows),
        )
        return
    scores = rounded(rows[[f"{METRIC}{name}" for name in metrics]])
    of_full = set(scores[untouched].itertuples(index=False, name=None))
    same = ~untouched & np.array([figures in of_full for figures in scores.itertuples(index=False, name=None)])
    outputs = {one.output for one, full in zip(answers, untouched, strict=True) if full and one is not None}
    if outputs:
        # Equal scores from different answers are a coincidence.
        known = np.array([one is None or one.output in outputs for one in answers])
        same &= known
    if same.any():
        explained = ""
        if idle:
            applied = settings.copy()
            for method, name in idle:
                applied.loc[applied["method"] == method, name] = UNTOUCHED
            real = (applied.drop(columns="method") == UNTOUCHED).all(axis=1).to_numpy()
            names = " and ".join(dict.fromkeys(name for _, name in idle))
            explained = (
                f"; {counted(int((same & real).sum()), 'of them quantizes', 'of them quantize')} nothing but {names}"
            )
        yield (
            "changed nothing",
            f"{counted(int(same.sum()), 'cell lowers bits and has', 'cells lower bits and have')} "
            f"exactly the {labels(metrics)} of full precision{explained}",
            int(same.sum()),
            len(rows),
        )
