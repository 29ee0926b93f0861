"""A session: one loaded model and one task, with everything cached between the cells that share them.

No cache changes a result: a cell that runs alone has the same metrics, bit for bit.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cachetools import LRUCache

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import ConfigError, StoreError
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.output_cache import OutputCache, Player, standing_in
from mmq_sweeps.execution.weight_swap import WeightSwap, put_when_called
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.memory import asked_bytes, cache_bytes, format_bytes, ran_out_of_memory
from mmq_sweeps.methods.formats import QuantizedWeight
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.quantization.quantize import quantize_units
from mmq_sweeps.quantization.requests import Request, requests
from mmq_sweeps.quantization.stored_units import QuantizedWeights, StoredUnit, load, unit_bytes
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.locks import Artifact
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks.base import Task

# The fields of a task that set the size of the batches in which a part is called.
BATCH_SIZES = ("batch_size", "pair_batch_size")
# How often a cell is tried again after its process was killed, unless the configuration says otherwise.
RETRIES = 3


@dataclass
class Session:
    """Everything a process needs to run the cells of one model and one task.

    ``uses`` counts the cells of the sweep that need a part's output, by ``Cell.output_key``; an output that only one cell
    needs is not cached.
    """

    loaded: LoadedModel
    parts: Mapping[str, Part]
    task: Task
    calibration_batch_size: int
    store: Store
    retries: int = RETRIES
    uses: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.weights = WeightSwap(self.loaded)
        self.units: LRUCache[str, StoredUnit] = LRUCache(cache_bytes(), unit_bytes)
        self.outputs = OutputCache(self.store, cache_bytes())
        self._requests: dict[str, list[Request]] = {}

    @property
    def references(self) -> Path:
        """The folder in which metrics cache results that depend on the references only."""
        return self.store.root / "artifacts" / "references"

    def requests(self, cell: Cell) -> list[Request]:
        """List the quantized units that ``cell`` needs; a ValueError if its method cannot do a format."""
        if cell.method is None:
            return []
        found = []
        for part in cell.parts:
            # A sweep has many cells and few quantizations of each part.
            key = cell.part_key(part)
            if key not in self._requests:
                self._requests[key] = requests(cell, build, self.parts, [part])
            found += self._requests[key]
        return found

    def compute(self, missing: Sequence[Request], progress: Reporter) -> dict[str, Exception]:
        """Quantize and store ``missing``; return the error of each unit that failed, by its key."""
        self.weights.restore()  # Calibration runs at full precision.
        return quantize_units(
            missing,
            self.loaded,
            self.parts,
            self._calibration_batches,
            self.store,
            lambda done, total: progress.stage("quantize", done, total),
        )

    def _calibration_batches(self, calibration: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        return self.task.calibration_batches(self.loaded, {**calibration, "batch_size": self.calibration_batch_size})

    def quantize(self, cell: Cell, progress: Reporter) -> QuantizedWeights:
        """Return the quantized weights of ``cell`` from the store, after computing the units that it lacks."""
        wanted = self.requests(cell)
        found, missing = load(wanted, self.store, self.units)
        if not missing:
            return found
        if failures := self.compute(missing, progress):
            raise next(iter(failures.values()))
        # Read back, so that the stored weights are measured.
        found, missing = load(wanted, self.store, self.units)
        if missing:
            raise StoreError(f"the store lost {missing[0].unit.name} right after it was written")
        return found

    def predict(self, cell: Cell, quantized: QuantizedWeights, progress: Reporter) -> dict[str, str]:
        """Return the answers of the model, quantized as ``cell`` says, by item."""

        def predict() -> dict[str, str]:
            return self.task.predict(self.loaded, lambda done, total: progress.stage("evaluate", done, total))

        players: list[Player] = []
        try:
            with self.evaluating(cell, quantized) as players:
                return predict()
        except Exception as error:
            # A cached output holds only the fields that the model read when it was recorded. A model that reads more
            # fails on it, and runs without the cache.
            if ran_out_of_memory(error) or not any(player.replayed for player in players):
                raise
        for player in players:
            self.outputs.refuse(player.key)
        with self.evaluating(cell, quantized, replay=False):
            return predict()

    @contextmanager
    def evaluating(self, cell: Cell, quantized: QuantizedWeights, replay: bool = True) -> Iterator[list[Player]]:
        """Put the weights in place, or cached outputs in place of a part that need not run; yields their players."""
        players, weights = [], quantized.weights
        with ExitStack() as stack:
            self._take_out_tied(weights)
            for part in self.parts.values():
                linears = [name for unit in part.units for name in unit.linears]
                own = {name: weights[name] for name in linears if name in weights}
                key = cell.part_key(part.name)
                dense = {name: value for name, value in quantized.dense.items() if part.holds(name)}
                put = partial(self.weights.put, part.name, key, own, dense)
                player = self._player(cell, part, put) if replay else None
                if player is not None:
                    stack.enter_context(standing_in(self.loaded.model.get_submodule(part.module), player))
                    players.append(player)
                if player is None or not player.begun:
                    put()
                elif not self.weights.holds(part.name, key, own):
                    changed = [*linears, *(name.rpartition(".")[0] for name in dense)]
                    stack.enter_context(put_when_called(self.loaded, changed, put))
            yield players
        for player in players:
            player.finish()

    def _take_out_tied(self, weights: Mapping[str, QuantizedWeight]) -> None:
        """Take out embeddings or head of an earlier cell, before the other, the same weight, is put in their place."""
        for part in self.parts.values():
            if part.tied_to is not None and part.module not in weights:
                self.weights.take_out(part.name)

    def output_artifacts(self, cell: Cell) -> list[Artifact]:
        """List the cached outputs of parts that ``cell`` shares with other cells of the sweep."""
        keys = [cell.output_key(part.name) for part in self.parts.values() if self._can_replay(part)]
        return [(ArtifactKind.OUTPUTS, self._output_key(key)) for key in keys if self.uses.get(key, 0) > 1]

    def with_half_batches(self) -> Session | None:
        """Return this session with batches of half the size; None if every batch is of one item already."""
        sizes = {name: size for name in BATCH_SIZES if (size := getattr(self.task, name, 1)) > 1}
        if not sizes and self.calibration_batch_size == 1:
            return None
        smaller = copy.copy(self)  # Shares the caches, and the task's copy shares the data that it has read.
        smaller.task = copy.copy(self.task)
        for name, size in sizes.items():
            object.__setattr__(smaller.task, name, size // 2)
        smaller.calibration_batch_size = max(1, self.calibration_batch_size // 2)
        return smaller

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Put the full-precision weights back if the body raises."""
        try:
            yield
        except BaseException:
            self.weights.restore()
            raise

    def free_memory(self) -> None:
        """Empty the caches; the store has all that was in them."""
        self.weights.restore()
        self.units.clear()
        self.outputs.clear()

    def _player(self, cell: Cell, part: Part, put: partial[None]) -> Player | None:
        if not self._can_replay(part):
            return None
        key = cell.output_key(part.name)
        return Player(self.outputs, self._output_key(key), put, record=self.uses.get(key, 0) > 1)

    def _output_key(self, key: str) -> str:
        batches = [getattr(self.task, name, None) for name in BATCH_SIZES]
        return digest([key, batches, environment.computing(self.loaded.device)])[:24]

    def _can_replay(self, part: Part) -> bool:
        """True unless ``part`` is the last with blocks or has none, or shares weights with another that lies inside it."""
        others = [other for other in self.parts.values() if other.name != part.name]
        with_blocks = [own.name for own in self.parts.values() if not own.at_an_end]
        if part.at_an_end or part.name == with_blocks[-1]:
            return False
        return not any(_inside(part.module, other.module) or _inside(other.module, part.module) for other in others)


def _inside(path: str, outer: str) -> bool:
    return f"{path}.".startswith(f"{outer}.") or not outer


class Sessions:
    """Opens the session of each cell of a sweep. One model at a time is in memory; tasks keep the data they have read."""

    def __init__(self, sweep: Sweep, store: Store) -> None:
        self._tasks: dict[str, Task] = {}
        self._open: tuple[str, Session] | None = None
        self._uses: Counter[str] = Counter()
        self.follow(sweep, store)

    def follow(self, sweep: Sweep, store: Store) -> None:
        """Go on with the cells of another sweep; a model that is loaded stays so, at full precision."""
        self.sweep, self.store = sweep, store
        self._uses.clear()
        self._uses.update(cell.output_key(part) for cell in sweep.cells for part in cell.model["parts"])
        wanted = {digest(cell.task) for cell in sweep.cells}
        self._tasks = {key: task for key, task in self._tasks.items() if key in wanted}
        if self._open is not None:
            session = self._open[1]
            session.weights.restore()
            session.store = store

    @property
    def retries(self) -> int:
        """How often a cell is tried again after its process was killed."""
        return int(self.sweep.settings.get("retries", RETRIES))

    def open(self, cell: Cell) -> Session:
        """Return the session with the model and task of ``cell``; a ``ConfigError`` if they cannot be built.

        A session that was opened before is the same object if it has the same model.
        """
        config = self.sweep.configs[cell.id]
        key = digest(config["model"])
        task, batch_size = self._task(cell), config["calibration"]["batch_size"]
        if self._open is None or self._open[0] != key:
            self._open = None  # Frees the other model before this one is loaded.
            loaded, parts = _load(config["model"])
            self._open = key, Session(loaded, parts, task, batch_size, self.store, self.retries, self._uses)
        session = self._open[1]
        session.task, session.calibration_batch_size = task, batch_size
        return session

    def _task(self, cell: Cell) -> Task:
        key = digest(cell.task)
        if key not in self._tasks:
            self._tasks[key] = build("task", self.sweep.configs[cell.id]["task"])
        return self._tasks[key]


def _load(config: dict[str, Any]) -> tuple[LoadedModel, dict[str, Part]]:
    try:
        loaded = load_model(config)
        return loaded, find_parts(loaded.shape, config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except (MemoryError, RuntimeError, OSError) as error:
        if ran_out_of_memory(error):
            raise ConfigError(_too_large(config, error)) from error
        if not isinstance(error, OSError):
            raise
        raise ConfigError(f"model.checkpoint={config['checkpoint']}: {' '.join(str(error).split())}") from error


def _too_large(config: dict[str, Any], error: BaseException) -> str:
    asked = asked_bytes(error)
    needed = f"{format_bytes(asked)} more memory than there is" if asked else "more memory than there is"
    return (
        f"model.checkpoint={config['checkpoint']}: loading it in {config['dtype']} asked for {needed}; choose a smaller "
        "model.dtype, model.device_map=auto, model.device_map=disk or another model.device"
    )
