"""The verbs of ``python -m analysis``: each prints tables for people, or JSON for programs."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from rich.table import Table

from analysis.audit import checks as auditing
from analysis.cells import Cells
from analysis.figures import catalog
from analysis.figures.plots import Plot
from analysis.figures.searches import plots as search_plots
from analysis.load import load
from analysis.load.searches import searches
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
from analysis.verbs.transfer_tables import correlation_tables, regret_tables, transfer_json
from mmq_sweeps.errors import one_of
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.table import line, output_console

Parts = Iterable[Iterable[str | Table]]
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
    parts: Parts = (
        [
            f"\n{one.title}",
            frontier_table(one),
            *frontier_lines(one, arguments.keep),
            *one.notes,
            *loading_lines(one.rows),
            *warning_lines(one.rows, one.metric),
        ]
        for one in found
    )
    _show(arguments, (frontier_json(one, arguments.keep) for one in found), parts)


def flips(arguments: argparse.Namespace) -> None:
    cells = _cells(arguments)
    found = flipping.flips(cells, arguments.metric)
    parts: Parts = ([f"\n{one.title}", flips_table(one, cells.frame), *flips_lines(one)] for one in found)
    _show(arguments, (flips_json(one, cells.frame) for one in found), parts)


def importance(arguments: argparse.Namespace) -> None:
    found = importances.importances(
        _cells(arguments), arguments.metric, by_method=not arguments.all_methods, fine=arguments.fine
    )
    parts: Parts = (
        [f"\n{one.title}", importance_table(one), one.of_fit, *(f"warning: {warning}" for warning in one.warnings)]
        for one in found
    )
    _show(arguments, map(importance_json, found), parts)


def audit(arguments: argparse.Namespace) -> None:
    cells = _cells(arguments)
    with Progress() as progress:
        found = auditing.audit(cells, arguments.metric, progress.say)
    parts = (
        (f"\n{family}", *(f"{one.defect}: {one.sentence}" for one in found if one.family == family))
        for family in dict.fromkeys(finding.family for finding in found)
    )
    _show(arguments, map(asdict, found), parts if found else [["nothing found"]])


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
    _show(arguments, saved, [[f"{name}: {url}" for name, url in saved.items()]])


def wandb_push(arguments: argparse.Namespace) -> None:
    told: dict[str, dict[str, Any]] = {}
    for source in arguments.source:
        if source.partition(":")[0] in ("wandb", "published"):
            raise ValueError(f"--source {source}: what is sent to W&B is a store; name its folder")
        pushed = pushing.push(Path(source).expanduser(), arguments.to, arguments.samples)
        for note in pushed.notes:
            sys.stderr.write(f"note: {note}\n")
        told[source] = {"url": pushed.url, "sent": pushed.sent, "had": pushed.had}
    lines = [
        f"{source}: {counted(one['sent'], 'cell')} sent, {one['had']} there already: {one['url']}"
        for source, one in told.items()
    ]
    _show(arguments, told, [lines])


def sensitivity(arguments: argparse.Namespace) -> None:
    found = sensitivities.sensitivities(_cells(arguments), arguments.metric)
    parts = (
        (
            f"\n{one.title}; full precision {one.full:.4f}" + ("" if one.quality.higher else "; lower is better"),
            *(
                part
                for name, rows in one.tables.items()
                for part in (f"\n{sensitivities.TITLES[name]}", rows_table(rows))
            ),
            *one.notes,
        )
        for one in found
    )
    _show(arguments, map(sensitivity_json, found), parts)


def transfer(arguments: argparse.Namespace) -> None:
    budgets = tuple(arguments.max_bpw or transferring.BUDGETS)
    found = transferring.transfer(_cells(arguments), arguments.metric, budgets)
    tables = [*regret_tables(found), *correlation_tables(found)]
    parts = ((f"\n{heading}", table) for heading, table in tables)
    _show(arguments, transfer_json(found), [*parts, found.notes])


def recommend(arguments: argparse.Namespace) -> None:
    found = recommending.recommend(_cells(arguments), arguments.max_bpw, arguments.min_quality, arguments.metric)
    parts = (
        (f"\n{one.title}, {one.budget}", *recommendation_lines(one), *one.notes, *loading_lines(one.best.to_frame().T))
        for one in found
    )
    _show(arguments, map(recommendation_json, found), parts)


def figures(arguments: argparse.Namespace) -> None:
    plots = catalog.figures(_cells(arguments), arguments.metric, arguments.only)
    files = _draw(plots, arguments.out)
    if arguments.experiment:
        drawn = {plot.name.split("-")[0] for plot in plots}
        for name in catalog.FIGURES.keys() - drawn:
            sys.stderr.write(f"not drawn: {name}: needs {catalog.NEEDS[name]}\n")
    parts = [[f"{plot.name}: {plot.title}", *(f"  {note}" for note in plot.notes)] for plot in plots]
    _show(arguments, map(str, files), [*parts, [f"{counted(len(files), 'file')} in {arguments.out}"]])


def _draw(plots: Iterable[Plot], out: Path) -> list[Path]:
    """Draw ``plots`` into the folder ``out``, and return the files."""
    # Drawing libraries are slow to import, and most verbs do not need them.
    from analysis.figures import interactive, paper

    files: list[Path] = []
    with naming(out):
        out.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            files += [*paper.save(plot, out), interactive.save(plot, out)]
    return files


def search(arguments: argparse.Namespace) -> None:
    found = searches(arguments.source)
    if not found:
        raise ValueError(
            f"--source {' '.join(arguments.source)}: holds no search; run one: python -m mmq_sweeps -m hydra/sweeper=budget "
            "hydra.sweeper.max_bpw=4 method=gptq bits=2,3,4,8"
        )
    parts: list[list[str | Table]] = [
        [f"\n{one.title} (search {one.id})", *([search_table(one)] if one.done else []), *search_lines(one)]
        for one in found
    ]
    if arguments.out is not None:
        files = _draw((plot for one in found for plot in search_plots(one)), arguments.out)
        parts.append([f"{counted(len(files), 'file')} in {arguments.out}"])
    _show(arguments, (one.content for one in found), parts)


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
    size = len(text.encode())
    _show(arguments, {"report": str(out), "bytes": size}, [[f"{out}: {size / 1e6:.1f} MB"]])


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


def _show(arguments: argparse.Namespace, content: Iterable[Any], parts: Parts) -> None:
    """Print ``content`` as JSON if ``--json`` asks for it, else the lines and tables of ``parts``."""
    console = output_console()
    if arguments.json:
        console.out(json_text(content if isinstance(content, dict) else list(content)), highlight=False)
        return
    for part in chain.from_iterable(parts):
        if isinstance(part, Table):
            console.print(part, crop=False)
        else:
            line(console, part)
