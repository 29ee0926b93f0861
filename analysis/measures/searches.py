"""Describe the result of a search in rows and sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from analysis.load.searches import Search
from mmq_sweeps.reporting.counts import counted

COLUMNS = ("budget", "assignment", "value", "low", "high", "vs uniform", "vs full", "bpw exact", "cell")


def answer_row(answer: Mapping[str, Any]) -> list[Any]:
    """Return the values of ``COLUMNS`` for an answer; None where there is no uniform assignment within the budget."""
    low, high = answer["interval"]
    differences = [None if answer[name] is None else answer[name]["value"] for name in ("from_uniform", "from_full")]
    return [answer["budget"], answer["label"], answer["value"], low, high, *differences, answer["bpw"], answer["cell"]]


def search_lines(search: Search) -> Iterator[str]:
    """Yield the sentences below the table of a search, or in its place if it has not ended."""
    if not search.done:
        yield search.unfinished
        return
    cost = search.content["cost"]
    grid = cost["grid"]["cells"]
    told = f"{grid:,}" if grid < 10**9 else f"10^{len(str(grid)) - 1}"
    yield f"{counted(cost['cells'], 'cell')} and {counted(cost['items'], 'item')} instead of {told} cells"
    yield "* paired 95% bootstrap interval without zero"
    for answer in search.content["answers"]:
        if answer["optimistic"]:
            yield f"! {answer['budget']}: chosen on the split that it is measured on, so the figure is optimistic"
        yield f"{answer['budget']}: {search.export_command(answer['cell'])}"
