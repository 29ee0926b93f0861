"""The source of an export: a finished cell, with all that is needed to compute its weights again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store


@dataclass(frozen=True)
class Source:
    """A finished, quantized cell of ``store``; ``sweep`` has it alone.

    ``commands`` are those of the sweep that measured it and, if it can be told, of the cell alone.
    """

    store: Store
    record: Record
    sweep: Sweep
    commands: Mapping[str, str]

    @property
    def cell(self) -> Cell:
        """The cell, with its names and places."""
        return self.sweep.cells[0]

    @property
    def model(self) -> Mapping[str, Any]:
        """Configuration of the model."""
        model: Mapping[str, Any] = self.sweep.configs[self.cell.id]["model"]
        return model


def only(sweep: Sweep, record: Record) -> Sweep:
    """Return ``sweep`` with the cell of ``record`` alone; ConfigError if this version would compute another one."""
    cell = next((cell for cell in sweep.cells if cell.effective == record.cell), None)
    if cell is None or cell.id != record.id:
        raise ConfigError(
            f"{record.id}: was measured by mmq-sweeps {record.versions.get('mmq_sweeps', 'of an unknown version')}, for which "
            "the same settings meant another computation; measure it again with this version, then export that cell"
        )
    return Sweep((cell,), {cell.id: sweep.configs[cell.id]}, sweep.settings)
