"""What a search would measure at most, told without measuring: it is driven with scores that tell no candidates apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from launch.planning.plan_table import told_size
from launch.search.answer import title, told_count
from launch.search.cells import EVALUATION, Subject
from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.reporting.table import output_console
from mmq_sweeps.search import loop
from mmq_sweeps.search.loop import Items, Measurement, Outcome
from mmq_sweeps.search.space import Budget

SEED = 0
# Spread of the made-up differences between candidates, of scores between 0 and 1.
NOISE = 0.2


def predicted(subject: Subject, budgets: Sequence[Budget]) -> dict[str, Any]:
    """Return the number of cells and items of each stage of the search if no candidate is dropped early, and its sizes."""
    course = loop.Search(subject.space, budgets, subject.settings)
    stages: dict[str, dict[str, int]] = {}
    while batch := course.ask():
        counted = stages.setdefault(batch[0].stage, {"cells": 0, "items": 0})
        counted["cells"] += len(batch)
        counted["items"] += sum(_count(one.items, subject) for one in batch)
        course.tell([_made_up(one, subject) for one in batch])
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
        "budgets": [
            {"budget": one.text, "bpw": one.bits / space.parameters, "size_bytes": one.bits // 8} for one in budgets
        ],
        "stages": stages,
        "cells": sum(one["cells"] for one in stages.values()),
        "items": sum(one["items"] for one in stages.values()),
        "grid": {"cells": space.count, "items": every},
    }


def show(subject: Subject, budgets: Sequence[Budget]) -> None:
    """Print what the search would measure, as JSON if the sweep's output is JSON."""
    told, console = predicted(subject, budgets), output_console()
    if subject.question.base["output"] == "json":
        console.out(json.dumps(told, indent=1), highlight=False)
        return
    lines = [title(subject), ""]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
    console.print(_budgets(told), "", _stages(told), sep="\n")
    least, full = told["bpw"]["least"], told["bpw"]["full_precision"]
    size = told_size(round(full * told["parameters"] / 8))
    for line in (
        f"the grid: {told_count(told['grid']['cells'])} cells, {told_count(told['grid']['items'])} items",
        f"possible: {least:.4f} to {full:.4f} bpw exact; full precision is {size}",
        "dry run: nothing was run, submitted or written",
    ):
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _budgets(told: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("budget", "bpw exact", "size"):
        table.add_column(heading, justify="right" if heading != "budget" else "left")
    for one in told["budgets"]:
        table.add_row(Text(one["budget"]), f"{one['bpw']:.4f}", told_size(one["size_bytes"]))
    return table


def _stages(told: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("stage", "cells at most", "items at most"):
        table.add_column(heading, justify="right" if heading != "stage" else "left")
    for name, counted in {**told["stages"], "in all": told}.items():
        table.add_row(Text(name), f"{counted['cells']:,}", f"{counted['items']:,}")
    return table


def _count(items: Items, subject: Subject) -> int:
    """Return the number of items; of the evaluation the task's limit, 0 if that is not known."""
    return items.count if items.count is not None else subject.question.base["task"].get("limit") or 0


def _made_up(measurement: Measurement, subject: Subject) -> Outcome:
    """Return an outcome whose scores differ by noise alone, so that a test drops no candidate but by chance."""
    count = _count(measurement.items, subject) or 100
    point, items = measurement.point, measurement.items
    seed = [SEED, items.start, *(point or (len(subject.space.axes) + 1,))]
    scores = np.clip(0.5 + NOISE * np.random.default_rng(seed).standard_normal(count), 0.01, 1)
    named = {f"{items.split}-{items.start + number}": float(score) for number, score in enumerate(scores)}
    value = float(scores.mean())
    result = MetricResult(subject.question.scored, value, named, (value, value), True)
    bits = subject.space.full_bits if point is None else subject.space.bits(point)
    return Outcome(measurement, result, bits)
