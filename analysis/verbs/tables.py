"""Output of the verbs about frontiers, importances, sensitivities and recommendations: tables, sentences, JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
from rich.table import Table
from rich.text import Text

from analysis.cells.columns import BITS, LOADS_IN, WARNINGS
from analysis.cells.selections import assignment, loaders_of, loaders_shown, warnings_of
from analysis.measures import frontier as frontiers
from analysis.measures import importance as importances
from analysis.measures import recommend as recommending
from analysis.measures import sensitivity as sensitivities
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS
from mmq_sweeps.identity.end_parts import EMBEDDINGS
from mmq_sweeps.identity.loads_in import DENSE_EMBEDDINGS, DEQUANTIZED
from mmq_sweeps.reporting.counts import out_of
from mmq_sweeps.reporting.table import SIGNIFICANT, WARNED, metric_label, plain_table


def recommendation_lines(one: recommending.Recommendation) -> Iterable[str]:
    """Yield the best measured cell, those as good, and candidates that may be better."""
    yield f"best measured: {_figure(one.best, one)}"
    if one.again:
        yield f"its command: {one.again}"
    for _, row in one.as_good.iterrows():
        yield f"not significantly worse: {_figure(row, one)}"
    for candidate in one.candidates:
        yield (
            f"expected better, not measured: {candidate['expected']:.4f} (error of the fitted model {candidate['error']:.4f}) "
            f"at {candidate['bpw_paper']:.3f} bits: {candidate['command']}"
        )


def _figure(row: pd.Series, one: recommending.Recommendation) -> str:
    figure = row[one.quality.column]
    low, high = row.get(f"low.{one.metric}"), row.get(f"high.{one.metric}")
    interval = "" if low is None or pd.isna(low) else f" ({low:.4f} .. {high:.4f})"
    against = one.quality.against(figure, one.full)
    told = "".join(f"; {WARNED} {text}" for text in warnings_of(row, one.metric))
    return (
        f"{assignment(row)}: {one.metric} {figure:.4f}{WARNED if told else ''}{interval}{f', {against}' if against else ''}, "
        f"{row['bpw_paper']:.3f} bits per weight{_loading(row)}{told}"
    )


def _loading(row: pd.Series) -> str:
    loaders = loaders_of(row)
    if not loaders:
        return ""
    return ", loads only dequantized" if loaders == [DEQUANTIZED] else f", loads in {loaders_shown(row)}"


def warning_lines(rows: pd.DataFrame, metric: str) -> Iterable[str]:
    """Yield the warnings behind a table's marks."""
    for _, row in rows.iterrows():
        yield from (f"{WARNED} {assignment(row)}: {text}" for text in warnings_of(row, metric))


def loading_lines(rows: pd.DataFrame) -> Iterable[str]:
    """Yield a remark on the loaders shown: parts of these cells that an export stores dense."""
    dense = [
        row for _, row in rows.iterrows() if row.get(f"{BITS}{EMBEDDINGS}", FULL_PRECISION_BITS) < FULL_PRECISION_BITS
    ]
    if any(DEQUANTIZED not in (loaders_of(row) or (DEQUANTIZED,)) for row in dense):
        yield f"loads in: {DENSE_EMBEDDINGS}"


def recommendation_json(one: recommending.Recommendation) -> dict[str, Any]:
    """Return a recommendation as plain values."""
    return {
        "title": one.title,
        "metric": one.metric,
        "higher_is_better": one.quality.higher,
        "budget": one.budget,
        "full": one.full,
        "best": _plain(one.best),
        **({"again": one.again} if one.again else {}),
        "as_good": [_plain(row) for _, row in one.as_good.iterrows()],
        "candidates": one.candidates,
        "notes": list(one.notes),
    }


def sensitivity_json(one: sensitivities.Sensitivity) -> dict[str, Any]:
    """Return a sensitivity as plain values."""
    return {
        "title": one.title,
        "metric": one.metric,
        "higher_is_better": one.quality.higher,
        "full": one.full,
        **{name: getattr(one, name).to_dict("records") for name in sensitivities.TITLES},
        "notes": list(one.notes),
    }


def rows_table(rows: pd.DataFrame) -> Table:
    """Build a table of ``rows`` without empty text columns."""
    words = [name for name in rows if rows[name].dtype == object or rows[name].dtype == "str"]
    shown = [name for name in rows if name not in words or (rows[name] != "").any()]
    table = plain_table(*(str(name) if name in words else f">{name}" for name in shown))
    for _, row in rows[shown].iterrows():
        table.add_row(*(Text(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row))
    return table


def frontier_table(one: frontiers.Frontier) -> Table:
    """Build a table of the cells on the frontier."""
    columns: dict[str, Callable[[pd.Series], str]] = {
        ">bpw": lambda row: f"{row[one.bpw]:.3f}",
        f">{metric_label(one.metric)}": lambda row: (
            f"{row[one.quality.column]:.4f}{WARNED if warnings_of(row, one.metric) else ''}"
        ),
    }
    if "probability" in one.cells:
        columns[">95% interval"] = lambda row: f"{row['low']:.4f} .. {row['high']:.4f}"
    if "difference" in one.cells:
        columns[">vs full"] = lambda row: f"{row['difference']:+.4f}{SIGNIFICANT if row['significant'] else ' '}"
    if "probability" in one.cells:
        columns[">on frontier"] = lambda row: f"{row['probability']:.0%}"
    if LOADS_IN in one.rows:
        columns["loads in"] = loaders_shown
    table = plain_table(*columns, "cell")
    for _, row in one.rows.iterrows():
        table.add_row(*(told(row) for told in columns.values()), Text(row["assignment"]))
    return table


def frontier_lines(one: frontiers.Frontier, keep: float) -> Iterable[str]:
    """Yield sentences on the frontier: its area, and the smallest cell that keeps a share ``keep`` of the quality."""
    area = one.hypervolume()
    told = "lower is better" if area is None else f"hypervolume {area:.4f}"
    yield f"{out_of(len(one.rows), len(one.cells), 'cell', 'is', 'are')} on the frontier; {told}"
    if "significant" in one.cells and one.rows["significant"].any():
        yield f"{SIGNIFICANT} differs from full precision (paired bootstrap over items, false discovery rate 5%)"
    limit = None if one.full is None else one.quality.limit(one.full, keep)
    if limit is None:
        return
    kept = f"keep {keep:.0%} of full precision ({one.full:.4f})"
    if not one.quality.higher:
        kept = f"have at most {limit:.4f}, full precision's {one.full:.4f} / {keep:g}"
    smallest = one.smallest_within(keep)
    if smallest is None:
        yield f"no cell does {kept}" if not one.quality.higher else f"no cell keeps {kept.removeprefix('keep ')}"
        return
    mark = "".join(f"; {WARNED} {text}" for text in warnings_of(smallest, one.metric))
    yield f"fewest bits that {kept}: {smallest[one.bpw]:.3f} ({smallest['assignment']}){mark}"


def frontier_json(one: frontiers.Frontier, keep: float) -> dict[str, Any]:
    """Return a frontier as plain values."""
    smallest = one.smallest_within(keep)
    return {
        "title": one.title,
        "metric": one.metric,
        "higher_is_better": one.quality.higher,
        "bpw": one.bpw,
        "full": one.full,
        "cells": len(one.cells),
        "hypervolume": one.hypervolume(),
        "keep": keep,
        "smallest": None if smallest is None else _plain(smallest),
        "frontier": [_plain(row) for _, row in one.rows.iterrows()],
        "notes": list(one.notes),
    }


def importance_table(one: importances.Importance) -> Table:
    """Build a table of the importance of each part."""
    headings = (*importances.MEASURES, "mean", "95% interval", "per bit saved")
    table = plain_table("part", *(f">{name}" for name in headings))
    for feature, row in one.table.iterrows():
        measures = [f"{row[name]:.1f}" for name in (*importances.MEASURES, "mean")]
        interval = "" if pd.isna(row["low"]) else f"{row['low']:.1f} .. {row['high']:.1f}"
        per_bit = "" if pd.isna(row["per_bit"]) else f"{row['per_bit']:.1f}"
        table.add_row(Text(str(feature)), *measures, interval, per_bit)
    return table


def importance_json(one: importances.Importance) -> dict[str, Any]:
    """Return an importance as plain values."""
    return {
        "title": one.title,
        "metric": one.metric,
        "cells": one.count,
        "fit": one.fit,
        "importance": {str(feature): _plain(row) for feature, row in one.table.iterrows()},
        "checks": one.checks,
        "warnings": list(one.warnings),
    }


def _plain(row: pd.Series) -> dict[str, Any]:
    """Convert a row for JSON: without missing values, warnings and loaders as lists."""
    told = {str(name): value for name, value in row.items() if not pd.isna(value)}
    told |= {LOADS_IN: loaders} if (loaders := loaders_of(row)) else {}
    return {name: value.split("\n") if name.startswith(WARNINGS) else value for name, value in told.items()}
