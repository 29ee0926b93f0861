"""``python -m launch logs CELL``: print all workers' log lines on a cell, and how it ended."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from launch import sweep_file
from launch.slurm import jobs
from launch.slurm.jobs import Submitted
from mmq_sweeps.errors import ConfigError, some_of
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

# Maximum number of choices listed in an error message.
CHOICES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "cell", metavar="CELL", help="a cell's id, as in STORE/cells and --json, or the first letters of it"
    )
    parser.add_argument("--store", default="runs", help="the store's folder (runs)")


def run(arguments: argparse.Namespace) -> int:
    store = Store.reading(arguments.store)
    cell_id = find(store, arguments.cell)
    for log, lines in told_of(store, cell_id):
        sys.stdout.write(f"== {log}\n")
        sys.stdout.writelines(f"{line}\n" for line in lines)
    record = store.summary(cell_id)
    if record is None:
        for job in jobs_of(store, cell_id):
            path, said = job.log()
            sys.stdout.write(f"== job {job.id}: {path or f'it has written nothing in {job.folder}'}\n")
            sys.stdout.writelines(f"{line}\n" for line in said)
    sys.stdout.write(ending(record, cell_id))
    return 0


def find(store: Store, beginning: str) -> str:
    """Return the id of the recorded or pending cell that starts with ``beginning``; raise a ``ConfigError`` unless unique."""
    recorded = set(store.cell_ids())
    sweeps = (sweep_file.read(store.root, sweep_id).sweep for sweep_id in sweep_file.listed(store.root))
    planned = {cell.id for sweep in sweeps for cell in sweep.cells}
    fitting = sorted(cell_id for cell_id in recorded | planned if cell_id.startswith(beginning))
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        listing = sweep_file.command("status", store.root, None, "--json")
        raise ConfigError(f"cell {beginning}: unknown in {store.root}; {listing} lists the cells of the latest sweep")
    raise ConfigError(f"cell {beginning}: fits {len(fitting)}. Choose of {some_of(fitting, CHOICES)}")


def told_of(store: Store, cell_id: str) -> Iterator[tuple[Path, list[str]]]:
    """Yield each log that mentions a cell, with its lines on the cell, oldest log first."""
    logs = sorted(store.root.glob("sweeps/*/logs/*.log"), key=lambda path: path.stat().st_mtime)
    for log in logs:
        if lines := list(_lines(log, cell_id)):
            yield log, lines


def jobs_of(store: Store, cell_id: str) -> list[Submitted]:
    """Return the SLURM jobs that were assigned a cell; the log of a job says why it ended before its worker started."""
    given = (job for sweep_id in sweep_file.listed(store.root) for job in jobs.submitted(store, sweep_id))
    return sorted((job for job in given if cell_id in job.cells), key=lambda job: job.submitted)


def _lines(log: Path, cell_id: str) -> Iterator[str]:
    """Yield the lines with the cell's id and the untagged lines that follow them: output of libraries or a crash."""
    inside = False
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        marked = line.split(maxsplit=2)
        if len(marked) > 1 and _is_time(marked[0]):
            inside = marked[1] == cell_id
        if inside:
            yield line


def _is_time(word: str) -> bool:
    return word.endswith("Z") and word[:4].isdigit() and word[10:11] == "T"


def ending(record: Record | None, cell_id: str) -> str:
    """Describe how a cell ended, with the traceback if it failed."""
    if record is None:
        return f"{cell_id} has no record yet\n"
    if record.done:
        return f"{cell_id} done\n"
    error = record.error or {}
    return f"{cell_id} failed: {error.get('class')}: {error.get('message')}\n{error.get('traceback', '')}"
