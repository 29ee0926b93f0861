"""Quantized units: computed once, kept in the store, and read by every cell that selects them.

A unit (one layer kind of one block) at full-precision inputs depends on nothing but the model, the method's fields, the
format and the calibration samples. One pass over the calibration data serves every method and bit-width that is missing.

With ``method.sequential`` a unit is calibrated behind the quantized units before it in its part. It then also depends on
what of the part is quantized, and a part is worked through once for each bit-width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from mmq_sweeps.errors import StoreError
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.kept import Kept
from mmq_sweeps.execution.weight_swap import Dequantized
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods.affine import Format, QuantizedWeight
from mmq_sweeps.methods.base import LayerStats, Method, Solution, expect
from mmq_sweeps.methods.magnitude import solve_relative
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization import statistics
from mmq_sweeps.quantization.calibration import BlockRunner, Pass, SharedStats, block_statistics, capture
from mmq_sweeps.quantization.targets import METHOD_GROUP_SIZE, Part, Unit, check_format
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks.base import Task

KIND = "quantized"
T = TypeVar("T")
# A unit's weights by linear, and what was written about them.
StoredUnit = tuple[dict[str, QuantizedWeight], dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """One unit by one method in one format. ``key`` names its artifact.

    ``chain`` holds, by their keys and in order, the units of the part that are calibrated behind each other, this one
    among them; it is empty at full-precision inputs. ``work`` is the same for all requests that one pass over calibration
    data can serve; ``statistics`` names the artifact with the unit's layer statistics, where they can be kept.
    """

    unit: Unit
    method: Method
    format: Format
    key: str
    calibration: Mapping[str, Any] | None
    chain: Mapping[str, Unit] = field(default_factory=dict)
    group_size_key: str = METHOD_GROUP_SIZE
    work: str = ""
    statistics: str = ""


def requests(
    cell: Cell, method: Method, parts: Mapping[str, Part], names: Iterable[str] | None = None
) -> list[Request]:
    """What ``cell`` needs: a request for every unit that it selects, in the parts ``names`` if that is given.

    A ValueError where the method cannot do a format.
    """
    found = []
    sequential = cell.calibration is not None and getattr(method, "sequential", False)
    for name in cell.parts if names is None else names:
        selection = cell.parts[name]
        format = _format(method, selection, name)
        units = parts[name].select(selection)
        behind = selection if sequential else None
        kept = cell.calibration is not None and not sequential and not getattr(method, "needs_inputs", False)
        by_key = {cell.unit_key(unit.name, asdict(format), behind): unit for unit in units}
        chain = by_key if sequential else {}
        where = f"component.{name}.group_size" if "group_size" in selection else METHOD_GROUP_SIZE
        work = cell.pass_key(name)
        for key, unit in by_key.items():
            statistics = cell.statistics_key(unit.name) if kept else ""
            found.append(Request(unit, method, format, key, cell.calibration, chain, where, work, statistics))
    return found


def problems(requests: Iterable[Request]) -> list[str]:
    """A sentence for every part and width of linears that a format of ``requests`` does not fit."""
    units: dict[tuple[Format, str], list[Unit]] = {}
    for request in requests:
        units.setdefault((request.format, request.group_size_key), []).append(request.unit)
    return [problem for (format, key), found in units.items() for problem in check_format(found, format, key)]


def _format(method: Method, selection: Mapping[str, Any], part: str) -> Format:
    """The format of a part; a group size of its own is checked by the method as if it were the method's."""
    if "group_size" not in selection:
        return method.format(selection["bits"])
    size: Any = selection["group_size"]
    try:
        if any(own.name == "group_size" for own in fields(method)):  # type: ignore[arg-type]
            return replace(method, group_size=size).format(selection["bits"])  # type: ignore[type-var]
        return replace(method.format(selection["bits"]), group_size=size)
    except ValueError as error:
        raise ValueError(f"component.{part}.group_size={size}: {error}") from error


def compute(
    missing: Sequence[Request],
    loaded: LoadedModel,
    parts: Mapping[str, Part],
    task: Task,
    batch_size: int,
    store: Store,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Exception]:
    """Quantize and store the ``missing`` requests; returns the error of each that failed, by key."""
    distinct = list({request.key: request for request in missing}.values())
    work = _Work(loaded, store, len(distinct), progress)
    for unit in _distinct(request.unit for request in distinct if request.calibration is None):
        work.solve([one for one in distinct if one.unit == unit and one.calibration is None], None, 0.0)
    for calibration in _distinct(request.calibration for request in distinct):
        served = [request for request in distinct if request.calibration == calibration]
        wanted = [part for part in parts.values() if any(request.unit.part == part.name for request in served)]
        reached = [
            part for part in wanted if any(_needs_pass(one, store) for one in served if one.unit.part == part.name)
        ]
        started = time.perf_counter()

        def run(captured: Sequence[Part], sampled: Mapping[str, Any] = calibration) -> dict[str, list[Pass]]:
            return capture(loaded, captured, task.calibration_batches(loaded, {**sampled, "batch_size": batch_size}))

        passes = run(reached) if reached else {}
        capture_seconds = (time.perf_counter() - started) / len(served)
        for part in wanted:
            of_part = [request for request in served if request.unit.part == part.name]
            calls = passes.pop(part.name, [])
            _solve_together(work, part, calls, [one for one in of_part if not one.chain], capture_seconds)
            for chain in _distinct(request.chain for request in of_part if request.chain):
                of_chain = [one for one in of_part if one.chain == chain]
                _solve_in_order(work, part, calls, of_chain, capture_seconds, partial(run, [part]))
    return work.failed


def _needs_pass(request: Request, store: Store) -> bool:
    return not (request.statistics and store.has_artifact(statistics.KIND, request.statistics))


def _solve_together(
    work: _Work, part: Part, passes: Sequence[Pass], requests: Sequence[Request], capture_seconds: float
) -> None:
    """All ``requests`` of one part at full-precision inputs: from kept statistics, else block by block."""
    lacking: list[Unit] = []
    for unit in _distinct(request.unit for request in requests):
        of_unit = [request for request in requests if request.unit == unit]
        started = time.perf_counter()
        stats = None if any(_needs_pass(one, work.store) for one in of_unit) else work.statistics(of_unit[0])
        if stats is None:
            lacking.append(unit)
        else:
            work.solve(of_unit, stats, (time.perf_counter() - started) / len(of_unit))
    requests = [request for request in requests if request.unit in lacking]
    started = time.perf_counter()
    wanted = [name for unit in lacking for name in unit.linears]
    for index, stats in block_statistics(work.loaded, part, passes, wanted, _need_inputs(requests)):
        of_block = [request for request in requests if request.unit.block == index]
        seconds = capture_seconds + (time.perf_counter() - started) / len(of_block)
        for unit in _distinct(request.unit for request in of_block):
            of_unit = [request for request in of_block if request.unit == unit]
            work.keep_statistics(of_unit, stats)
            work.solve(of_unit, stats, seconds)
        started = time.perf_counter()


def _solve_in_order(
    work: _Work,
    part: Part,
    passes: Sequence[Pass],
    requests: Sequence[Request],
    capture_seconds: float,
    run: Callable[[], dict[str, list[Pass]]],
) -> None:
    """The ``requests`` of one chain: each unit on what the quantized units before it give.

    Where the model does something between two blocks, it is ``run`` again with the quantized units before in place. Units
    that the store has already are not solved again. Behind one that fails, all others fail.
    """
    missing = {request.key: request for request in requests}
    replay = BlockRunner(work.loaded, part, passes)
    last = max(request.unit.block for request in requests)
    before: dict[str, QuantizedWeight] = {}
    for index in range(last + 1):
        if replay.joined:
            with work.loaded.weights_replaced(Dequantized(before)):
                replay = BlockRunner(work.loaded, part, run()[part.name], index)
        with ExitStack() as replaced:
            for key, unit in requests[0].chain.items():
                if unit.block != index:
                    continue
                request = missing.get(key) or replace(requests[0], unit=unit, key=key)
                weights = None if key in missing else _stored(request, work.store)
                if weights is None:
                    started = time.perf_counter()
                    stats = replay.statistics(unit.linears, _need_inputs([request]))
                    work.solve([request], stats, capture_seconds + time.perf_counter() - started)
                    if key in work.failed:
                        work.fail(requests, f"{unit.name}, which is quantized before it, failed: {work.failed[key]}")
                        return
                    weights = _stored(request, work.store)
                if weights is None:
                    raise StoreError(f"the store lost {unit.name} right after it was written")
                replaced.enter_context(work.loaded.weights_replaced(Dequantized(weights[0])))
                before |= weights[0]
            replay.advance()


def _need_inputs(requests: Iterable[Request]) -> bool:
    return any(getattr(request.method, "needs_inputs", False) for request in requests)


@dataclass
class _Work:
    """Solves requests and stores what comes out; keeps count, and the error of each that failed by its key."""

    loaded: LoadedModel
    store: Store
    total: int
    progress: Callable[[int, int], None]
    failed: dict[str, Exception] = field(default_factory=dict)
    done: int = 0

    def solve(self, requests: Sequence[Request], stats: Sequence[SharedStats] | None, seconds: float) -> None:
        """Quantize one unit for ``requests``; those of one method together. ``seconds`` is each one's calibration."""
        methods = _distinct(request.method for request in requests)
        for shared in stats or ():
            expect(methods, shared.stats)
        for method in methods:
            together = [request for request in requests if request.method == method]
            started = time.perf_counter()
            outcomes = _solve(together[0].unit, method, [one.format for one in together], self.loaded, stats)
            each = (time.perf_counter() - started) / len(together)
            for request, outcome in zip(together, outcomes, strict=True):
                self._keep(request, outcome, {"calibrate": seconds, "quantize": each})

    def statistics(self, request: Request) -> list[SharedStats] | None:
        """The kept statistics of the unit of ``request``, ``None`` where they are lost."""
        return statistics.read(self.store, request.statistics)

    def keep_statistics(self, requests: Sequence[Request], stats: Sequence[SharedStats]) -> None:
        """Keep the statistics of the unit of ``requests`` for later methods and bit-widths, if there is room."""
        for key in _distinct(request.statistics or None for request in requests):
            try:
                statistics.write(self.store, key, requests[0].unit, stats)
            except StoreError as error:
                self.store.say(f"statistics of {requests[0].unit.name} are not kept: {error.strerror}")

    def fail(self, requests: Iterable[Request], why: str) -> None:
        """Those of ``requests`` that were not reached fail as well."""
        for request in requests:
            if request.key not in self.failed and not self.store.has_artifact(KIND, request.key):
                self._keep(request, ValueError(why), {})

    def _keep(self, request: Request, outcome: _Solved | Exception, seconds: dict[str, float]) -> None:
        if isinstance(outcome, Exception):
            self.failed[request.key] = outcome
        else:
            about = {"unit": request.unit.name, "seconds": seconds}
            about |= {"notes": outcome.notes, "unchanged": outcome.unchanged}
            self.store.save_artifact(KIND, request.key, outcome.tensors, about)
        self.done += 1
        self.progress(self.done, self.total)


@dataclass
class _Solved:
    """The packed tensors of a unit in one format, the solver's notes, and the linears that came out as they went in."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    unchanged: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str], originals: Sequence[Tensor], solution: Solution) -> None:
        if solution.notes:
            self.notes |= dict.fromkeys(names, solution.notes)
        for name, original, quantized in zip(names, originals, solution.weights, strict=True):
            self.tensors |= {f"{name}:{key}": tensor for key, tensor in quantized.pack().items()}
            if torch.equal(quantized.dequantize().to(original.device, original.dtype), original):
                self.unchanged.append(name)


def _solve(
    unit: Unit, method: Method, formats: Sequence[Format], loaded: LoadedModel, stats: Sequence[SharedStats] | None
) -> list[_Solved | Exception]:
    """What comes out, or the error, for each of ``formats``."""
    outcomes: list[_Solved | Exception] = [_Solved() for _ in formats]
    try:
        originals = {name: loaded.weight(name) for name in unit.linears}
        # Before the statistics are looked at: they suffer from a weight that is not finite, and are not to blame.
        weights = {name: _finite(original, name) for name, original in originals.items()}
        for names, shared in _sharing(unit, stats):
            going = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, _Solved)]
            asked = [formats[place] for place in going]
            found = _attempts(method, [weights[name] for name in names], shared, asked)
            for place, solution in zip(going, found, strict=True):
                solved = outcomes[place]
                if isinstance(solution, Exception):
                    outcomes[place] = _named(solution, names)
                elif isinstance(solved, _Solved):
                    solved.add(names, [originals[name] for name in names], solution)
    except (ValueError, RuntimeError) as error:
        return [outcome if isinstance(outcome, Exception) else error for outcome in outcomes]
    return outcomes


def _attempts(
    method: Method, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
) -> list[Solution | Exception]:
    """A solution or an error for each format; where they fail together, each is tried alone."""
    if not formats:
        return []
    try:
        return list(solve_relative(method, weights, stats, formats))
    except (ValueError, RuntimeError) as error:
        if len(formats) == 1:
            return [error]
    return [_attempts(method, weights, stats, [format])[0] for format in formats]


def _named(error: Exception, names: Sequence[str]) -> Exception:
    """``error`` with the linears that it is about; of memory that was refused nothing is to be changed."""
    if environment.ran_out_of_memory(error):
        return error
    # What a method raises is the cell's error: its class says whether the input was wrong or the solver failed.
    kind = RuntimeError if isinstance(error, RuntimeError) else ValueError
    named = kind(f"{', '.join(names)}: {error}")
    named.__cause__ = error
    return named


def _finite(weight: Tensor, name: str) -> Tensor:
    """``weight`` in single precision; a ValueError with its name where it has values that are none."""
    weight = weight.float()
    if wrong := weight.numel() - int(weight.isfinite().sum()):
        raise ValueError(f"{name}: {wrong} of {weight.numel()} weights are not finite")
    return weight


def _sharing(unit: Unit, stats: Sequence[SharedStats] | None) -> list[tuple[list[str], LayerStats | None]]:
    """The unit's linears, together where they share an input; a ValueError where its statistics say nothing."""
    if stats is None:
        return [([name], None) for name in unit.linears]
    groups = [([name for name in shared.linears if name in unit.linears], shared) for shared in stats]
    reached = {name for names, _ in groups for name in names}
    if unreached := [name for name in unit.linears if name not in reached]:
        raise ValueError(f"{', '.join(unreached)}: no calibration token reached it")
    for names, shared in groups:
        if names and shared.not_finite:
            raise ValueError(
                f"{', '.join(names)}: {shared.not_finite} of {shared.stats.count} calibration tokens that reach it are "
                "not finite"
            )
    return [(names, shared.stats) for names, shared in groups if names]


@dataclass(frozen=True)
class Loaded:
    """Quantized weights by linear, what the solvers noted, and the seconds that calibrating and quantizing them took.

    ``unchanged`` names the linears whose codes stand for the full-precision weight itself, in every element: it is all zero,
    or has lain on such a grid since training.
    """

    weights: dict[str, QuantizedWeight]
    notes: dict[str, Any]
    seconds: dict[str, float]
    unchanged: list[str] = field(default_factory=list)


def load(
    requests: Iterable[Request], store: Store, kept: Kept[StoredUnit] | None = None
) -> tuple[Loaded, list[Request]]:
    """The stored weights of ``requests``, and those requests that the store does not have (or no longer, if corrupt).

    What is in ``kept`` is not read again.
    """
    found = Loaded({}, {}, {"calibrate": 0.0, "quantize": 0.0})
    missing = []
    for request in requests:
        stored = kept.get(request.key) if kept is not None else None
        if stored is None:
            stored = _stored(request, store)
            if stored is None:
                missing.append(request)
                continue
            if kept is not None:
                kept.put(request.key, stored, sum(weight.codes.nbytes for weight in stored[0].values()))
        weights, description = stored
        found.weights.update(weights)
        found.notes.update(description["notes"])
        for stage in found.seconds:
            found.seconds[stage] += description["seconds"][stage]
        found.unchanged.extend(description["unchanged"])
    return found, missing


def _stored(request: Request, store: Store) -> StoredUnit | None:
    """A unit's weights by linear and what was written about them; ``None`` where the store has none."""
    artifact = store.artifact(KIND, request.key)
    if artifact is None:
        return None
    tensors, description = artifact
    weights = {}
    for name, shape in request.unit.linears.items():
        stored = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}:")}
        weights[name] = QuantizedWeight.unpack(stored, shape, request.format)
    return weights, description


def _distinct(values: Iterable[T | None]) -> list[T]:
    """``values`` that are not ``None``, each once; they need not have a hash."""
    found: list[T] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found
