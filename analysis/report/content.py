"""Build the sections of the page from a table of cells."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.audit import answers
from analysis.audit import checks as auditing
from analysis.audit.finding import Finding
from analysis.cells import BITS, LOADS_IN, METRIC, WARNINGS, Cells, assignment, defined, loaders_shown
from analysis.figures import catalog
from analysis.figures.searches import plots
from analysis.load.searches import Search
from analysis.measures import searches as searching
from analysis.measures.family import Family, families
from analysis.measures.frontier import Frontier, frontiers
from analysis.report import words
from analysis.report.blocks import Block, Column, Page, Section, Sentences, Table, plain
from analysis.report.samples import samples
from mmq_sweeps import __version__
from mmq_sweeps.identity.assignment import part_order

TABLES = {
    "alone": "Damage of one selection, all else at full precision",
    "pairs": "Damage of two parts together, the sum of their damages alone, and the interaction (above zero: worse together)",
    "methods": "Methods at the assignments that both have",
}
LIBRARIES = ("numpy", "pandas", "scikit-learn", "shap")


Say = Callable[[str], None]


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
    answers.wanted(cells)
    found = families(cells, metric)
    if not found:
        asked = f"the metric {metric!r}" if metric else "a metric"
        raise ValueError(f"no finished cell has {asked}: nothing to report; run a sweep, or choose another --metric")
    unsized = [
        f"{family.title}: no cell has both {family.metric} and bits per weight, so it is left out."
        for family in found
        if not _sized(family)
    ]
    found = [family for family in found if _sized(family)]
    if not found:
        raise ValueError("no finished cell has both a metric and bits per weight: nothing to report")
    for number, family in enumerate(found, 1):
        _worked_out(family, f"{family.title} ({number} of {len(found)})", say)
    overall = {family.title: frontiers(family.cells, family.metric)[0] for family in found}
    defects = auditing.audit(cells, metric, say)
    say("writing the page")
    summary = [*_summary(cells, found, overall, defects), Sentences(unsized, warning=True)]
    sections = [
        Section("Summary", summary),
        *(section for family in found for section in _of_family(family, overall[family.title], images)),
        *([Section("Searches", list(_searches(found_by)))] if found_by else []),
        Section("All cells", [_cells_table(cells, list(overall.values()))]),
        Section("Defects and missing cells", list(_defects(cells, defects))),
        Section("How this was made", list(_made(cells, command))),
    ]
    return Page("Quantization of the parts of vision-language models", sections, cells.notes)


def _sized(family: Family) -> bool:
    frame = family.cells.frame
    return "bpw_paper" in frame and bool((frame[f"{METRIC}{family.metric}"].notna() & frame["bpw_paper"].notna()).any())


def _worked_out(family: Family, title: str, say: Say) -> None:
    """Compute the cached properties of ``family`` that take long, and report progress."""
    say(f"{title}: frontier of {words.count(len(family.cells.frame), 'cell')}")
    _ = family.frontiers
    say(f"{title}: sensitivity")
    _ = family.sensitivity
    say(f"{title}: importance")
    _ = family.importance


def _summary(
    cells: Cells, found: Sequence[Family], overall: dict[str, Frontier], defects: Sequence[Finding]
) -> Iterator[Block]:
    odd = f" {words.count(len(defects), 'defect')} found in the data, listed below." if defects else ""
    yield Sentences([words.of_cells(cells) + odd])
    for family in found:
        yield Sentences([f"{family.title}:", *words.of_family(family, overall[family.title])])
    if cells.notes:
        yield Sentences([words.sentence(note) for note in cells.notes], warning=True)


def _of_family(family: Family, one: Frontier, images: Path | None) -> Iterator[Section]:
    yield Section(family.title, [])
    yield Section(
        "Frontier",
        [
            *catalog.plots(family, ["tradeoff"]),
            _frontier_table(family, one),
            Sentences([words.sentence(note) for note in one.notes]),
            Sentences([f"{assignment(row)}: {told}." for row, told in _warned(one)], warning=True),
        ],
        3,
    )
    yield Section("Importance", list(_importance(family)), 3)
    yield Section("Sensitivity", list(_sensitivity(family)), 3)
    chosen = [one.smallest_within(words.KEEP), *(one.best_within(budget) for budget in words.BUDGETS)]
    picked = {row["id"]: row for row in chosen if row is not None}
    shown, told = samples(family.cells, family.metric, list(picked.values()), images)
    yield Section("Samples", [Sentences([words.sentence(line) for line in told]), *([shown] if shown else [])], 3)


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


def _frontier_table(family: Family, one: Frontier) -> Table:
    figure, extra = (
        f"{METRIC}{one.metric}",
        [name for name in ("low", "high", "difference", "probability") if name in one.rows],
    )
    loading = LOADS_IN in one.rows
    columns = [Column("cell"), Column("bits per weight", 3), Column(one.quality.label, 4)]
    titles = {"low": "low", "high": "high", "difference": "vs full", "probability": "on frontier"}
    columns += [*(Column(titles[name], 4) for name in extra), *([Column("loads in")] if loading else [])]
    rows = [
        [
            row["assignment"],
            plain(row[one.bpw]),
            plain(row[figure]),
            *(plain(row[name]) for name in extra),
            *([loaders_shown(row)] if loading else []),
        ]
        for _, row in one.rows.iterrows()
    ]
    marks = {
        (place, 2): told for place, (_, row) in enumerate(one.rows.iterrows()) if (told := _warning(row, one.metric))
    }
    return Table(f"Cells on the frontier of {family.title}", columns, rows, marks=marks)


def _warning(row: Mapping[str, Any] | pd.Series, metric: str) -> str:
    told = row.get(f"{WARNINGS}{metric}")
    return told.replace("\n", "; ") if isinstance(told, str) else ""


def _warned(one: Frontier) -> Iterator[tuple[pd.Series, str]]:
    """Yield the frontier's cells whose metric carries a warning, with the warning."""
    for _, row in one.rows.iterrows():
        if told := _warning(row, one.metric):
            yield row, told


def _importance(family: Family) -> Iterator[Block]:
    found, reason = family.importance
    if reason:
        yield Sentences([words.sentence(reason)])
        return
    yield from catalog.plots(family, ["importance"])
    for one in found:
        yield Sentences(list(words.of_importance(one)))
        if one.warnings:
            yield Sentences([words.sentence(warning) for warning in one.warnings], warning=True)
    measures = ("forest", "permutation", "shap", "mean", "low", "high", "per_bit")
    columns = [Column("method"), Column("part"), *(Column(name.replace("_", " "), 1) for name in measures)]
    rows = [
        [one.method, str(part), *(plain(row[name]) for name in measures)]
        for one in found
        for part, row in one.table.iterrows()
    ]
    yield Table(f"Measures of importance, each of 100, in {family.title}", columns, rows)


def _sensitivity(family: Family) -> Iterator[Block]:
    told = family.sensitivity
    if told is None:
        yield Sentences(
            [f"There is no full-precision cell with {family.metric} to measure damage from: run method=none."]
        )
    else:
        yield Sentences([*words.of_sensitivity(told), *map(words.sentence, told.notes)])
    yield from catalog.plots(family, ["parts", "groups", "layers", "pairs", "interaction"])
    if told is not None:
        for title, rows in (("alone", told.alone), ("pairs", told.pairs), ("methods", told.methods)):
            if not rows.empty:
                yield _as_table(f"{TABLES[title]}, in {family.title}", rows)


def _as_table(name: str, rows: pd.DataFrame) -> Table:
    columns = [Column(str(column).replace("_", " "), _digits(rows[column])) for column in rows.columns]
    return Table(name, columns, [[plain(value) for value in line] for line in rows.itertuples(index=False, name=None)])


def _digits(values: pd.Series) -> int | None:
    if not pd.api.types.is_numeric_dtype(values):
        return None
    return 4 if pd.api.types.is_float_dtype(values) else 0


def _cells_table(cells: Cells, overall: Sequence[Frontier]) -> Table:
    frame = cells.frame
    on_frontier = {(row["id"], row["where"]) for one in overall for _, row in one.rows.iterrows()}
    parts = cells.parts
    names = [name for name in cells.metrics if frame[f"{METRIC}{name}"].notna().any()]
    several = [name for name in ("source", "model", "task") if frame[name].nunique() > 1]
    columns = [Column("cell"), *(Column(name) for name in several), Column("method")]
    columns += [Column(f"{part} bits", _bits_digits(frame[f"{BITS}{part}"])) for part in sorted(parts, key=part_order)]
    columns += [Column("bits per weight", 3), Column("exact", 3), *(Column(words.label(name), 4) for name in names)]
    columns += [Column(name) for name in ("warnings", "loads in", "on frontier", "status", "id")]
    columns.append(Column("W&B", link="run"))
    first = columns.index(Column("exact", 3)) + 1
    rows: list[list[Any]] = []
    warned: dict[tuple[int, int], str] = {}
    for row in frame.to_dict("records"):
        series = pd.Series(row)
        warned |= {
            (len(rows), first + place): told for place, name in enumerate(names) if (told := _warning(row, name))
        }
        rows.append(
            [
                assignment(series), *(row[name] for name in several), row["method"],
                *(plain(row[f"{BITS}{part}"]) for part in parts), plain(row.get("bpw_paper")), plain(row.get("bpw_exact")),
                *(plain(row[f"{METRIC}{name}"]) for name in names),
                "; ".join(f"{words.label(name)}: {told}" for name in names if (told := _warning(row, name))),
                loaders_shown(row), "yes" if (row["id"], row["where"]) in on_frontier else "", row["status"], row["id"],
                plain(row.get("url")),
            ]
        )  # fmt: skip
    kept = [index for index, column in enumerate(columns) if any(line[index] not in (None, "") for line in rows)]
    shown = [[line[index] for index in kept] for line in rows]
    labels = {columns[index].label for index in kept}
    filters = [name for name in (*several, "method", "loads in", "status", "on frontier") if name in labels]
    marks = {(row, kept.index(column)): told for (row, column), told in warned.items()}
    return Table("All cells", [columns[index] for index in kept], shown, filters, marks)


def _bits_digits(bits: pd.Series) -> int:
    """Show two digits if some cell has several bit-widths in a part, so that its mean does not look like one of them."""
    return 0 if (bits.dropna() % 1 == 0).all() else 2


def _defects(cells: Cells, defects: Sequence[Finding]) -> Iterator[Block]:
    for family in dict.fromkeys(finding.family for finding in defects):
        here = [finding for finding in defects if finding.family == family]
        yield Sentences([f"{family}:", *(f"{one.defect}: {one.sentence}." for one in here)])
    failed = cells.frame[cells.frame["status"] != "done"]
    failures = [
        f"{assignment(row)} failed with {row.get('error')}: {row['id']}." for _, row in failed.head(20).iterrows()
    ]
    lacking = [*failures, *(f"{line}." for line in cells.history().lacking)]
    if lacking:
        yield Sentences(["Cells without a result:", *lacking])
    if not defects and not lacking:
        yield Sentences(
            [
                "None found: no two cells have the same output, none lowers bits and scores exactly as full precision, "
                "no layer kind is counted and never matters, no cell gives many items one answer, nothing asked for is missing."
            ]
        )


def _made(cells: Cells, command: str) -> Iterator[Block]:
    history = cells.history()
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    yield Sentences(
        [
            f"This page: {command}",
            f"{now}, mmq-sweeps {__version__}, Python {platform.python_version()}, {libraries}.",
            "Bits per weight are the study's (arXiv 2601.15287): quantized weights at their bits, all else at 16. The exact "
            "ones count scales and zeros as well.",
            "Intervals are of 95%: of a figure over the items it is the mean of, of importance over the cells.",
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
        f"{source}: {words.count(int(number), 'cell')}"
        for source, number in cells.frame["source"].value_counts().items()
    ]
    yield Sentences(["Read from:", *places])
