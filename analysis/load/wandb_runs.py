"""Load cells from the runs of a W&B project: the records that ``mmq_sweeps.reporting.trackers`` put into their summaries.

Only summaries and configurations are fetched, no history and no files, so cells have no per-item scores. Other fields that
a user added to a run's summary or configuration become columns of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.cells import Cells, History
from analysis.cells.remarks import failed_cells
from analysis.load.stores import SHARED, row_of, versions_of
from analysis.load.wandb_cache import Cache
from analysis.load.wandb_client import Fetched, Project, Server, UnreachableError, connected
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.trackers import ASSIGNED, RECORD, summary
from mmq_sweeps.store.record import CorruptRecordError, Record

RUNNING = ("running", "pending", "preempting")
# Why a run has no cell: of one run, of several.
Why = tuple[str, str]
BEING_LOGGED = ("is still being logged", "are still being logged")
NO_CELL = "no cell: something else logged them, or they ended before their cell did"
NO_RECORD = (f"holds {NO_CELL}", f"hold {NO_CELL}")


def load(place: str) -> Cells:
    """Load every cell of the project ``place``, ``entity/project[/group]``.

    Raises ValueError without a key or access, or if no run holds a cell; UnreachableError if the server does not answer
    and no earlier pull is cached.
    """
    project = Project.of(place)
    notes: list[str] = []
    runs = _pull(project, notes)
    found, left_out = _sorted_out(runs)
    told = [
        f"{len(names)} of {counted(len(runs), 'run')} in {project} {why[len(names) > 1]}"
        for why, names in left_out.items()
    ]
    if not found:
        raise ValueError(_nothing(project, told))
    versions = sorted({versions_of(record.versions) for _, record in found})
    table = pd.DataFrame([_row(run, record) for run, record in found]).astype(dict.fromkeys(SHARED, "category"))
    return Cells(
        table, (*notes, *failed_cells(table, str(project)), *told), history=lambda: History(versions=tuple(versions))
    )


def _sorted_out(runs: Sequence[Fetched]) -> tuple[list[tuple[Fetched, Record]], dict[Why, list[str]]]:
    """Split runs into those that hold a cell, in a store's order, and the names of the others by reason."""
    found, left_out = [], dict[Why, list[str]]()
    for run in runs:
        text = run.summary.get(RECORD)
        if isinstance(text, str):
            try:
                found.append((run, Record.from_json(text)))
            except CorruptRecordError as error:
                record = f"a record that {error}; log these cells again with this version"
                left_out.setdefault((f"holds {record}", f"hold {record}"), []).append(run.listed.name)
            continue
        why = BEING_LOGGED if run.listed.state in RUNNING else NO_RECORD
        left_out.setdefault(why, []).append(run.listed.name)
    return sorted(found, key=lambda pair: (pair[1].created, pair[1].id)), left_out


def _nothing(project: Project, told: Iterable[str]) -> str:
    why = "; ".join(told) or (
        "it has no run" if project.group is None else f"it has no run in the group {project.group!r}: check its name"
    )
    return (
        f"--source {project}: no cell is there ({why}). A sweep logs its cells with tracker=wandb tracker.mode=online"
    )


def _pull(project: Project, notes: list[str]) -> list[Fetched]:
    """Return the project's runs: those changed since the last pull from the server, the others from the cache."""
    import wandb

    host = str(wandb.setup().settings.base_url).rstrip("/")
    cache = Cache.of(project, host)
    try:
        with connected(project) as server:
            runs = _renewed(server, project, cache)
    except UnreachableError as error:
        last = cache.last()
        if last is None:
            raise
        pulled, runs = last
        notes.append(f"{error}. Shown are the {counted(len(runs), 'run')} of the pull of {pulled}")
        return runs
    cache.finish(runs)
    return runs


def _renewed(server: Server, project: Project, cache: Cache) -> list[Fetched]:
    known = cache.read()
    listed = server.listed(project)
    changed = [one.name for one in listed if one.name not in known or known[one.name].listed != one]
    for page in server.fetched(project, changed):
        cache.add(page)
        known |= {run.listed.name: run for run in page}
    return [known[one.name] for one in listed if one.name in known]


def _row(run: Fetched, record: Record) -> dict[str, Any]:
    row = row_of(record, where=run.url) | {"url": run.url}
    ours = summary(record).keys()
    logged = {key: value for key, value in run.summary.items() if key not in ours}
    configured = {key: value for key, value in run.config.items() if key not in (*record.cell, "names", ASSIGNED)}
    # W&B's own keys start with an underscore; its tables and images are mappings.
    return row | {
        key: value
        for key, value in {**configured, **logged}.items()
        if key not in row and isinstance(value, str | int | float) and not key.startswith("_")
    }
