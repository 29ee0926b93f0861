"""Count the most cells and items that a search can measure, without measuring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from launch.planning.plan_table import told_size
from launch.search.answer import title, told_count
from launch.search.cells import EVALUATION, Subject
from mmq_sweeps.reporting.table import line, output_console, plain_table
from mmq_sweeps.search import loop
from mmq_sweeps.search.measuring import STAGES, Items
from mmq_sweeps.search.space import Budget

# Candidates of a race that priors alone allocate.
PRIORS = 2


def predicted(subject: Subject, budgets: Sequence[Budget]) -> dict[str, Any]:
    """Return the most cells and items that each stage of the search can have, and its sizes."""
    stages = {
        stage: {"cells": sum(cells for cells, _ in batches), "items": sum(cells * items for cells, items in batches)}
        for stage, batches in _stages_of(subject, budgets).items()
    }
    space = subject.space
    every = space.count * _count(Items(EVALUATION), subject)
    return {
        "search": subject.question.id,
        "granularity": space.granularity,
        "axes": len(space.axes),
        "options": sum(len(axis.options) for axis in space.axes),
        "assignments": space.count,
        "parameters": space.parameters,
        "bpw": {"least": space.least_bits / space.parameters, "full_precision": space.full_bits / space.parameters},
        # Sizes that keep a quality are not known before anything is measured.
        "budgets": [
            {"budget": one.text, "bpw": one.bits / space.parameters, "size_bytes": one.bits // 8}
            for one in budgets
            if one.share is None
        ],
        "stages": stages,
        "cells": sum(one["cells"] for one in stages.values()),
        "items": sum(one["items"] for one in stages.values()),
        "grid": {"cells": space.count, "items": every},
    }


def show(subject: Subject, budgets: Sequence[Budget]) -> None:
    """Print the measurements of the search, as JSON if the sweep's output is JSON."""
    told, console = predicted(subject, budgets), output_console()
    if subject.question.base["output"] == "json":
        console.out(json.dumps(told, indent=1), highlight=False)
        return
    line(console, f"{title(subject)}\n")
    if told["budgets"]:
        console.print(_budgets(told), "", sep="\n")
    console.print(_stages(told))
    least, full = told["bpw"]["least"], told["bpw"]["full_precision"]
    size = told_size(round(full * told["parameters"] / 8))
    for text in (
        f"the grid: {told_count(told['grid']['cells'])} cells, {told_count(told['grid']['items'])} items",
        f"possible: {least:.4f} to {full:.4f} bpw exact; full precision is {size}",
        "dry run: nothing was run, submitted or written",
    ):
        line(console, text)


def _budgets(told: dict[str, Any]) -> Table:
    table = plain_table("budget", ">bpw exact", ">size")
    for one in told["budgets"]:
        table.add_row(Text(one["budget"]), f"{one['bpw']:.4f}", told_size(one["size_bytes"]))
    return table


def _stages(told: dict[str, Any]) -> Table:
    table = plain_table("stage", ">cells at most", ">items at most")
    for name, counted in {**told["stages"], "in all": told}.items():
        table.add_row(Text(name), f"{counted['cells']:,}", f"{counted['items']:,}")
    return table


def _count(items: Items, subject: Subject) -> int:
    """Return the number of items; of the evaluation the task's limit, 0 if that is not known."""
    return items.count if items.count is not None else subject.question.base["task"].get("limit") or 0


def _stages_of(subject: Subject, budgets: Sequence[Budget]) -> dict[str, list[tuple[int, int]]]:
    """Return the batches of every stage as pairs of cells and items of each, if every race runs to its end.

    Only the first batch is known before anything is measured; later ones are as large as the settings of the loop let them.
    """
    settings, count = subject.settings, subject.space.count
    first = loop.Search(subject.space, budgets, settings).ask()

    def running(number: int) -> int:
        # Predicted ones, allocations by two priors and a uniform one; full precision beside them.
        most = settings.candidates + PRIORS + 1 + settings.newcomers * number
        return len(budgets) * min(count, most) + any(budget.share is not None for budget in budgets)

    sensitivity, race, last, final = STAGES
    evaluated = _count(Items(), subject)
    return {
        sensitivity: [(1, _count(one.items, subject)) for one in first],
        race: [(running(number), items) for number, items in enumerate(settings.rounds)],
        last: [(2 * len(budgets), settings.last)],
        final: [(1 + 2 * len(budgets), evaluated)],
    }
