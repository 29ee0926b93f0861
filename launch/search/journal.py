"""The file of a search in the store, ``sweeps/ID/search.json``: its progress, its cost, and its answers."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.sweep_file import folder
from launch.workers import warm
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.store import Store

if TYPE_CHECKING:
    from launch.search.cells import Question
    from mmq_sweeps.search.measuring import Measurement, Outcome

NAME = "search.json"


@dataclass(frozen=True)
class Batch:
    """A measured batch: its stage, cells, those that were there before, items, processor seconds and wall-clock seconds."""

    stage: str
    cells: int
    there: int
    items: int
    processor_seconds: float
    seconds: float

    @staticmethod
    def of(
        batch: Sequence[Measurement], outcomes: Sequence[Outcome], cells: int, there: int, processor: float, wall: float
    ) -> Batch:
        items = {one.cell: one.result.count for one in outcomes if one.result is not None}
        return Batch(batch[0].stage, cells, there, sum(items.values()), round(processor, 2), round(wall, 2))


@dataclass(frozen=True)
class Earlier:
    """What an earlier run of the same search left: its state, its batches, and the rest of the file."""

    state: str
    batches: tuple[Batch, ...]
    content: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """True if it found its answers."""
        return self.state == "done"


def read(root: Path, search_id: str) -> Earlier | None:
    """Read the file of a search; None if there is none. A ``StoreError`` if it cannot be read."""
    path = folder(root, search_id) / NAME
    try:
        content = json.loads(path.read_text())
        return Earlier(content["state"], tuple(Batch(**one) for one in content["batches"]), content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"cannot read {path}: {error}; delete it, and the search makes it anew from its cells"
        ) from error


def write(
    store: Store,
    question: Question,
    command: str,
    state: str,
    batches: Sequence[Batch],
    before: Earlier | None,
    more: Mapping[str, Any],
) -> None:
    """Write the file of a search. A batch that was read from the store keeps the cost of its measurement."""
    content = {
        "search": question.id,
        "state": state,
        "command": command,
        "updated": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "model": question.base["model"]["name"],
        "task": question.base["task"]["name"],
        "metric": question.metric,
        "settings": asdict(question.settings),
        "batches": [asdict(one) for one in joined(batches, before)],
        **more,
    }
    store.note(f"sweeps/{question.id}/{NAME}", content)


def joined(batches: Sequence[Batch], before: Earlier | None) -> list[Batch]:
    """Return ``batches`` with their costs of all runs; the search asks for the same batches each time."""
    found = []
    for place, batch in enumerate(batches):
        old = before.batches[place] if before is not None and place < len(before.batches) else None
        if old is None:
            found.append(batch)
        elif batch.there == batch.cells:
            found.append(old)
        else:
            costs = (batch.processor_seconds + old.processor_seconds, batch.seconds + old.seconds)
            found.append(Batch(batch.stage, batch.cells, old.there, batch.items, *(round(one, 2) for one in costs)))
    return found


def told(batch: Sequence[Measurement], cells: int, there: int) -> str:
    """Describe a batch in a line, as ``race: 9 cells on 32 items of the search split, 4 of them in the store``."""
    ranges = dict.fromkeys((one.items.split, one.items.start, one.items.stop) for one in batch)
    spans = [
        "the evaluation items" if split == "evaluation" else f"items {first + 1} to {last} of the search's"
        for split, first, last in ranges
    ]
    known = f", {there} of them in the store" if there else ""
    return f"{batch[0].stage}: {cells} cell{'s' * (cells != 1)} on {' and '.join(spans)}{known}"


def processor_seconds() -> float:
    """Return the processor time of this process, of its children that have ended, and of workers that wait."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses) + warm.processor_seconds()
