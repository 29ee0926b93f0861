"""Send the cells of a store to a W&B project that lacks them or has an older record.

The runs equal those that the sweep itself would have logged, except that the table of samples has no images: a store holds
none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from analysis.load.wandb_client import NoProjectError, Project, Server, connected
from analysis.tables.records import opened
from mmq_sweeps.reporting.trackers import RECORD, InitError, WandbSession, WandbTracker
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

# The group of cells whose sweep is not in the store.
NO_SWEEP = "no sweep"


@dataclass(frozen=True)
class Pushed:
    """The project's URL, the number of cells ``sent``, and of those already there; ``notes`` on unreadable sweeps."""

    url: str
    sent: int
    had: int
    notes: tuple[str, ...] = ()


def push(folder: Path, place: str | None, samples: int) -> Pushed:
    """Send the cells of the store in ``folder`` that the project ``place``, ``[entity/]project``, lacks.

    The project defaults to that of the store's last sweep, the entity to the key's default. ``samples`` limits the
    predictions per cell. Raises FileNotFoundError if the folder is not a store, ValueError without a key or access or if
    a sweep that may name the project cannot be read, UnreachableError if the server does not answer.
    """
    store = opened(folder)
    records = store.records()
    sweeps, unread = _sweeps(folder)
    if unread and place is None:
        why, _, _ = unread[0].partition(", so ")
        raise ValueError(f"{why}: name the project with --to, since this sweep may have logged to another")
    tracker = _tracker(place, sweeps, samples)
    with connected(Project(tracker.entity or "", tracker.project)) as server:
        entity = tracker.entity or server.api.default_entity
        tracker = replace(tracker, entity=entity)
        project = Project(entity, tracker.project)
        there = _there(server, project, [record.id for record in records])
    lacking = [record for record in records if there.get(record.id) != record.to_json()]
    _send(lacking, store, tracker, sweeps)
    return Pushed(f"{server.host}/{project.path}", len(lacking), len(records) - len(lacking), tuple(unread))


def _tracker(place: str | None, sweeps: Sequence[Mapping[str, Any]], samples: int) -> WandbTracker:
    if place is None:
        settings = [sweep["settings"].get("tracker", {}) for sweep in sweeps]
        logged: Mapping[str, Any] = next((one for one in reversed(settings) if "project" in one), {})
        entity, project = logged.get("entity"), logged.get("project", WandbTracker.project)
    else:
        entity, _, project = place.rpartition("/")
        if not project or "/" in entity:
            raise ValueError(f"--to {place}: say PROJECT or ENTITY/PROJECT")
    return WandbTracker(project=project, entity=entity or None, mode="online", samples=samples)


def _there(server: Server, project: Project, wanted: Sequence[str]) -> dict[str, Any]:
    """Fetch the records of the cells ``wanted`` from the project's runs, by id; empty if the project does not exist yet."""
    try:
        listed = {run.name for run in server.listed(project)}
    except NoProjectError:
        return {}
    pages = server.fetched(project, [name for name in wanted if name in listed])
    return {run.listed.name: run.summary.get(RECORD) for page in pages for run in page}


def _send(records: Sequence[Record], store: Store, tracker: WandbTracker, sweeps: Sequence[Mapping[str, Any]]) -> None:
    import wandb

    if not records:
        return
    sessions: dict[str, WandbSession] = {}
    # The client's files are useless once sent.
    with TemporaryDirectory(prefix="mmq-wandb-") as files:
        try:
            for record in records:
                group = _group(record, sweeps)
                if group not in sessions:
                    sessions[group] = WandbSession(wandb, replace(tracker, dir=files), group, store.root / "wandb")
                items = store.items(record.id)[: tracker.samples] if record.done else []
                sessions[group].send(record, items, [(item["id"], None, []) for item in items])
        except (InitError, wandb.Error) as error:
            raise ValueError(
                f"--to {tracker.entity}/{tracker.project}: W&B does not take {record.id} ({error})"
            ) from error
        finally:
            wandb.teardown()  # Blocks until everything is sent.


def _sweeps(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Load the store's sweeps by launch time, oldest first: ``id``, ``created``, ``cells`` and ``settings``.

    Also return a sentence on each file that cannot be read.
    """
    found, unread = [], []
    for path in sorted((folder / "sweeps").glob("*/sweep.json")):
        try:
            content = json.loads(path.read_text())
            told = {name: content[name] for name in ("created", "cells", "settings")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"has no {error}" if isinstance(error, KeyError) else f"cannot be read ({error})"
            unread.append(f"{path} {why}, so its cells are sent without their sweep")
            continue
        found.append({"id": path.parent.name, **told})
    return sorted(found, key=lambda sweep: (sweep["created"], sweep["id"])), unread


def _group(record: Record, sweeps: Sequence[Mapping[str, Any]]) -> str:
    """Return the id of the sweep that measured the cell: the last that lists it and was launched before its record."""
    having = [sweep for sweep in sweeps if record.id in sweep["cells"]]
    before = [sweep for sweep in having if sweep["created"] <= record.created]
    return str((before[-1:] or having[:1] or [{"id": NO_SWEEP}])[0]["id"])
