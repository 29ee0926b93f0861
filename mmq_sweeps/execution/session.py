"""What stays in a process from cell to cell of one model: weights in place, quantized units, outputs of parts.

None of it changes a result. A cell that is run without has the same figures, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from mmq_sweeps.execution import environment
from mmq_sweeps.execution.kept import Kept, share_of_memory
from mmq_sweeps.execution.output_cache import OutputCache, Player, standing_in
from mmq_sweeps.execution.weight_swap import WeightSwap, put_when_called
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.methods.affine import QuantizedWeight
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.quantize import Request, StoredUnit
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks.base import Task

# The fields of a task that say how large the batches are in which a part is called.
BATCH_SIZES = ("batch_size", "pair_batch_size")


@dataclass
class Warm:
    """``uses`` counts, by ``Cell.output_key``, the cells of the sweep that need an output: what only one needs is not kept."""

    loaded: LoadedModel
    parts: Mapping[str, Part]
    placement: WeightSwap
    units: Kept[StoredUnit]
    outputs: OutputCache
    uses: Mapping[str, int]
    requests: dict[str, list[Request]] = field(default_factory=dict)

    @staticmethod
    def of(loaded: LoadedModel, parts: Mapping[str, Part], store: Store, uses: Mapping[str, int]) -> Warm:
        bound = share_of_memory()
        return Warm(loaded, parts, WeightSwap(loaded), Kept(bound), OutputCache(store, bound), uses)

    def let_go(self) -> None:
        """Give back the memory; the store has all of it."""
        self.placement.restore()
        self.units.clear()
        self.outputs.let_go()

    @contextmanager
    def evaluating(
        self, cell: Cell, task: Task, weights: Mapping[str, QuantizedWeight], replay: bool = True
    ) -> Iterator[list[Player]]:
        """Run the model as ``cell`` has it: with ``weights`` in place, or where they are not needed, with kept outputs.

        Inside, the players tell what was played back; outside, what was new is kept.
        """
        players = []
        with ExitStack() as standing:
            for part in self.parts.values():
                linears = [name for unit in part.units for name in unit.linears]
                own = {name: weights[name] for name in linears if name in weights}
                key = cell.part_key(part.name)
                put = partial(self.placement.put, part.name, key, own)
                player = self._player(cell, part, task, put) if replay else None
                if player is not None:
                    standing.enter_context(standing_in(self.loaded.model.get_submodule(part.module), player))
                    players.append(player)
                if player is None or not player.begun:
                    put()
                elif not self.placement.holds(part.name, key, own):
                    standing.enter_context(put_when_called(self.loaded, linears, put))
            yield players
        for player in players:
            player.finish()

    def output_keys(self, cell: Cell, task: Task) -> list[str]:
        """What the outputs are kept under that ``cell`` shares with others of the sweep."""
        outputs = [cell.output_key(part.name) for part in self.parts.values() if self._stands_alone(part)]
        return [self._key(output, task) for output in outputs if self.uses.get(output, 0) > 1]

    def _player(self, cell: Cell, part: Part, task: Task, put: partial[None]) -> Player | None:
        if not self._stands_alone(part):
            return None
        output = cell.output_key(part.name)
        return Player(self.outputs, self._key(output, task), put, record=self.uses.get(output, 0) > 1)

    def _key(self, output: str, task: Task) -> str:
        return digest([output, _batches(task), environment.computing(self.loaded.device)])[:24]

    def _stands_alone(self, part: Part) -> bool:
        """True of every part but the last, and of no part with another inside it: its weights are the other's as well."""
        apart = [other for other in self.parts.values() if other.name != part.name]
        if not apart or part.name == list(self.parts)[-1]:
            return False
        return not any(_inside(part.module, other.module) or _inside(other.module, part.module) for other in apart)


def _inside(path: str, outer: str) -> bool:
    return f"{path}.".startswith(f"{outer}.") or not outer


def _batches(task: Task) -> list[int | None]:
    """The sizes of the batches that the outputs come in."""
    return [getattr(task, name, None) for name in BATCH_SIZES]
