"""``compare``: two cells side by side, and the items that changed most."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.measures import compare as comparing
from analysis.measures.compare import Change, Comparison, Difference
from analysis.output import json_text
from analysis.report import comparison, page
from analysis.report.blocks import Sample
from analysis.report.samples import examples_of, readable
from analysis.tables.records import find, read
from analysis.verbs.files import written
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import SIGNIFICANT, line, metric_label, output_console, plain_table

NAMES = ("A", "B")
# Columns before an item's texts.
INDENT = 9
FOOTNOTE = f"{SIGNIFICANT} differs (paired 95% bootstrap interval without zero)"


def compare(arguments: argparse.Namespace) -> None:
    """Print the comparison, or write it as a page."""
    stored = read([Path(source) for source in arguments.source], "compare")
    first, second = (find(stored, cell) for cell in arguments.cells)
    found = comparing.compare(stored, first, second, arguments.metric, arguments.items)
    record = first.record
    examples, lacking = examples_of(
        record.cell["task"], record.names["task"], {change.id for change in found.most}, arguments.images
    )
    if arguments.html is not None:
        told = comparison.page(found, examples, lacking, "python -m analysis " + shlex.join(sys.argv[1:]))
        with written(arguments.html) as temporary:
            temporary.write_text(page.render(told), encoding="utf-8")
    if arguments.json:
        output_console().out(json_text(as_json(found, examples)), highlight=False)
        return
    _show(found, examples, output_console())
    if arguments.html is not None:
        line(output_console(), f"\n{arguments.html}")


def as_json(found: Comparison, examples: Mapping[str, Sample]) -> dict[str, Any]:
    """Return a comparison as plain values; differences are the second cell's figure less the first's."""
    return {
        "family": found.family,
        "cells": [
            {
                "id": side.id,
                "title": side.title,
                **{name: side.stored.record.size["total"][name] for name in ("bpw_paper", "bpw_exact", "size_bytes")},
                "metrics": {name: side.figure(name)["value"] for name in side.stored.record.metrics},
            }
            for side in found.sides
        ],
        "differences": {one.metric: _difference_json(one) for one in found.differences},
        "items": {"shared": found.shared, "changed": found.changed},
        "ranked_by": found.metric,
        "changed_most": [
            {
                "id": change.id,
                "question": examples[change.id].asked,
                "references": list(examples[change.id].right),
                "answers": list(change.answers),
                "scores": list(change.scores),
                "difference": change.difference,
            }
            for change in found.most
        ],
    }


def _difference_json(one: Difference) -> dict[str, Any]:
    if one.not_compared:
        return {"not_compared": one.not_compared}
    told: dict[str, Any] = {
        "difference": one.value, "interval": one.interval, "significant": one.significant,
        "higher_is_better": one.higher_is_better, "better": one.better, "worse": one.worse, "alike": one.alike,
    }  # fmt: skip
    if one.flips is not None:
        told |= {"right_to_wrong": one.flips[0], "wrong_to_right": one.flips[1]}
    return told


def _show(found: Comparison, examples: Mapping[str, Sample], console: Console) -> None:
    line(console, found.family)
    console.print(_cells(found), crop=False)
    console.print(_metrics(found), crop=False)
    for sentence in comparison.sentences(found, FOOTNOTE):
        line(console, sentence)
    if found.most:
        named = "item" if len(found.most) == 1 else counted(len(found.most), "item")
        line(console, f"\nthe {named} that changed most by {metric_label(found.metric)}:")
    for change in found.most:
        console.print()
        for text in _item(change, examples[change.id], console):
            console.print(text, soft_wrap=True)


def _cells(found: Comparison) -> Table:
    table = plain_table("", "cell", "", ">bpw", ">exact", ">MB")
    for name, side in zip(NAMES, found.sides, strict=True):
        total = side.stored.record.size["total"]
        figures = (total["bpw_paper"], total["bpw_exact"], total["size_bytes"] / 1e6)
        table.add_row(*map(Text, (name, side.id, side.title, *(f"{figure:.2f}" for figure in figures))))
    return table


def _metrics(found: Comparison) -> Table:
    table = plain_table("", ">A", ">B", ">B less A", ">95% interval")
    for one in found.differences:
        values = [side.figure(one.metric)["value"] for side in found.sides]
        told = ["not compared"]
        if one.value is not None and one.interval is not None:
            mark = SIGNIFICANT if one.significant else " "
            told = [f"{one.value:+.4f}{mark}", "{:+.4f} .. {:+.4f}".format(*one.interval)]
        figures = ["none" if value is None else f"{value:.4f}" for value in values]
        table.add_row(*map(Text, (metric_label(one.metric), *figures, *told)))
    return table


def _item(change: Change, example: Sample, console: Console) -> Iterator[Text]:
    """Yield the lines of an item: its scores, and below, indented, the question, the right answer and both answers."""
    head = f"{change.id}  {change.scores[0]:.4f} to {change.scores[1]:.4f} ({change.difference:+.4f})"
    yield Text(head, style="bold")
    more = f" (and {len(example.right) - 1} more)" if len(example.right) > 1 else ""
    said = [("asked", Text(example.asked))] if example.asked else []
    said += [("right", Text(example.right[0].strip() + more))] if example.right else []
    for name, text in [*said, *zip(NAMES, _marked(*map(readable, change.answers)), strict=True)]:
        for number, piece in enumerate(text.wrap(console, max(console.width - INDENT, INDENT))):
            yield Text(f"  {'' if number else name}".ljust(INDENT)) + piece


def _marked(first: str, second: str) -> tuple[Text, Text]:
    """Return both answers with the words that the other lacks in bold, which a file does not show."""
    words = (first.split(), second.split())
    texts = (Text(), Text())
    for what, *spans in difflib.SequenceMatcher(None, *words, autojunk=False).get_opcodes():
        style = "" if what == "equal" else "bold red"
        for text, own, (start, end) in zip(texts, words, (spans[:2], spans[2:]), strict=True):
            for word in own[start:end]:
                text.append(" " if text else "")
                text.append(word, style=style)
    return tuple(text or Text("(nothing)") for text in texts)  # type: ignore[return-value]
