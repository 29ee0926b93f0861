"""Build the figures of a search: bits by unit, and the predicted frontier beside the measured cells."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from analysis.figures.plots import XY, Heatmap, Panel, Plot, Series
from analysis.load.searches import Search
from mmq_sweeps.identity.assignment import part_order
from mmq_sweeps.reporting.table import metric_label


def plots(search: Search) -> list[Plot]:
    """Return the figures of a search that has ended; none of one that has not."""
    if not search.done:
        return []
    made = (("bits", "Bits by unit", _bits), ("frontier", "Predicted and measured", _frontier))
    return [
        Plot(f"search-{name}-{search.id}", f"{title}: {search.title}", panels)
        for name, title, maker in made
        if (panels := list(maker(search.content)))
    ]


def _bits(content: Mapping[str, Any]) -> Iterator[Panel]:
    """Yield a heat map for each budget: a row for each layer kind of a part, a column for each block."""
    for answer in content["answers"]:
        widths: dict[tuple[str, str], dict[int, float]] = {}
        for part, units in answer["widths"].items():
            for name, bits, _ in units:
                _, block, kind = name.split(".") if "." in name else (part, "0", "")
                widths.setdefault((part, kind), {})[int(block)] = bits
        rows = sorted(widths, key=lambda row: (part_order(row[0]), row[1]))
        count = max(max(blocks) for blocks in widths.values()) + 1
        values = [[widths[row].get(block, math.nan) for block in range(count)] for row in rows]
        yield Heatmap(
            _budget(answer), "block", "part and layer kind", [str(block) for block in range(count)],
            [" ".join(filter(None, row)) for row in rows], values, "bits",
        )  # fmt: skip


def _frontier(content: Mapping[str, Any]) -> Iterator[Panel]:
    final = [one for one in content["measured"] if one["stage"] == "final" and one["value"] is not None]
    full = next((one["value"] for one in final if one["point"] is None), None)
    if full is None:
        return
    predicted = content["predicted_frontier"]
    answers = content["answers"]
    chosen = {answer["cell"] for answer in answers}
    others = [one for one in final if one["point"] is not None and one["cell"] not in chosen]
    metric = content["metric"]
    series = [
        Series("predicted", [one["bpw"] for one in predicted], [one["share"] * full for one in predicted]),
        Series(
            "found", [one["bpw"] for one in answers], [one["value"] for one in answers],
            [one["interval"][0] for one in answers], [one["interval"][1] for one in answers],
            names=[f"{one['budget']}: {one['label']}" for one in answers], line=False,
        ),
        Series(
            "best uniform", [one["bpw"] for one in others], [one["value"] for one in others],
            names=[f"cell {one['cell']}" for one in others], line=False,
        ),
    ]  # fmt: skip
    yield XY(
        "",
        "exact bits per weight",
        metric_label(metric),
        [one for one in series if len(one.x)],
        level=full,
    )


def _budget(answer: Mapping[str, Any]) -> str:
    budget: str = answer["budget"]
    return budget.replace("max_bpw=", "at most ").replace("max_gb=", "at most ") + (
        " bits per weight" if budget.startswith("max_bpw") else " GB" if budget.startswith("max_gb") else ""
    )
