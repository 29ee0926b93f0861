"""The verbs of ``python -m analysis``: each prints tables for people, or JSON for programs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.audit import checks as auditing
from analysis.cells import Cells
from analysis.load import load
from analysis.load.searches import Search, searches
from analysis.measures import flips as flipping
from analysis.measures import frontier as frontiers
from analysis.measures import importance as importances
from analysis.measures import recommend as recommending
from analysis.measures import sensitivity as sensitivities
from analysis.measures import transfer as transferring
from analysis.measures.searches import search_lines
from analysis.output import json_text
from analysis.progress import Progress
from analysis.publish import dashboard as dashboards
from analysis.publish import push as pushing
from analysis.verbs.answer_tables import flips_json, flips_lines, flips_table
from analysis.verbs.compare import compare as compare
from analysis.verbs.files import WRITERS, naming, write_table, written
from analysis.verbs.search_tables import search_table
from analysis.verbs.tables import (
    frontier_json,
    frontier_lines,
    frontier_table,
    importance_json,
    importance_table,
    loading_lines,
    recommendation_json,
    recommendation_lines,
    rows_table,
    sensitivity_json,
    warning_lines,
)
from analysis.verbs.transfer_tables import CORRELATIONS, correlation_table, regret_tables, transfer_json
from mmq_sweeps.errors import one_of
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import line, output_console

# Verbs that also work if every cell failed.
WITHOUT_FIGURES = ("export",)


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
    write_table(cells.frame, arguments.out, "cells")
    if items is not None:
        write_table(items, arguments.items, "items of cells")


def frontier(arguments: argparse.Namespace) -> None:
    found = frontiers.frontiers(_cells(arguments), arguments.metric, f"bpw_{arguments.bpw}", arguments.by_method)
    if arguments.json:
        _told([frontier_json(one, arguments.keep) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, one.title)
        console.print(frontier_table(one), crop=False)
        notes = [*one.notes, *loading_lines(one.rows), *warning_lines(one.rows, one.metric)]
        _lines(console, [*frontier_lines(one, arguments.keep), *notes])


def flips(arguments: argparse.Namespace) -> None:
    cells = _cells(arguments)
    found = flipping.flips(cells, arguments.metric)
    if arguments.json:
        _told([flips_json(one, cells.frame) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, one.title)
        console.print(flips_table(one, cells.frame), crop=False)
        _lines(console, flips_lines(one))


def importance(arguments: argparse.Namespace) -> None:
    found = importances.importances(
        _cells(arguments), arguments.metric, by_method=not arguments.all_methods, fine=arguments.fine
    )
    if arguments.json:
        _told([importance_json(one) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, one.title)
        console.print(importance_table(one), crop=False)
        told = f"{counted(one.count, 'cell')}; the forest explains {one.fit:.0%} of the variation of cells that it has not seen"
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
    told: dict[str, dict[str, Any]] = {}
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
        f"{source}: {counted(one['sent'], 'cell')} sent, {one['had']} there already: {one['url']}"
        for source, one in told.items()
    ]
    _lines(output_console(), lines)


def sensitivity(arguments: argparse.Namespace) -> None:
    found = sensitivities.sensitivities(_cells(arguments), arguments.metric)
    if arguments.json:
        _told([sensitivity_json(one) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(
            console, f"{one.title}; full precision {one.full:.4f}" + ("" if one.quality.higher else "; lower is better")
        )
        for title, rows in (("alone", one.alone), ("pairs", one.pairs), ("methods", one.methods)):
            if not rows.empty:
                _heading(console, SENSITIVITY[title])
                console.print(rows_table(rows), crop=False)
        _lines(console, one.notes)


def transfer(arguments: argparse.Namespace) -> None:
    budgets = tuple(arguments.max_bpw or transferring.BUDGETS)
    found = transferring.transfer(_cells(arguments), arguments.metric, budgets)
    if arguments.json:
        _told(transfer_json(found))
        return
    console = output_console()
    for heading, table in regret_tables(found):
        _heading(console, heading)
        console.print(table, crop=False)
    if not found.correlations.empty:
        _heading(console, CORRELATIONS)
        console.print(correlation_table(found), crop=False)
    _lines(console, found.notes)


SENSITIVITY = {
    "alone": "damage of one selection, all else at full precision",
    "pairs": "damage of two parts together, the sum of their damages alone, and the interaction (above zero: worse together)",
    "methods": "methods at the assignments that both have",
}


def recommend(arguments: argparse.Namespace) -> None:
    found = recommending.recommend(_cells(arguments), arguments.max_bpw, arguments.min_quality, arguments.metric)
    if arguments.json:
        _told([recommendation_json(one) for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, f"{one.title}, {one.budget}")
        _lines(console, [*recommendation_lines(one), *one.notes, *loading_lines(one.best.to_frame().T)])


def figures(arguments: argparse.Namespace) -> None:
    # Drawing libraries are slow to import, and other verbs do not need them.
    from analysis.figures import catalog, interactive, paper

    plots = catalog.figures(_cells(arguments), arguments.metric, arguments.only)
    written = []
    with naming(arguments.out):
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
    _lines(console, [f"{counted(len(written), 'file')} in {arguments.out}"])


def search(arguments: argparse.Namespace) -> None:
    found = searches(arguments.source)
    if not found:
        raise ValueError(
            f"--source {' '.join(arguments.source)}: holds no search; run one: python -m mmq_sweeps -m hydra/sweeper=budget "
            "hydra.sweeper.max_bpw=4 method=gptq bits=2,3,4,8"
        )
    files = _search_figures(found, arguments.out) if arguments.out is not None else []
    if arguments.json:
        _told([one.content for one in found])
        return
    console = output_console()
    for one in found:
        _heading(console, f"{one.title} (search {one.id})")
        if one.done:
            console.print(search_table(one), crop=False)
        _lines(console, search_lines(one))
    if arguments.out is not None:
        _lines(console, [f"{counted(len(files), 'file')} in {arguments.out}"])


def _search_figures(found: Iterable[Search], out: Path) -> list[Path]:
    # Drawing libraries are slow to import.
    from analysis.figures import interactive, paper
    from analysis.figures.searches import plots

    files: list[Path] = []
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        for plot in (plot for one in found for plot in plots(one)):
            files += [*paper.save(plot, out), interactive.save(plot, out)]
    return files


def report(arguments: argparse.Namespace) -> None:
    from analysis.report import content, page

    out: Path = arguments.out
    command = "python -m analysis " + shlex.join(sys.argv[1:])
    with Progress() as progress:
        progress.say("reading cells")
        cells, found = _cells(arguments), searches(arguments.source)
        told = content.page(cells, arguments.metric, command, arguments.images, progress.say, found)
    text = page.render(told)
    with written(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    if arguments.json:
        _told({"report": str(out), "bytes": len(text.encode())})
        return
    line(output_console(), f"{out}: {len(text.encode()) / 1e6:.1f} MB")


def _cells(arguments: argparse.Namespace) -> Cells:
    cells = load(arguments.source)
    if getattr(arguments, "loads_in", None):
        cells = cells.loading_in(arguments.loads_in)
    for note in cells.notes:
        sys.stderr.write(f"note: {note}\n")
    if arguments.verb not in WITHOUT_FIGURES and not (cells.frame["status"] == "done").any():
        told = " ".join(arguments.source)
        raise ValueError(f"every cell failed; look at what failed: python -m analysis table --source {told}")
    return cells


def _told(content: Any) -> None:
    output_console().out(json_text(content), highlight=False)


def _heading(console: Console, text: str) -> None:
    line(console, f"\n{text}")


def _lines(console: Console, lines: Iterable[str]) -> None:
    for text in lines:
        line(console, text)
