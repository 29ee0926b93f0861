"""Quantize units and store them: one pass over the calibration data serves every method and bit-width that is missing.

With ``method.sequential`` a part is worked through once for each bit-width, each unit behind the quantized ones before it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmq_sweeps.errors import StoreError
from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.methods.base import expect
from mmq_sweeps.methods.formats import QuantizedWeight
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization import statistics
from mmq_sweeps.quantization.calibration import BlockRunner, Pass, block_statistics, capture
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.quantization.shared_stats import SharedStats
from mmq_sweeps.quantization.solve import PackedUnit, solve_unit
from mmq_sweeps.quantization.stored_units import Dequantized, read_unit
from mmq_sweeps.quantization.targets import Part, Unit
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)
# From the calibration fields of a cell to batches of the model's keyword arguments.
Batches = Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]]


def quantize_units(
    missing: Sequence[Request],
    loaded: LoadedModel,
    parts: Mapping[str, Part],
    batches: Batches,
    store: Store,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Exception]:
    """Quantize and store the units of ``missing``; return the error of each that failed, by key."""
    distinct = list({request.key: request for request in missing}.values())
    solver = UnitSolver(loaded, store, len(distinct), progress)
    uncalibrated = (request for request in distinct if request.calibration is None)
    for same_unit in grouped(uncalibrated, lambda request: request.unit.name).values():
        solver.solve(same_unit, None, 0.0)
    calibrated = (request for request in distinct if request.calibration is not None)
    for served in grouped(calibrated, lambda request: digest(request.calibration)).values():
        Calibration(solver, batches, served).run(parts)
    return solver.failed


def _by_kind(requests: Iterable[Request]) -> bool:
    """Return whether one of ``requests`` needs the statistics of vision and text tokens apart."""
    return any(request.vision_weight is not None for request in requests)


def _of_one_kind(unit: Unit, stats: Iterable[SharedStats]) -> dict[str, dict[str, str]]:
    """Return a note for each linear of ``unit`` that only vision or only text tokens reach."""
    note = {"vision_weight": "no effect: tokens of one kind only"}
    return {name: note for shared in stats if shared.kinds is None for name in shared.linears if name in unit.linears}


@dataclass(frozen=True)
class Calibration:
    """The requests ``served`` by one set of calibration samples, and the passes of the model over these."""

    solver: UnitSolver
    batches: Batches
    served: Sequence[Request]

    def run(self, parts: Mapping[str, Part]) -> None:
        """Solve all requests, part by part."""
        by_part = grouped(self.served, lambda request: request.unit.part)
        wanted = [part for part in parts.values() if part.name in by_part]
        started = time.perf_counter()
        passes = self._capture([part for part in wanted if any(map(self._needs_pass, by_part[part.name]))])
        seconds = (time.perf_counter() - started) / len(self.served)
        for part in wanted:
            # Popped, so that a part's activations are freed before the next one is solved.
            calls = passes.pop(part.name, [])
            chained = [request for request in by_part[part.name] if request.chain]
            self._solve_together(part, calls, [request for request in by_part[part.name] if not request.chain], seconds)
            for chain in grouped(chained, lambda request: tuple(request.chain)).values():
                self._solve_in_order(part, calls, chain, seconds)

    def _capture(self, parts: Sequence[Part], start: int = 0) -> dict[str, list[Pass]]:
        if not parts:
            return {}
        samples = self.batches(self.served[0].calibration or {})
        return capture(self.solver.loaded, parts, samples, start, by_kind=_by_kind(self.served))

    def _needs_pass(self, request: Request) -> bool:
        keys = [request.statistics, *([request.kinds] if request.vision_weight is not None else [])]
        return not all(key and self.solver.store.artifacts.has(ArtifactKind.STATISTICS, key) for key in keys)

    def _solve_together(
        self, part: Part, passes: Sequence[Pass], requests: Sequence[Request], capture_seconds: float
    ) -> None:
        """Solve requests at full-precision inputs: from stored statistics if they are there, else block by block."""
        lacking: list[list[Request]] = []
        for same_unit in grouped(requests, lambda request: request.unit.name).values():
            started = time.perf_counter()
            stats = None
            if not any(map(self._needs_pass, same_unit)):
                stats = self.solver.stored_statistics(same_unit)
            if stats is None:
                lacking.append(same_unit)
            else:
                self.solver.solve(same_unit, stats, (time.perf_counter() - started) / len(same_unit))
        left = [request for same_unit in lacking for request in same_unit]
        linears = [name for same_unit in lacking for name in same_unit[0].unit.linears]
        needs_inputs = any(request.needs_inputs for request in left)
        started = time.perf_counter()
        by_kind = _by_kind(left)
        for block, stats in block_statistics(self.solver.loaded, part, passes, linears, needs_inputs, by_kind):
            units = [same_unit for same_unit in lacking if same_unit[0].unit.block == block]
            seconds = capture_seconds + (time.perf_counter() - started) / sum(map(len, units))
            for same_unit in units:
                self.solver.store_statistics(same_unit, stats)
                self.solver.solve(same_unit, stats, seconds)
            started = time.perf_counter()

    def _solve_in_order(
        self, part: Part, passes: Sequence[Pass], requests: Sequence[Request], capture_seconds: float
    ) -> None:
        """Solve the requests of one chain, each unit behind the quantized ones before it.

        If the model does something between two blocks, it runs again with the quantized units before in place. Units that
        the store has are not solved again. Behind a unit that fails, all others fail.
        """
        loaded, missing = self.solver.loaded, {request.key: request for request in requests}
        runner = BlockRunner(loaded, part, passes)
        before, before_dense = dict[str, QuantizedWeight](), dict[str, Tensor]()
        for block in range(max(request.unit.block for request in requests) + 1):
            if runner.joined:
                with loaded.weights_replaced(Dequantized(before), before_dense):
                    runner = BlockRunner(loaded, part, self._capture([part], block)[part.name], block)
            with ExitStack() as replaced:
                for key, request in requests[0].chain.items():
                    unit = request.unit
                    if unit.block != block:
                        continue
                    stored = None if key in missing else read_unit(request, self.solver.store)
                    if stored is None:
                        started = time.perf_counter()
                        stats = runner.statistics(unit.linears, request.needs_inputs, _by_kind([request]))
                        self.solver.solve([request], stats, capture_seconds + time.perf_counter() - started)
                        if error := self.solver.failed.get(key):
                            reason = f"{unit.name}, which is quantized before it, failed: {error}"
                            self.solver.fail_unsolved(requests, reason)
                            return
                        stored = read_unit(request, self.solver.store)
                    if stored is None:
                        raise StoreError(f"the store lost {unit.name} right after it was written")
                    replaced.enter_context(loaded.weights_replaced(Dequantized(stored.weights), stored.dense))
                    before |= stored.weights
                    before_dense |= stored.dense
                runner.advance()


@dataclass
class UnitSolver:
    """Solves requests and stores the results; counts them, and holds the error of each that failed, by key."""

    loaded: LoadedModel
    store: Store
    total: int
    progress: Callable[[int, int], None]
    failed: dict[str, Exception] = field(default_factory=dict)
    done: int = 0
    # Parts of which it was told that a weight of vision tokens has no effect.
    _told: set[str] = field(default_factory=set)

    def solve(self, requests: Sequence[Request], stats: Sequence[SharedStats] | None, seconds: float) -> None:
        """Quantize one unit for ``requests``, those of one method together; each took ``seconds`` of calibration."""
        # One weight after the other, so that one weighted copy of the statistics is in memory.
        for weight, alike in grouped(requests, lambda request: request.vision_weight).items():
            weighted = None if stats is None else [shared.weighted(weight) for shared in stats]
            without_effect = {} if weight is None else _of_one_kind(alike[0].unit, stats or ())
            self._tell_without_effect(alike[0], without_effect)
            self._solve_alike(alike, weighted, seconds, without_effect)

    def _solve_alike(
        self,
        requests: Sequence[Request],
        stats: Sequence[SharedStats] | None,
        seconds: float,
        without_effect: Mapping[str, Any],
    ) -> None:
        """Quantize one unit for ``requests`` of one vision weight; ``without_effect`` has notes on linears for the record."""
        methods = [request.method for request in requests]
        # Compared, not hashed: a method of a user's own need not be hashable.
        distinct = [method for place, method in enumerate(methods) if method not in methods[:place]]
        for shared in stats or ():
            expect(distinct, shared.stats)
        for method in distinct:
            together = [request for request in requests if request.method == method]
            started = time.perf_counter()
            formats = [request.format for request in together]
            solved = solve_unit(together[0].unit, method, formats, self.loaded, stats)
            taken = {"calibrate": seconds, "quantize": (time.perf_counter() - started) / len(together)}
            for place, request in enumerate(together):
                if place in solved.errors:
                    self._fail(request, solved.errors[place])
                else:
                    packed = solved.packed[place]
                    packed.notes |= {
                        name: {**packed.notes.get(name, {}), **note} for name, note in without_effect.items()
                    }
                    self._store(request, packed, taken)

    def _tell_without_effect(self, request: Request, linears: Mapping[str, Any]) -> None:
        if linears and request.unit.part not in self._told:
            self._told.add(request.unit.part)
            logger.warning(
                "method.vision_weight has no effect on %s (and perhaps others of %s): calibration gives it tokens of one kind "
                "only; the record names all such linears",
                next(iter(linears)), request.unit.part,
            )  # fmt: skip

    def store_statistics(self, requests: Sequence[Request], stats: Sequence[SharedStats]) -> None:
        """Store the statistics of the unit of ``requests`` for later methods and bit-widths, if there is room."""
        unit, kinds = requests[0].unit, {request.kinds for request in requests if request.vision_weight is not None}
        try:
            for key in {request.statistics for request in requests} - {""}:
                statistics.write(self.store, key, unit, stats)
            for key in kinds - {""}:
                statistics.write_kinds(self.store, key, unit, stats)
        except StoreError as error:
            logger.warning("statistics of %s are not stored: %s", unit.name, error.strerror)

    def stored_statistics(self, requests: Sequence[Request]) -> list[SharedStats] | None:
        """Return the stored statistics of the unit of ``requests``, vision and text tokens apart if one needs that."""
        stats = statistics.read(self.store, requests[0].statistics)
        kinds = next((request.kinds for request in requests if request.vision_weight is not None), None)
        return stats if stats is None or kinds is None else statistics.with_kinds(self.store, kinds, stats)

    def fail_unsolved(self, requests: Iterable[Request], why: str) -> None:
        """Fail those of ``requests`` that were not reached."""
        for request in requests:
            if request.key not in self.failed and not self.store.artifacts.has(ArtifactKind.QUANTIZED, request.key):
                self._fail(request, ValueError(why))

    def _fail(self, request: Request, error: Exception) -> None:
        self.failed[request.key] = error
        self._count()

    def _store(self, request: Request, unit: PackedUnit, seconds: Mapping[str, float]) -> None:
        description: dict[str, Any] = {"unit": request.unit.name, "seconds": seconds}
        description |= {"notes": unit.notes, "unchanged": unit.unchanged} | unit.error
        description |= {"experts_without_tokens": unit.without_tokens} if unit.without_tokens else {}
        self.store.artifacts.save(ArtifactKind.QUANTIZED, request.key, unit.stored(), description)
        self._count()

    def _count(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)
