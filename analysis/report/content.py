"""Build the sections of the page from a table of cells."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from analysis.audit import checks as auditing
from analysis.audit.answers import wanted
from analysis.audit.finding import Finding
from analysis.cells import Cells, History
from analysis.cells.columns import BITS, LOADS_IN, METRIC
from analysis.cells.remarks import defined
from analysis.cells.selections import assignment, loaders_shown, warnings_of
from analysis.figures import catalog
from analysis.figures.plots import Bars, Series
from analysis.figures.searches import plots
from analysis.load.searches import Search
from analysis.measures import searches as searching
from analysis.measures.family import Family, families
from analysis.measures.frontier import Frontier
from analysis.measures.importance import Importance
from analysis.measures.sensitivity import TITLES
from analysis.output import plain
from analysis.report import words
from analysis.report.blocks import (
    Block,
    Column,
    Doubts,
    Drawn,
    More,
    Page,
    Section,
    Sentences,
    Table,
    table_of,
)
from analysis.report.changed import changed, flip_columns
from analysis.report.columns import columns, numbers_of
from analysis.report.damages import damages
from analysis.report.overview import overview
from analysis.report.samples import samples
from analysis.report.transfer import transfer_section
from mmq_sweeps import __version__
from mmq_sweeps.identity.assignment import part_order
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import metric_label

LIBRARIES = ("numpy", "pandas", "scikit-learn", "shap")
# Failed cells that are named.
FAILURES = 20


Say = Callable[[str], None]
# The numbers of the page's cells, by id and place.
Numbers = Mapping[tuple[str, str], int]


def page(
    cells: Cells,
    metric: str | None,
    command: str,
    images: Path | None = None,
    say: Say = lambda text: None,
    found_by: Sequence[Search] = (),
) -> Page:
    """Build the report of ``cells``. Raises ValueError if no finished cell has the metric.

    ``command`` is shown on the page; ``images`` is the folder of a published set. ``say`` receives the current step, since
    thousands of cells take minutes. ``found_by`` are the searches of the sources.
    """
    wanted(cells)
    found = families(cells, metric)
    if not found:
        asked = f"the metric {metric!r}" if metric else "a metric"
        raise ValueError(f"no finished cell has {asked}: nothing to report; run a sweep, or choose another --metric")
    unsized = [
        f"{family.title}: no cell has both {metric_label(family.metric)} and bits per weight, so it is left out."
        for family in found
        if not _sized(family)
    ]
    found = [family for family in found if _sized(family)]
    if not found:
        raise ValueError("no finished cell has both a metric and bits per weight: nothing to report")
    for number, family in enumerate(found, 1):
        _worked_out(family, f"{family.title} ({number} of {len(found)})", say)
    numbers = numbers_of(cells.frame)
    defects = auditing.audit(cells, metric, say)
    say("writing the page")
    history = cells.history()
    best = [family.overall.rows for family in found]
    on_frontier = {key for rows in best for key in zip(rows["id"], rows["where"], strict=True)}
    drawn = columns(
        cells,
        numbers,
        [family.cells for family in found],
        on_frontier,
        flip_columns(family.flips[0] for family in found),
    )
    data = {
        "count": len(cells.frame),
        "cells": drawn,
        "families": [overview(family, numbers) for family in found],
    }
    sections = [
        *(section for place, own in enumerate(found) for section in _of_family(own, place, numbers, images)),
        *([Section("Searches", list(_searches(found_by)))] if found_by else []),
        *([across] if (across := transfer_section(cells, metric)) else []),
        Section("All cells", [_cells_table(cells, drawn)]),
        Section("Defects and missing cells", list(_defects(cells, defects, unsized, history.lacking))),
        Section("How this was made", list(_made(cells, command, history))),
    ]
    return Page("mmq-sweeps report", words.of_cells(cells, len(defects)), sections, data)


def _sized(family: Family) -> bool:
    frame = family.cells.frame
    return "bpw_paper" in frame and bool((frame[f"{METRIC}{family.metric}"].notna() & frame["bpw_paper"].notna()).any())


def _worked_out(family: Family, title: str, say: Say) -> None:
    """Compute the cached properties of ``family`` that take long, and report progress."""
    say(f"{title}: answers")
    # First, since it reads the cells' items, which all others need.
    _ = family.flips
    say(f"{title}: sensitivity")
    _ = family.sensitivity
    say(f"{title}: importance")
    _ = family.importance


def _of_family(family: Family, place: int, numbers: Numbers, images: Path | None) -> Iterator[Section]:
    """Yield the sections of a family, the one at ``place`` among the page's."""
    yield Section(
        family.title,
        [
            Drawn("overview", {"family": place}, tag="div"),
            _frontier_table(family, numbers),
            *_frontier_notes(family.overall),
        ],
    )
    yield Section("Importance", list(_importance(family)), 3)
    yield Section("Sensitivity", list(_sensitivity(family, numbers)), 3)
    chosen = [
        family.overall.smallest_within(words.KEEP),
        *(family.overall.best_within(budget) for budget in words.BUDGETS),
    ]
    picked = {row["id"]: row for row in chosen if row is not None}
    shown, told = samples(family.cells, family.metric, list(picked.values()), numbers, images, place)
    answers = changed(family, family.overall.rows, numbers)
    yield Section("Changed answers", list(answers), 3)
    yield Section("Samples", [*([shown] if shown else []), Sentences([words.sentence(line) for line in told])], 3)


def _searches(found: Sequence[Search]) -> Iterator[Block]:
    columns = [
        Column("budget"),
        Column("assignment"),
        *(Column(name, 4) for name in searching.COLUMNS[2:-1]),
        Column("cell"),
    ]
    for search in found:
        if not search.done:
            yield Sentences([words.sentence(search.unfinished)], warning=True)
            continue
        rows = [[plain(value) for value in searching.answer_row(one)] for one in search.content["answers"]]
        yield Table(f"Answers of the search of {search.title}", columns, rows)
        yield Sentences([words.sentence(line) for line in searching.search_lines(search)][:1])
        yield from plots(search)


def _frontier_table(family: Family, numbers: Numbers) -> Table:
    """List the cells on the frontier of all methods, with the known figures of each."""
    one = family.overall
    rows = one.rows
    titles = {"low": "low", "high": "high", "difference": "vs full", "probability": "on frontier"}
    known = [
        (Column("cell"), rows["assignment"]),
        (Column("bits per weight", 3), rows[one.bpw]),
        (Column(one.quality.label, 4), rows[one.quality.column]),
        *((Column(title, 4), rows[name]) for name, title in titles.items() if name in rows),
    ]
    if LOADS_IN in rows:
        known.append((Column("loads in"), pd.Series([loaders_shown(row) for _, row in rows.iterrows()])))
    lines = [[plain(value) for value in line] for line in zip(*(values for _, values in known), strict=True)]
    warned = ["; ".join(warnings_of(row, one.metric)) for _, row in rows.iterrows()]
    marks = {(place, 2): told for place, told in enumerate(warned) if told}
    cells = [numbers[key] for key in zip(rows["id"], rows["where"], strict=True)]
    return Table(f"The frontier of {family.title}", [column for column, _ in known], lines, marks, cells)


def _frontier_notes(one: Frontier) -> Iterator[Block]:
    yield Sentences([words.sentence(note) for note in one.notes])
    warned: dict[str, list[str]] = {}
    for _, row in one.rows.iterrows():
        if told := "; ".join(warnings_of(row, one.metric)):
            warned.setdefault(told, []).append(assignment(row))
    # A data set's own warning is that of every cell.
    yield Sentences([f"{', '.join(cells)}: {told}." for told, cells in warned.items()], warning=True)


def _importance(family: Family) -> Iterator[Block]:
    found, reason = family.importance
    if reason:
        yield Sentences([words.sentence(reason)])
        return
    highest = max(float(one.table[["mean", "high"]].max(axis=None)) for one in found)
    yield from (_bars(one, highest) for one in found)
    measures = ("forest", "permutation", "shap", "mean", "low", "high", "per_bit")
    columns = [Column("method"), Column("part"), *(Column(name.replace("_", " "), 1) for name in measures)]
    rows = [
        [one.method, str(part), *(plain(row[name]) for name in measures)]
        for one in found
        for part, row in one.table.iterrows()
    ]
    yield More(
        "The measures of importance", [Table(f"Measures of importance, each of 100, in {family.title}", columns, rows)]
    )


def _bars(one: Importance, highest: float) -> Doubts:
    table = one.table.loc[sorted(one.table.index, key=lambda part: part_order(str(part)))]
    series = Series(one.method, [0.0, highest], table["mean"].tolist(), table["low"].tolist(), table["high"].tolist())
    bars = Bars(one.method, "importance (of 100)", [str(part) for part in table.index], [series])
    # Cells that the forest did not see are named as well, but make none of its figures doubtful.
    beside = [text for text in one.warnings if "left out" in text]
    doubts = [words.sentence(text) for text in one.warnings if text not in beside]
    return Doubts(bars, [f"{one.of_fit}.", *map(words.sentence, beside)], doubts)


def _sensitivity(family: Family, numbers: Numbers) -> Iterator[Block]:
    told = family.sensitivity
    if told is None:
        yield Sentences(
            [
                f"There is no full-precision cell with {metric_label(family.metric)} to measure damage from: run method=none."
            ]
        )
    else:
        if (maps := damages(told, family.cells, numbers)) is not None:
            yield maps
        yield Sentences([words.sentence(note) for note in told.notes])
        if lines := list(words.of_sensitivity(told)):
            yield More("In words", [Sentences(lines)])
    pictures = catalog.plots(family, ["parts", "groups", "layers", "pairs", "heatmaps", "interaction"])
    if pictures:
        yield More("Curves by bits, two parts together, interactions", pictures)
    tables = [
        table_of(f"{words.capital(TITLES[name])}, in {family.title}", rows)
        for name, rows in (told.tables if told else {}).items()
    ]
    if tables:
        yield More("The damages as tables", tables)


def _cells_table(cells: Cells, there: Collection[str]) -> Drawn:
    """List the page's columns that are ``there``, with their labels."""
    frame = cells.frame
    names = [name for name in cells.metrics if frame[f"{METRIC}{name}"].notna().any()]
    several = [name for name in ("source", "model", "task") if frame[name].nunique() > 1]
    columns = [
        (Column("cell"), "cell"),
        *((Column(name), name) for name in (*several, "method")),
        *((Column(f"{part} bits", _bits_digits(frame[f"{BITS}{part}"])), f"{BITS}{part}") for part in cells.parts),
        (Column("bits per weight", 3), "bpw_paper"),
        (Column("exact", 3), "bpw_exact"),
        *((Column(metric_label(name), 4), f"{METRIC}{name}") for name in names),
        (Column("flips", 3), "flips"),
        (Column("empty", 3), "empty"),
        (Column("same answer", 3), "same answer"),
        *((Column(name), name) for name in ("warnings", "loads in", "on frontier", "status", "id")),
        (Column("W&B", link="run"), "url"),
    ]
    shown = [{**asdict(column), "from": name} for column, name in columns if name in there]
    filters = [name for name in (*several, "method", "loads in", "status", "on frontier") if name in there]
    return Drawn("table", {"columns": shown, "filters": filters, "all": True}, "All cells", "div")


def _bits_digits(bits: pd.Series) -> int:
    """Show two digits if some cell has several bit-widths in a part, so that its mean does not look like one of them."""
    return 0 if (bits.dropna() % 1 == 0).all() else 2


def _defects(
    cells: Cells, defects: Sequence[Finding], unsized: Sequence[str], unmeasured: Sequence[str]
) -> Iterator[Block]:
    yield Sentences([*map(words.sentence, cells.notes), *unsized], warning=True)
    for family in dict.fromkeys(finding.family for finding in defects):
        here = [finding for finding in defects if finding.family == family]
        yield Sentences([f"{family}:", *(f"{one.defect}: {one.sentence}." for one in here)])
    failed = cells.frame[cells.frame["status"] != "done"]
    failures = [
        f"{assignment(row)} failed with {row.get('error')}: {row['id']}." for _, row in failed.head(FAILURES).iterrows()
    ]
    more = [f"{counted(len(failed) - FAILURES, 'more cell', 'more cells')} failed."] if len(failed) > FAILURES else []
    lacking = [*failures, *more, *(f"{line}." for line in unmeasured)]
    if lacking:
        yield Sentences(["Cells without a result:", *lacking])
    if not defects and not lacking:
        yield Sentences(
            [
                "None found: no two cells have the same output, none lowers bits and scores exactly as full precision, "
                "no layer kind is counted and never matters, no cell gives many items one answer, nothing asked for is missing."
            ]
        )


def _made(cells: Cells, command: str, history: History) -> Iterator[Block]:
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield Sentences(
        [
            f"This page: {command}",
            f"{now}, mmq-sweeps {__version__}, Python {platform.python_version()}, {libraries}.",
            "Bits per weight are the study's (arXiv 2601.15287): quantized weights at their bits, all else at 16. The exact "
            "ones count scales and zeros as well.",
            "Intervals are of 95%: of a figure over the items it is the mean of, of a share of full precision over the same "
            "items of both, of importance over the cells.",
            "Charts are drawn with Observable Plot.",
            *dict.fromkeys(
                f"{told}."
                for _, family in cells.families()
                for name in family.metrics
                for told in defined(family.frame, name)
            ),
        ]
    )
    if history.commands:
        yield Sentences(["Sweeps:", *history.commands])
    if history.versions:
        yield Sentences(["Cells were measured with:", *history.versions])
    places = [
        f"{source}: {counted(int(number), 'cell')}" for source, number in cells.frame["source"].value_counts().items()
    ]
    yield Sentences(["Read from:", *places])
