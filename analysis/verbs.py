"""The verbs of ``python -m analysis``: each prints tables for people, or JSON for programs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analysis.audit import checks as auditing
from analysis.cells import WARNINGS, Cells, assignment
from analysis.load import load
from analysis.measures import frontier as frontiers
from analysis.measures import importance as importances
from analysis.measures import recommend as recommending
from analysis.measures import sensitivity as sensitivities
from analysis.output import json_text
from analysis.progress import Progress
from analysis.publish import dashboard as dashboards
from analysis.publish import push as pushing
from mmq_sweeps.errors import one_of
from mmq_sweeps.reporting.table import METRIC_LABELS, SIGNIFICANT, WARNED, line, output_console, plain_table

# Verbs that also work if every cell failed.
WITHOUT_FIGURES = ("export",)
WRITERS = {".parquet": "to_parquet", ".csv": "to_csv"}


def export(arguments: argparse.Namespace) -> None:
    for option, out in (("out", arguments.out), ("items", arguments.items)):
        if out is not None and out.suffix not in WRITERS:
            raise ValueError(f"--{option} {out}: unknown kind of file {out.suffix!r}. {one_of(WRITERS)}")
    cells = _cells(arguments)
    items = None
    if arguments.items is not None:
        items = cells.by_item()
        if items.empty:
            raise ValueError("--items: no cell of these sources has predictions and scores by item; a store has them")
    _write(cells.frame, arguments.out, "cells")
    if items is not None:
        _write(items, arguments.items, "items of cells")


def _write(frame: pd.DataFrame, out: Path, what: str) -> None:
    with _written(out) as temporary:
        getattr(frame, WRITERS[out.suffix])(temporary, index=False)
    line(output_console(), f"{len(frame)} {what}, {len(frame.columns)} columns: {out}")


@contextmanager
def _written(out: Path) -> Iterator[Path]:
    """Give a temporary file beside ``out`` that replaces it once it is whole; errors name ``out``."""
    temporary = out.with_name(f"{out.stem}.{os.getpid()}{out.suffix}")
    with _named(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _named(out: Path) -> Iterator[None]:
    """Name ``out`` in errors of the system, of which those about a full disk name no file."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(f"--out {out}: cannot be written: {reason}") from error


def frontier(arguments: argparse.Namespace) -> None:
    found = frontiers.frontiers(_cells(arguments), arguments.metric, f"bpw_{arguments.bpw}", arguments.by_method)
    if arguments.json:
        _told([_frontier_json(one, arguments.keep) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, one.title)
        console.print(_frontier_table(one), crop=False)
        _lines(console, [*_frontier_summary(one, arguments.keep), *one.notes, *_warnings(one.rows, one.metric)])


def importance(arguments: argparse.Namespace) -> None:
    found = importances.importances(
        _cells(arguments), arguments.metric, by_method=not arguments.all_methods, fine=arguments.fine
    )
    if arguments.json:
        _told([_importance_json(one) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, one.title)
        console.print(_importance_table(one), crop=False)
        told = f"{one.count} cells; the forest explains {one.fit:.0%} of the variation of cells that it has not seen"
        _lines(console, [told, *(f"warning: {warning}" for warning in one.warnings)])


def audit(arguments: argparse.Namespace) -> None:
    cells = _cells(arguments)
    with Progress() as progress:
        found = auditing.audit(cells, arguments.metric, progress.say)
    if arguments.json:
        _told([finding.as_dict() for finding in found])
        return
    console = output_console()
    if not found:
        console.print("nothing found")
    for family in dict.fromkeys(finding.family for finding in found):
        _heading(console, family)
        _lines(console, [f"{one.defect}: {one.sentence}" for one in found if one.family == family])


def dashboard(arguments: argparse.Namespace) -> None:
    kind, _, place = arguments.source[0].partition(":")
    if kind != "wandb" or len(arguments.source) > 1:
        raise ValueError(
            f"--source {' '.join(arguments.source)}: views are saved in one W&B project; say wandb:ENTITY/PROJECT"
        )
    views = dashboards.views(_cells(arguments))
    try:
        saved = dashboards.save(place, views)
    except ModuleNotFoundError as error:
        raise ValueError(
            "this verb needs the dashboard extra: pip install 'mmq-sweeps[dashboard]', or -e '.[dashboard]' in a "
            f"checkout (there is no {error.name})"
        ) from error
    for view in views:
        for note in view.notes:
            sys.stderr.write(f"note: {view.name}: {note}\n")
    if arguments.json:
        _told(saved)
        return
    _lines(output_console(), [f"{name}: {url}" for name, url in saved.items()])


def wandb_push(arguments: argparse.Namespace) -> None:
    if arguments.samples < 0:
        raise ValueError(f"--samples {arguments.samples}: choose 0 or more")
    told = {}
    for source in arguments.source:
        if source.partition(":")[0] in ("wandb", "published"):
            raise ValueError(f"--source {source}: what is sent to W&B is a store; name its folder")
        pushed = pushing.push(Path(source).expanduser(), arguments.to, arguments.samples)
        for note in pushed.notes:
            sys.stderr.write(f"note: {note}\n")
        told[source] = {"url": pushed.url, "sent": pushed.sent, "had": pushed.had}
    if arguments.json:
        _told(told)
        return
    lines = [
        f"{source}: {one['sent']} cells sent, {one['had']} there already: {one['url']}" for source, one in told.items()
    ]
    _lines(output_console(), lines)


def sensitivity(arguments: argparse.Namespace) -> None:
    found = sensitivities.sensitivities(_cells(arguments), arguments.metric)
    if arguments.json:
        _told([_sensitivity_json(one) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(
            console, f"{one.title}; full precision {one.full:.4f}" + ("" if one.quality.higher else "; lower is better")
        )
        for title, rows in (("alone", one.alone), ("pairs", one.pairs), ("methods", one.methods)):
            if not rows.empty:
                _heading(console, SENSITIVITY[title])
                console.print(_plain_table(rows), crop=False)
        _lines(console, one.notes)


SENSITIVITY = {
    "alone": "damage of one selection, all else at full precision",
    "pairs": "damage of two parts together, the sum of their damages alone, and the interaction (above zero: worse together)",
    "methods": "methods at the assignments that both have",
}


def recommend(arguments: argparse.Namespace) -> None:
    found = recommending.recommend(_cells(arguments), arguments.max_bpw, arguments.min_quality, arguments.metric)
    if arguments.json:
        _told([_recommendation_json(one) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, f"{one.title}, {one.budget}")
        _lines(console, [*_recommendation(one), *one.notes])


def figures(arguments: argparse.Namespace) -> None:
    # Drawing libraries are slow to import, and other verbs do not need them.
    from analysis.figures import catalog, interactive, paper

    plots = catalog.figures(_cells(arguments), arguments.metric, arguments.only)
    written = []
    with _named(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            written += [*paper.save(plot, arguments.out), interactive.save(plot, arguments.out)]
    if arguments.experiment:
        drawn = {plot.name.split("-")[0] for plot in plots}
        for name in catalog.FIGURES.keys() - drawn:
            sys.stderr.write(f"not drawn: {name}: needs {catalog.NEEDS[name]}\n")
    if arguments.json:
        _told([str(path) for path in written])
        return
    console = output_console()
    for plot in plots:
        _lines(console, [f"{plot.name}: {plot.title}", *(f"  {note}" for note in plot.notes)])
    _lines(console, [f"{len(written)} files in {arguments.out}"])


def report(arguments: argparse.Namespace) -> None:
    from analysis.report import content, page

    out: Path = arguments.out
    command = "python -m analysis " + shlex.join(sys.argv[1:])
    with Progress() as progress:
        progress.say("reading cells")
        told = content.page(_cells(arguments), arguments.metric, command, arguments.images, progress.say)
    text = page.render(told)
    with _written(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if arguments.json:
        _told({"report": str(out), "bytes": len(text.encode())})
        return
    line(output_console(), f"{out}: {len(text.encode()) / 1e6:.1f} MB")


def _recommendation(one: recommending.Recommendation) -> Iterable[str]:
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
    told = "".join(f"; {WARNED} {text}" for text in _told_warnings(row, one.metric))
    return (
        f"{assignment(row)}: {one.metric} {figure:.4f}{WARNED if told else ''}{interval}{f', {against}' if against else ''}, "
        f"{row['bpw_paper']:.3f} bits per weight{told}"
    )


def _told_warnings(row: pd.Series, metric: str) -> list[str]:
    told = row.get(f"{WARNINGS}{metric}")
    return told.split("\n") if isinstance(told, str) else []


def _warnings(rows: pd.DataFrame, metric: str) -> Iterable[str]:
    """Yield the warnings behind a table's marks."""
    for _, row in rows.iterrows():
        yield from (f"{WARNED} {assignment(row)}: {text}" for text in _told_warnings(row, metric))


def _recommendation_json(one: recommending.Recommendation) -> dict[str, Any]:
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


def _sensitivity_json(one: sensitivities.Sensitivity) -> dict[str, Any]:
    tables = {"alone": one.alone, "pairs": one.pairs, "methods": one.methods}
    return {
        "title": one.title,
        "metric": one.metric,
        "higher_is_better": one.quality.higher,
        "full": one.full,
        **{name: rows.to_dict("records") for name, rows in tables.items()},
        "notes": list(one.notes),
    }


def _plain_table(rows: pd.DataFrame) -> Table:
    """Build a table of ``rows`` without empty text columns."""
    table, shown = plain_table(), []
    for name in rows:
        words = rows[name].dtype == object or rows[name].dtype == "str"
        if not (words and (rows[name] == "").all()):
            # Names may wrap; numbers may not, since a broken number is unreadable.
            table.add_column(Text(str(name)), justify="left" if words else "right", no_wrap=not words, overflow="fold")
            shown.append(name)
    for _, row in rows[shown].iterrows():
        table.add_row(*(Text(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row))
    return table


def _cells(arguments: argparse.Namespace) -> Cells:
    cells = load(arguments.source)
    for note in cells.notes:
        sys.stderr.write(f"note: {note}\n")
    if arguments.verb not in WITHOUT_FIGURES and not (cells.frame["status"] == "done").any():
        told = " ".join(arguments.source)
        raise ValueError(f"every cell failed; look at what failed: python -m analysis table --source {told}")
    return cells


def _frontier_table(one: frontiers.Frontier) -> Table:
    table = plain_table()
    uncertain, compared = "probability" in one.cells, "difference" in one.cells
    table.add_column("bpw", justify="right", no_wrap=True)
    table.add_column(Text(METRIC_LABELS.get(one.metric, one.metric)), justify="right", no_wrap=True)
    if uncertain:
        table.add_column("95% interval", justify="right", no_wrap=True)
    if compared:
        table.add_column("vs full", justify="right", no_wrap=True)
    if uncertain:
        table.add_column("on frontier", justify="right", no_wrap=True)
    table.add_column("cell", overflow="fold")
    for _, row in one.rows.iterrows():
        mark = WARNED if _told_warnings(row, one.metric) else ""
        shown = [f"{row[one.bpw]:.3f}", f"{row[one.quality.column]:.4f}{mark}"]
        if uncertain:
            shown.append(f"{row['low']:.4f} .. {row['high']:.4f}")
        if compared:
            shown.append(f"{row['difference']:+.4f}{SIGNIFICANT if row['significant'] else ' '}")
        if uncertain:
            shown.append(f"{row['probability']:.0%}")
        table.add_row(*shown, Text(row["assignment"]))
    return table


def _frontier_summary(one: frontiers.Frontier, keep: float) -> Iterable[str]:
    area = one.hypervolume()
    told = "lower is better" if area is None else f"hypervolume {area:.4f}"
    yield f"{len(one.rows)} of {len(one.cells)} cells are on the frontier; {told}"
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
    mark = "".join(f"; {WARNED} {text}" for text in _told_warnings(smallest, one.metric))
    yield f"fewest bits that {kept}: {smallest[one.bpw]:.3f} ({smallest['assignment']}){mark}"


def _frontier_json(one: frontiers.Frontier, keep: float) -> dict[str, Any]:
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


def _importance_table(one: importances.Importance) -> Table:
    table = plain_table()
    table.add_column("part", overflow="fold")
    for name in (*importances.MEASURES, "mean", "95% interval", "per bit saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for feature, row in one.table.iterrows():
        measures = [f"{row[name]:.1f}" for name in (*importances.MEASURES, "mean")]
        interval = "" if pd.isna(row["low"]) else f"{row['low']:.1f} .. {row['high']:.1f}"
        per_bit = "" if pd.isna(row["per_bit"]) else f"{row['per_bit']:.1f}"
        table.add_row(Text(str(feature)), *measures, interval, per_bit)
    return table


def _importance_json(one: importances.Importance) -> dict[str, Any]:
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
    """Convert a row for JSON: without missing values, warnings as a list."""
    told = {
        str(name): getattr(value, "item", lambda value=value: value)()
        for name, value in row.items()
        if not pd.isna(value)
    }
    return {name: value.split("\n") if name.startswith(WARNINGS) else value for name, value in told.items()}


def _told(content: Any) -> None:
    output_console().out(json_text(content), highlight=False)


def _heading(console: Console, text: str) -> None:
    line(console, f"\n{text}")


def _lines(console: Console, lines: Iterable[str]) -> None:
    for text in lines:
        line(console, text)
