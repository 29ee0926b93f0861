"""Checks of cells before the first of them runs: on their files, their configuration, their data and the loaded model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmq_sweeps.config.sweep import changed_files
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.identity.end_parts import EMBEDDINGS, END_PARTS
from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.models.model_check import called
from mmq_sweeps.quantization import vision_tokens
from mmq_sweeps.quantization.calibration import capture
from mmq_sweeps.quantization.requests import Request, calibration_problems
from mmq_sweeps.quantization.requests import problems as format_problems
from mmq_sweeps.quantization.targets import UNCALIBRATED, Part, Unit, tied_problems
from mmq_sweeps.store.attempts import CrashCounter
from mmq_sweeps.store.store import explained

# Calibration samples in a batch of the dry run, and its batches: a task may run each batch in two ways.
BATCH_SIZE, BATCHES = 2, 2
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=\[)\d+(?=\]$)")


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
        # Of all cells: each part alone may be quantized as in another cell.
        model = cells[0].names["model"]
        found += dict.fromkeys(one for cell in cells for one in tied_problems(session.parts, cell.parts, model))
        found += self._of_data(cells, session)
        # Other findings about the model would follow from these.
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
    try:
        requests = session.requests(cell)
    except ValueError as error:
        return [str(error)]
    return calibration_problems(requests) or format_problems(requests) or _of_vision_tokens(requests, session)


def _of_vision_tokens(requests: Sequence[Request], session: Session) -> list[str]:
    weighted = dict.fromkeys(request.unit.part for request in requests if request.vision_weight is not None)
    found = [vision_tokens.problem(session.loaded.model, session.parts[part]) for part in weighted]
    return [problem for problem in found if problem is not None]


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


def model_problems(session: Session, cells: Sequence[Cell]) -> list[str]:
    """List why ``cells``, which share the session's model and task, would not measure their own assignment; a sentence each.

    The model is at full precision. Refused memory is left to the cells, which record it. With ``model.check=false`` nothing
    is asked, for a model that is right and yet not as the check expects.
    """
    config = session.loaded.config
    if not config.get("check", True):
        return []
    linears = [name for part in session.parts.values() for unit in part.units for name in unit.linears]
    try:
        with called(session.loaded.model, linears) as reached:
            found = list(session.task.check_model(session.loaded))
        found = (
            found or list(_without_effect(session.parts, cells, reached)) or list(_without_calibration(session, cells))
        )
    except Exception as error:  # noqa: BLE001 - whatever fails here would fail in every cell
        if ran_out_of_memory(error):
            return []
        said = " ".join(str(error).split()) or "no reason given"
        return [
            f"model.checkpoint={config['checkpoint']}: its first items of {cells[0].names['task']} cannot be run: "
            f"{type(error).__name__}: {said}; look at the prompt, at the processor's configuration and at model.class_name"
        ]
    return found


def _without_effect(parts: Mapping[str, Part], cells: Sequence[Cell], reached: set[str]) -> Iterator[str]:
    """Yield each selected kind of a part none of whose linears runs when items are answered."""
    for part, kind, units in _selected(parts, cells):
        names = [name for unit in units for name in unit.linears]
        if not reached.intersection(names):
            if part in END_PARTS:
                yield (
                    f"component.{part}: {names[0]} is not run when an item is answered, so quantizing it would measure "
                    f"nothing; set component.{part}.bits=16, or mend model.{part}"
                )
                continue
            yield (
                f"component.{part}: none of its {len(names)} linears of the kind {kind} ({names[0]}, ...) is run when an item "
                f"is answered, so quantizing them would measure nothing; leave {kind} out of component.{part}.layers, or "
                f"mend model.parts.{part}"
            )


def _without_calibration(session: Session, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield selected linears that no calibration pass runs; raise for passes that cannot be replayed block by block."""
    calibrated = [cell for cell in cells if any(request.method.needs_statistics for request in session.requests(cell))]
    if not calibrated:
        return
    # Embeddings have no statistics.
    selected = [own for own in _selected(session.parts, calibrated) if own[0] != EMBEDDINGS]
    linears = [name for _, _, units in selected for unit in units for name in unit.linears]
    # The linears that run are the same for every draw and number of samples.
    calibration = {**(calibrated[0].calibration or {}), "batch_size": BATCH_SIZE}
    batches = islice(session.task.calibration_batches(session.loaded, calibration), BATCHES)
    parts = [session.parts[part] for part in dict.fromkeys(part for part, _, _ in selected)]
    with called(session.loaded.model, linears) as reached:
        by_kind = any(request.vision_weight is not None for cell in calibrated for request in session.requests(cell))
        capture(session.loaded, parts, batches, by_kind=by_kind)
    for part, kind, units in selected:
        # An expert may be given no token of two samples; one that is given none in any block is not run at all.
        every = (name for unit in units for name in unit.linears)
        for pattern, names in grouped(every, lambda name: NUMBER.sub("*", name)).items():
            if not reached.intersection(names):
                choose = f"choose a method without calibration ({', '.join(UNCALIBRATED)})"
                if part in END_PARTS:
                    yield (
                        f"component.{part}: calibration never runs {pattern}, so it has no statistics; {choose}, set "
                        f"component.{part}.bits=16, or mend model.{part}"
                    )
                    continue
                yield (
                    f"component.{part}: calibration never runs {pattern} ({len(names)} linears of the kind {kind}), so they "
                    f"have no statistics; leave {kind} out of component.{part}.layers, {choose}, or "
                    f"mend model.parts.{part}"
                )


def _selected(parts: Mapping[str, Part], cells: Sequence[Cell]) -> Iterator[tuple[str, str, list[Unit]]]:
    """Yield each part and kind that a cell quantizes, with the units of all cells."""
    chosen: dict[tuple[str, str], dict[str, Unit]] = {}
    for cell in cells:
        for part, selection in cell.parts.items():
            for unit in parts[part].select(selection):
                chosen.setdefault((part, unit.kind), {})[unit.name] = unit
    for (part, kind), units in chosen.items():
        yield part, kind, list(units.values())
