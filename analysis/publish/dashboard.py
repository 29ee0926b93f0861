"""Save a view per model and task in a W&B project: quality against bits per weight, and against the bits of each part.

A view that was saved before is updated in place, at the same URL.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import METRIC
from analysis.cells.selections import any_mixed, whole
from analysis.load.wandb_cache import Cache
from analysis.load.wandb_client import Project, connected, explained
from mmq_sweeps.reporting.counts import out_of
from mmq_sweeps.reporting.table import metric_label

# Unicode categories that W&B rejects in a view's name: mathematical, currency, modifier and other symbols, surrogates.
REFUSED = ("Sm", "Sc", "Sk", "So", "Cs")
BPW = {"bpw_paper": "bits per weight, by the paper", "bpw_exact": "bits per weight, exact"}


@dataclass(frozen=True)
class View:
    """A saved view of the runs of a ``model`` and ``task``.

    ``lower`` lists the metrics of which lower is better, ``notes`` the distinctions that the panels cannot show.
    """

    name: str
    model: str
    task: str
    metrics: tuple[str, ...]
    parts: tuple[str, ...]
    lower: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def views(cells: Cells) -> list[View]:
    """List a view for every model and task that has a finished cell."""
    found = []
    for (model, task), rows in cells.finished.frame.groupby(["model", "task"], sort=True):
        family = cells.of(rows)
        metrics = [name for name in family.metrics if rows[f"{METRIC}{name}"].notna().any()]
        lower = [name for name in metrics if False in set(rows.get(f"higher.{name}", pd.Series(dtype=object)).dropna())]
        name, notes = f"{model}, {task}", tuple(_notes(family))
        found.append(View(name, model, task, tuple(metrics), tuple(family.parts), tuple(lower), notes))
    return found


# Why panels hide runs, for one run and for several.
NARROWED = (
    "narrows a part or its group size and stands at its bits all the same",
    "narrow a part or its group size and stand at its bits all the same",
)
SEVERAL = ("mixes the bits of a part and stands at their mean", "mix the bits of a part and stand at their mean")


def _notes(family: Cells) -> Iterator[str]:
    """Describe the differences that W&B's panels hide, since they know only the bits of a part."""
    several = any_mixed(family.frame, family.parts)
    narrowed = int((~whole(family.frame, family.parts) & ~several).sum())
    for count, verbs in ((narrowed, NARROWED), (int(several.sum()), SEVERAL)):
        if count:
            yield out_of(count, len(family.frame), "run", *verbs)
    told = [title.partition(" [")[2].rstrip("]") for title, _ in family.families()]
    if len(told) > 1:
        yield f"runs of {len(told)} settings are together and not comparable: {'; '.join(told)}"


def shown_name(name: str) -> str:
    """Replace the characters that W&B rejects in a view's name (``=``, ``<``, ``^`` ...) by ``-``."""
    return "".join("-" if unicodedata.category(sign) in REFUSED else sign for sign in name)


def literal(text: str) -> str:
    """Quote ``text`` for a filter. wandb-workspaces 0.4 rewrites ``=``, ``<`` and ``>`` even inside quotes, so escape them."""
    plain = [sign.isascii() and (sign.isalnum() or sign in " _-.,") for sign in text]
    signs = (sign if kept else f"\\U{ord(sign):08x}" for sign, kept in zip(text, plain, strict=True))
    return f"'{''.join(signs)}'"


def save(place: str, asked: list[View]) -> dict[str, str]:
    """Save the views ``asked`` in the project ``place``; return their URLs by name.

    Raises ModuleNotFoundError without wandb-workspaces, ValueError without a key or access, UnreachableError if the server
    does not answer.
    """
    import wandb_workspaces.workspaces as workspaces

    project = Project.of(place)
    with connected(project) as server, explained(project, server.host):
        kept = Cache.of(project, server.host).runs.with_name("views.json")
        saved = _read(kept)
        for view in asked:
            workspace = _before(workspaces.Workspace, saved.get(view.name))
            if workspace is None:
                workspace = workspaces.Workspace(
                    entity=project.entity, project=project.name, name=shown_name(view.name)
                )
            workspace.sections = _sections(view)
            workspace.runset_settings = workspaces.RunsetSettings(
                filters=f"SummaryMetric('model') == {literal(view.model)} and SummaryMetric('task') == {literal(view.task)}",
                pinned_columns=[f"summary:{name}" for name in (*BPW, *view.metrics)],
            )
            saved[view.name] = workspace.save().url
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(saved, indent=1))
    return {view.name: saved[view.name] for view in asked}


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _before(workspace: Any, url: str | None) -> Any | None:
    """Load the view saved at ``url``; ``None`` if there is none or it was deleted."""
    if url is None:
        return None
    try:
        return workspace.from_url(url)
    except ValueError as error:
        if "not found" not in str(error):
            raise
        return None


def _sections(view: View) -> list[Any]:
    from wandb_workspaces.workspaces import Section

    # The running maximum (or minimum) draws the frontier.
    frontier = [
        _scatter(
            f"{metric_label(metric)} against {told}",
            bpw,
            metric,
            **({"running_ymin": True} if metric in view.lower else {"running_ymax": True}),
        )
        for metric in view.metrics
        for bpw, told in BPW.items()
    ]
    bits = [
        _scatter(f"{metric_label(metric)} against bits of {part}", f"{part}/bits", metric)
        for metric in view.metrics
        for part in view.parts
    ]
    return [
        Section(name="Frontier: the line is the best at no more bits", panels=frontier, is_open=True),
        Section(
            name="; ".join(["Bit-widths of the parts", *map(shown_name, view.notes)]),
            panels=[*bits, *_together(view)],
            is_open=True,
        ),
    ]


def _scatter(title: str, x: str, y: str, **more: Any) -> Any:
    from wandb_workspaces.reports.v2 import ScatterPlot, SummaryMetric

    return ScatterPlot(title=title, x=SummaryMetric(x), y=SummaryMetric(y), **more)


def _together(view: View) -> list[Any]:
    """List a parallel-coordinates panel per metric: the bits of all parts, bits per weight and the metric."""
    from wandb_workspaces.reports.v2 import ParallelCoordinatesPlot, ParallelCoordinatesPlotColumn, SummaryMetric

    return [
        ParallelCoordinatesPlot(
            title=f"bits of all parts, and {metric_label(metric)}",
            columns=[
                ParallelCoordinatesPlotColumn(metric=SummaryMetric(column))
                for column in (*(f"{part}/bits" for part in view.parts), "bpw_paper", metric)
            ],
        )
        for metric in view.metrics
    ]
