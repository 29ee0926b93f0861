"""Load cells from a source named on the command line.

| source | contents |
|---|---|
| ``FOLDER`` | a store: every finished and failed cell |
| ``wandb:ENTITY/PROJECT[/GROUP]`` | the runs of a W&B project or of one of its sweeps: the same table as from the store |
| ``published:FOLDER`` | the study's own results: a clone of its repository, or a folder with some of its files |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.cells import Cells
from analysis.cells.merging import joined
from analysis.load import published, stores, wandb_runs
from mmq_sweeps.errors import one_of

KINDS: dict[str, Callable[[str], Cells]] = {
    "store": lambda place: stores.load(Path(place).expanduser()),
    "wandb": wandb_runs.load,
    "published": lambda place: published.load(Path(place).expanduser()),
}


def load(sources: Sequence[str]) -> Cells:
    """Load the cells of all ``sources`` into one table.

    Raises FileNotFoundError if a folder is missing, ValueError if it holds nothing readable or the kind of source is
    unknown. Both messages say what to do.
    """
    return joined([_load_one(source) for source in sources])


def _load_one(source: str) -> Cells:
    kind, found, place = source.partition(":")
    if not found or len(kind) == 1:  # A single letter is a Windows drive.
        kind, place = "store", source
    if kind not in KINDS:
        raise ValueError(f"--source {source}: unknown kind {kind!r}. {one_of(KINDS)}, or a store's folder alone")
    return KINDS[kind](place)
