"""Build the page of two cells compared: a table of metrics, and the images of the items that changed most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from analysis.measures.compare import Comparison
from analysis.report.blocks import Block, Column, Drawn, Page, Sample, Section, Sentences, Table
from analysis.report.columns import short_answers
from analysis.report.samples import readable
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import metric_label


def page(found: Comparison, examples: Mapping[str, Sample], lacking: Sequence[str], command: str) -> Page:
    """Build the page. ``examples`` has image and references by item, ``lacking`` sentences on items that could not be read."""
    first, second = found.sides
    answers: list[Block] = [
        Sentences([line.rstrip(".") + "." for line in (*sentences(found), *lacking)]),
        _samples(found, examples),
    ]
    sections = [
        Section("Cells", [_cells(found)]),
        Section("Metrics", [_metrics(found)]),
        Section(f"Items that changed most by {metric_label(found.metric)}", answers),
        Section("How this was made", [Sentences([f"This page: {command}"])]),
    ]
    return Page(f"{first.title} against {second.title}", found.family, sections)


def sentences(found: Comparison, marked: str = "") -> Iterator[str]:
    """Yield sentences beside the tables; ``marked`` explains the mark of significant differences."""
    if marked and any(one.significant for one in found.differences):
        yield marked
    yield f"{found.changed:,} of {found.shared:,} answers changed"
    for one in found.differences:
        label = metric_label(one.metric)
        if not one.higher_is_better:
            yield f"{label}: lower is better"
        if not one.not_compared:
            yield f"{label}: {counted(one.better, 'item')} better, {one.worse:,} worse, {one.alike:,} alike"
        if one.flips is not None:
            lost = counted(one.flips[0], "item")
            yield f"{label}: {lost} right with A and wrong with B, {one.flips[1]:,} the other way round"
        if one.not_compared:
            yield f"{label} is not compared: {one.not_compared}"


def _cells(found: Comparison) -> Table:
    texts, numbers = ("", "cell", "what"), ("bits per weight", "exact", "MB")
    columns = [*map(Column, texts), *(Column(name, 3) for name in numbers)]
    rows = []
    for name, side in zip("AB", found.sides, strict=True):
        total = side.stored.record.size["total"]
        rows.append([name, side.id, side.title, total["bpw_paper"], total["bpw_exact"], total["size_bytes"] / 1e6])
    return Table(f"The cells, of {found.family}", columns, rows)


def _metrics(found: Comparison) -> Table:
    columns = [Column("metric"), *(Column(name, 4) for name in ("A", "B", "B less A", "low", "high"))]
    rows = [
        [
            metric_label(one.metric),
            *(side.figure(one.metric)["value"] for side in found.sides),
            one.value,
            *(one.interval or (None, None)),
        ]
        for one in found.differences
    ]
    return Table("Every metric of both, with the 95% interval of the paired difference", columns, rows)


def _samples(found: Comparison, examples: Mapping[str, Sample]) -> Drawn:
    names = [f"{name}: {side.title}" for name, side in zip("AB", found.sides, strict=True)]
    rows = [examples[change.id] for change in found.most]
    answers = [
        [(readable(text), score) for text, score in zip(change.answers, change.scores, strict=True)]
        for change in found.most
    ]
    return compared(names, rows, answers)


def compared(
    cells: Sequence[str], rows: Sequence[Sample], answers: Sequence[Sequence[tuple[str, float | None]]]
) -> Drawn:
    """Return ``rows`` of items with the answers of each of ``cells``: ``answers[i]`` has ``(text, score)`` a cell."""
    by_cell = {place: [said[place] for said in answers] for place in range(len(cells))}
    content = {"names": list(cells), "items": [asdict(row) for row in rows], **short_answers(by_cell)}
    return Drawn("compared", content, tag="div")
