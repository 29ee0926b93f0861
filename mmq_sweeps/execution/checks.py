"""Checks of cells before the first of them runs: on their files, their configuration, their data and the loaded model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import changed_files
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.execution.model_checks import model_problems
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.quantization.requests import problems as format_problems
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.store import explained


class WorkerDied(Exception):
    """Processes that did the same work were killed, again and again."""


class Checks:
    """Finds problems of cells before they run; remembers which calibration samples it has read, since that takes long."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._sampled: set[tuple[str, str]] = set()

    def problems(self, cells: Sequence[Cell]) -> list[str]:
        """List the problems that keep ``cells``, which share a model and a task, from running."""
        if changed := changed_files(self._sessions.sweep, cells):
            return changed
        return self._found(cells, self._sessions.open(cells[0]))

    def unfit(self, cells: Sequence[Cell]) -> dict[str, Exception]:
        """Return why each of ``cells``, which share a model and a task, cannot run, by id; empty if all can.

        Loads the model. If processes were killed while they loaded it, more often than a cell is retried, no cell can run.
        """
        sweep = self._sessions.sweep
        if changed := changed_files(sweep, cells):
            return dict.fromkeys((cell.id for cell in cells), ConfigError(changed))
        loading = CrashCounter.of_work(self._sessions.store, f"{sweep.id}-load-{cells[0].id}")
        if (killed := len(loading.unended())) > self._sessions.retries:
            loading.forget()
            return dict.fromkeys((cell.id for cell in cells), WorkerDied(_killed_loading(cells[0], killed)))
        try:
            with loading.begun():
                session = self._sessions.open(cells[0])
                if self._reason(cells, session) is None:
                    return {}
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - it marks these cells failed and no others
            return dict.fromkeys((cell.id for cell in cells), error)
        # First the model and the task alone, then each cell.
        bare = replace(cells[0], parts={}, method=None, calibration=None)
        if (reason := self._reason([bare], session)) is not None:
            return dict.fromkeys((cell.id for cell in cells), reason)
        return {cell.id: reason for cell in cells if (reason := self._reason([cell], session)) is not None}

    def _reason(self, cells: Sequence[Cell], session: Session) -> Exception | None:
        try:
            found = self._found(cells, session)
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return error
        return ConfigError(found) if found else None

    def _found(self, cells: Sequence[Cell], session: Session) -> list[str]:
        # Cells that quantize a part alike have the same problems with it.
        distinct = {(part, cell.part_key(part)): cell for cell in cells for part in cell.parts}
        asked = {cell.id: cell for cell in distinct.values()}
        found = [problem for cell in asked.values() for problem in _of_cell(cell, session)]
        found += self._of_data(cells, session)
        # What the model would be found to lack otherwise follows from these.
        return found or model_problems(session, cells)

    def _of_data(self, cells: Sequence[Cell], session: Session) -> list[str]:
        task = digest(cells[0].task)
        calibrations = {digest(cell.calibration): cell.calibration for cell in cells if cell.calibration}
        # Without a calibration it is checked that the data can be read, which all cells need.
        unchecked = {("", task), *((key, task) for key in calibrations)} - self._sampled
        if not unchecked:
            return []
        try:
            with explained(session.references):
                _check_task(session, [calibrations[key] for key, _ in unchecked if key])
        except StoreError:
            raise
        except (ValueError, RuntimeError) as error:
            return [str(error)]
        self._sampled |= unchecked
        return []


def _of_cell(cell: Cell, session: Session) -> list[str]:
    if cell.method is None:
        return []
    method = build("method", cell.method_node)
    if method.needs_statistics and cell.calibration is None:
        return [f"method={cell.names['method']}: needs statistics, so its yaml must say calibration: ${{calibration}}"]
    try:
        return format_problems(session.requests(cell))
    except ValueError as error:
        return [str(error)]


def _check_task(session: Session, calibrations: list[Mapping[str, Any]]) -> None:
    try:
        session.task.check(calibrations, session.references)
    except OSError as error:
        # A file inside the store is the store's trouble; any other named file is the task's data.
        if error.filename is None or Path(error.filename).absolute().is_relative_to(session.store.root):
            raise
        raise ValueError(f"task.data: cannot read {error.filename}: {error.strerror}") from error


def _killed_loading(cell: Cell, times: int) -> str:
    return (
        f"model={cell.names['model']}: the process that loaded it was killed {times} times, as by a lack of memory; choose a "
        "smaller model.dtype, model.device_map=disk or a machine with more memory (on SLURM hydra.launcher.mem)"
    )
