"""Print the result of a search: as tables for people, as JSON for programs, and as warnings at the records it chose."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from numpy import linspace
from rich.table import Table
from rich.text import Text

from launch.planning.plan_table import told_size
from launch.search.cells import EVALUATION, Subject
from launch.search.journal import Batch
from mmq_sweeps.reporting.table import SIGNIFICANT, WARNED, line, metric_label, output_console, plain_table
from mmq_sweeps.search.loop import Search
from mmq_sweeps.search.measuring import NOTHING, Answer, Outcome
from mmq_sweeps.search.space import Option, Point, Space
from mmq_sweeps.store.store import Store

# Points of a predicted frontier that are kept.
SHOWN = 100
# Beyond a year a grid is no alternative, and its time no figure.
LONGEST_SECONDS = 365 * 86_400
OPTIMISTIC = "chosen on the split that it is measured on, so the figure is optimistic (hydra.sweeper.split=evaluation)"


@dataclass(frozen=True)
class Found:
    """The answers of a search with the cells that they were measured by."""

    subject: Subject
    answers: Sequence[Answer]
    outcomes: Sequence[Outcome]
    batches: Sequence[Batch]
    store: Store
    frontier: Sequence[Mapping[str, float]] = ()
    # The work that ``Batch.processor_seconds`` counts, in words.
    timed: str = "processor seconds"

    @cached_property
    def cells(self) -> dict[Point | None, str]:
        """The cell of each point on the evaluation items; of None, that of full precision."""
        return {one.measurement.point: one.cell for one in self.outcomes if _final(one)}

    @property
    def content(self) -> dict[str, Any]:
        """Everything that was found, as plain values."""
        space = self.subject.space
        return {
            "granularity": space.granularity,
            "parameters": space.parameters,
            "points": space.count,
            "answers": [self._answer(one) for one in self.answers],
            "full_precision": self.cells.get(None),
            "predicted_frontier": list(self.frontier),
            "cost": self.cost,
            "measured": [_measured(one, self.subject) for one in self.outcomes],
        }

    @property
    def cost(self) -> dict[str, Any]:
        """Cost of the search, beside that of measuring every point on the evaluation items."""
        items = max((one.result.count for one in self.outcomes if one.result is not None and _final(one)), default=0)
        count = self.subject.space.count
        return {
            "cells": sum(batch.cells for batch in self.batches),
            "cells_there_before": sum(batch.there for batch in self.batches),
            "items": sum(batch.items for batch in self.batches),
            "processor_seconds": round(sum(batch.processor_seconds for batch in self.batches), 1),
            "grid": {"cells": count, "items": count * items, "processor_seconds": self._grid_seconds(count * items)},
        }

    def _grid_seconds(self, items: int) -> float | None:
        """Return the seconds to evaluate ``items`` at the pace of the last batch, whose cells are those of the grid.

        If the store had them all, at the pace of the batches between the first, which quantizes, too, and the last.
        """
        final = self.batches[-1]
        if fresh := final.cells - final.there:
            return round(items * final.processor_seconds * final.cells / (final.items * fresh), 1)
        paces = [batch.processor_seconds / batch.items for batch in self.batches[1:] if batch.items and not batch.there]
        return round(items * median(paces), 1) if paces else None

    def _answer(self, answer: Answer) -> dict[str, Any]:
        cell = self.cells[answer.point]
        uniform = None
        if answer.uniform is not None:
            uniform = {
                "cell": self.cells.get(answer.uniform),
                "label": told_point(self.subject.space, answer.uniform),
                "bpw": self.subject.space.bpw(answer.uniform),
            }
        return {
            "budget": answer.budget.text,
            "cell": cell,
            "assignment": self.subject.space.content(answer.point),
            "label": told_point(self.subject.space, answer.point),
            "widths": self._widths(answer.point),
            "bpw": answer.bpw,
            "size_bytes": answer.bits // 8,
            "metric": answer.quality.name,
            "value": answer.quality.value,
            "interval": list(answer.quality.interval),
            "items": answer.quality.count,
            "predicted": answer.predicted,
            "uniform": uniform,
            "from_uniform": _paired(answer.from_uniform),
            "from_full": _paired(answer.from_full),
            "kept": {"value": answer.kept[0], "interval": list(answer.kept[1])},
            "reached": answer.reached,
            "optimistic": answer.optimistic,
            "export": export_command(cell, self.store.root),
        }

    def _widths(self, point: Point) -> dict[str, list[Any]]:
        """Return the bits of every unit by part, as pairs of the unit's name and its option."""
        found: dict[str, list[Any]] = {}
        for axis, place in zip(self.subject.space.axes, point, strict=True):
            option = axis.options[place]
            found.setdefault(axis.part, []).extend([unit, option.bits, option.label] for unit in axis.units)
        return found

    def mark_optimistic(self) -> None:
        """Add a warning to the records of answers that were chosen on the items that they are measured on."""
        for answer in self.answers:
            record = self.store.record(self.cells[answer.point])
            if not answer.optimistic or record is None:
                continue
            metric = record.metrics[answer.quality.name]
            if OPTIMISTIC not in metric.get("warnings", []):
                warned = {**metric, "warnings": [*metric.get("warnings", []), OPTIMISTIC]}
                self.store.save(replace(record, metrics={**record.metrics, answer.quality.name: warned}))


def _final(outcome: Outcome) -> bool:
    return outcome.measurement.items.split == EVALUATION


def _measured(outcome: Outcome, subject: Subject) -> dict[str, Any]:
    point, items = outcome.measurement.point, outcome.measurement.items
    return {
        "cell": outcome.cell,
        "stage": outcome.measurement.stage,
        "point": None if point is None else list(point),
        "split": items.split,
        "start": items.start,
        "stop": items.stop,
        "bpw": None if outcome.bits is None else outcome.bits / subject.space.parameters,
        "value": None if outcome.result is None else outcome.result.value,
    }


def _paired(difference: Any) -> dict[str, Any] | None:
    if difference is None:
        return None
    return {"value": difference.value, "interval": list(difference.interval), "significant": difference.significant}


def export_command(cell: str, root: Path) -> str:
    """Return the command that exports a cell, quoted for the shell."""
    source = root.relative_to(Path.cwd()) if root.is_relative_to(Path.cwd()) else root
    return f"{shlex.join(['python', '-m', 'mmq_sweeps.export', cell, '--source', str(source)])} --out DIR"


def show(found: Found, output: str) -> None:
    """Print the result, as JSON if ``output`` is ``json``."""
    console = output_console()
    content = {"search": found.subject.question.id, "store": str(found.store.root), **found.content}
    if output == "json":
        console.out(json.dumps(content, indent=1), highlight=False)
        return
    line(console, title(found.subject))
    console.print(_answers(found, content))
    for text in _lines(found, content):
        line(console, text)


def frontier_of(course: Search, space: Space) -> list[dict[str, float]]:
    """Return the predicted frontier: bits per weight and the share of full precision's score, at most ``SHOWN`` points."""
    found = course.predicted()
    if course.model is None or not found.points:
        return []
    places = dict.fromkeys(round(place) for place in linspace(0, len(found.points) - 1, SHOWN))
    return [
        {"bpw": int(found.bits[place]) / space.parameters, "share": float(course.model.relative(found.points[place]))}
        for place in places
    ]


def title(subject: Subject) -> str:
    """Name the subject of a search: ``tiny_blip2 on scenes_caption, gptq, 343 assignments of 3 parts``."""
    question = subject.question
    axes = len(subject.space.axes)
    what = {"part": "part", "kind": "layer kind", "group": "layer kind of a block group", "unit": "unit"}
    noun = what[subject.space.granularity]
    counted = f"{axes} choices, one a {noun}" if axes > 1 else f"1 {noun}"
    names = f"{question.base['model']['name']} on {question.base['task']['name']}"
    return f"{names}: {', '.join(subject.methods)}; {told_count(subject.space.count)} assignments, {counted}"


def told_point(space: Space, point: Point) -> str:
    """Format a point by part: ``vision 4, language gptq 2 to 4``, the span of bits where a part's units differ."""
    parts: dict[str, list[Option]] = {}
    for axis, place in zip(space.axes, point, strict=True):
        parts.setdefault(axis.part, []).append(axis.options[place])
    return ", ".join(f"{part} {_span(options)}" for part, options in parts.items())


def _span(options: Sequence[Option]) -> str:
    labels = list(dict.fromkeys(option.label for option in options))
    if len(labels) == 1:
        return labels[0]
    widths = sorted({option.bits for option in options})
    methods = sorted({label.rpartition(" ")[0] for label in labels if " " in label})
    span = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0])
    return " ".join(["+".join(methods), span]).strip()


def told_count(count: int) -> str:
    """Format a number of assignments, as a power of ten if it is long."""
    return f"{count:,}" if count < 10**9 else f"10^{len(str(count)) - 1}"


def _answers(found: Found, content: Mapping[str, Any]) -> Table:
    metric = metric_label(found.subject.question.scored)
    numbers = (metric, "95 %", "- uniform", "- full", "bpw exact", "size")
    table = plain_table("budget", "assignment", *(f">{heading}" for heading in numbers), "cell")
    for answer in content["answers"]:
        low, high = answer["interval"]
        value = f"{answer['value']:.4f}{WARNED * answer['optimistic']}"
        differences = (_difference(answer["from_uniform"]), _difference(answer["from_full"]))
        size = (f"{answer['bpw']:.4f}", told_size(answer["size_bytes"]))
        row = (
            answer["budget"],
            answer["label"],
            value,
            f"{low:.3f} to {high:.3f}",
            *differences,
            *size,
            answer["cell"],
        )
        table.add_row(*map(Text, row))
    return table


def _difference(paired: Mapping[str, Any] | None) -> str:
    if paired is None:
        return "none"
    return f"{paired['value']:+.4f}{SIGNIFICANT * paired['significant']}"


def _lines(found: Found, content: Mapping[str, Any]) -> list[str]:
    """Return the lines below the table."""
    lines = [f"{SIGNIFICANT} paired 95% bootstrap interval without zero"]
    for answer, own in zip(content["answers"], found.answers, strict=True):
        lines += [f"{answer['budget']}: {text}" for text in _about(answer, own.budget.share)]
        lines += [f"{WARNED} {answer['budget']}: {OPTIMISTIC}"] if answer["optimistic"] else []
        lines.append(f"{answer['budget']}: {answer['export']}")
    cost = content["cost"]
    there = f", {cost['cells_there_before']:,} of them in the store before" if cost["cells_there_before"] else ""
    lines.append(
        f"cost: {cost['cells']:,} cells{there}, {cost['items']:,} items, {cost['processor_seconds']:,.0f} {found.timed}"
    )
    grid = cost["grid"]
    if grid["items"]:
        counts = f"{told_count(grid['cells'])} cells, {told_count(grid['items'])} items"
        lines.append(f"the grid: {counts}{_told_seconds(grid['processor_seconds'], found.timed)}")
    lines.append(f"search: {found.store.root / 'sweeps' / found.subject.question.id / 'search.json'}")
    return lines


def _about(answer: Mapping[str, Any], share: float | None) -> Iterator[str]:
    """Yield remarks on an answer; ``share`` is the share of full precision to keep, if that is its budget."""
    uniform = answer["uniform"]
    kind = "best uniform within it" if share is None else "smallest uniform that is expected to keep it"
    if uniform is not None:
        yield f"{kind}: {uniform['label']}, {uniform['bpw']:.4f} bpw, cell {uniform['cell']}"
    else:
        yield "no uniform assignment is so small" if share is None else "no uniform assignment is expected to keep it"
    kept, (low, high) = answer["kept"]["value"], answer["kept"]["interval"]
    if share is not None:
        short = "" if kept >= share else ", less than asked" + (" by more than chance" if high < share else "")
        yield f"keeps {kept:.4f} of full precision on the evaluation items (95 % {low:.4f} to {high:.4f}){short}"
    if not answer["reached"]:
        yield (
            "nothing that was measured is expected to keep it, and this comes nearest; add higher bits, 16 among them, or a "
            "calibrated method"
        )
    if kept <= NOTHING:
        yield "scores next to nothing; raise the budget, or add a calibrated method"
    if answer["from_uniform"] and answer["from_uniform"]["interval"][1] < 0 and share is None:
        yield "the best uniform assignment is better by more than chance; take that"


def _told_seconds(seconds: float | None, timed: str) -> str:
    if seconds is None or seconds > LONGEST_SECONDS:
        return ""
    return f", about {seconds:,.0f} {timed} at the pace of this search's last batch"
