"""Check a model with a task before their first cell: ask a few items, and run one calibration batch dry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.execution.session import Session
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.models.check import called
from mmq_sweeps.quantization.calibration import capture
from mmq_sweeps.quantization.targets import Part, Unit

# Calibration samples in a batch of the dry run, and its batches: a task may run each batch in two ways.
BATCH_SIZE, BATCHES = 2, 2
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def model_problems(session: Session, cells: Sequence[Cell]) -> list[str]:
    """List why ``cells``, which share the session's model and task, would not measure what they say; a sentence each.

    The model is at full precision. Refused memory is left to the cells, which record it.
    """
    config = session.loaded.config
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
            yield (
                f"component.{part}: none of its {len(names)} linears of the kind {kind} ({names[0]}, ...) is run when an item "
                f"is answered, so quantizing them would measure nothing; leave {kind} out of component.{part}.layers, or "
                f"mend model.parts.{part}"
            )


def _without_calibration(session: Session, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield selected linears that no calibration pass runs; raise for passes that cannot be replayed block by block."""
    calibrated = [cell for cell in cells if cell.calibration and build("method", cell.method_node).needs_statistics]
    if not calibrated:
        return
    selected = list(_selected(session.parts, calibrated))
    linears = [name for _, _, units in selected for unit in units for name in unit.linears]
    # The linears that run are the same for every draw and number of samples.
    calibration = {**(calibrated[0].calibration or {}), "batch_size": BATCH_SIZE}
    batches = islice(session.task.calibration_batches(session.loaded, calibration), BATCHES)
    parts = [session.parts[part] for part in dict.fromkeys(part for part, _, _ in selected)]
    with called(session.loaded.model, linears) as reached:
        capture(session.loaded, parts, batches)
    for part, kind, units in selected:
        # An expert may be given no token of two samples; one that is given none in any block is not run at all.
        alike: dict[str, list[str]] = {}
        for name in (name for unit in units for name in unit.linears):
            alike.setdefault(NUMBER.sub("*", name), []).append(name)
        for pattern, names in alike.items():
            if not reached.intersection(names):
                yield (
                    f"component.{part}: calibration never runs {pattern} ({len(names)} linears of the kind {kind}), so they "
                    f"have no statistics; leave {kind} out of component.{part}.layers, choose a method without "
                    f"calibration (rtn, uniform, hqq), or mend model.parts.{part}"
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
