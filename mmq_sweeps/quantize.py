"""Quantized units: computed once, kept in the store, and read by every cell that selects them.

A unit (one layer kind of one block) at full-precision inputs depends on nothing but the model, the method's fields, the
bits and the calibration samples. One pass over the calibration data serves every method and bit-width that is missing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmq_sweeps.affine import Format, QuantizedWeight
from mmq_sweeps.calibrate import SharedStats, block_statistics, capture
from mmq_sweeps.cell import SEMANTICS, Cell, digest
from mmq_sweeps.errors import TargetError
from mmq_sweeps.methods.base import LayerStats, Method, Solution
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.store import Store
from mmq_sweeps.targets import Part, Unit
from mmq_sweeps.tasks.base import Task

KIND = "quantized"
# What of a task decides the calibration inputs.
CALIBRATION_FIELDS = ("_target_", "version", "data", "calibration_split", "prompt")


@dataclass(frozen=True)
class Request:
    """One unit by one method at one bit-width. ``key`` names its artifact."""

    unit: Unit
    method: Method
    format: Format
    key: str
    calibration: Mapping[str, Any] | None


def requests(cell: Cell, method: Method, parts: Mapping[str, Part]) -> list[Request]:
    """What ``cell`` needs: a request for every unit that it selects."""
    found = []
    for name, selection in cell.parts.items():
        for unit in parts[name].select(selection):
            depends = {
                "semantics": SEMANTICS,
                "model": cell.model,
                "unit": unit.name,
                "method": cell.method,
                "bits": selection["bits"],
                "calibration": cell.calibration,
                "data": cell.calibration and {key: cell.task.get(key) for key in CALIBRATION_FIELDS},
            }
            found.append(
                Request(unit, method, method.format(selection["bits"]), digest(depends)[:24], cell.calibration)
            )
    return found


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
    failed: dict[str, Exception] = {}
    done = 0

    def attempt(request: Request, stats: Sequence[SharedStats] | None, seconds: float) -> None:
        nonlocal done
        try:
            _quantize(request, loaded, stats, seconds, store)
        except (ValueError, RuntimeError) as error:
            failed[request.key] = error
        done += 1
        progress(done, len(distinct))

    for request in distinct:
        if request.calibration is None:
            attempt(request, None, 0.0)
    for calibration in _distinct(request.calibration for request in distinct):
        served = [request for request in distinct if request.calibration == calibration]
        wanted = [part for part in parts.values() if any(request.unit.part == part.name for request in served)]
        started = time.perf_counter()
        batches = task.calibration_batches(loaded, {**calibration, "batch_size": batch_size})
        calls = capture(loaded, wanted, batches)
        capture_seconds = (time.perf_counter() - started) / len(served)
        for part in wanted:
            of_part = [request for request in served if request.unit.part == part.name]
            blocks = {request.unit.block for request in of_part}
            started = time.perf_counter()
            for index, stats in block_statistics(loaded.model, part, calls.pop(part.name), blocks.__contains__):
                of_block = [request for request in of_part if request.unit.block == index]
                seconds = capture_seconds + (time.perf_counter() - started) / len(of_block)
                for request in of_block:
                    attempt(request, stats, seconds)
                started = time.perf_counter()
    return failed


def load(requests: Iterable[Request], loaded: LoadedModel, store: Store) -> tuple[Loaded, list[Request]]:
    """The stored weights of ``requests``, and those requests that the store does not have (or no longer, if corrupt)."""
    weights: dict[str, QuantizedWeight] = {}
    notes: dict[str, Any] = {}
    seconds = {"calibrate": 0.0, "quantize": 0.0}
    missing = []
    for request in requests:
        artifact = store.artifact(KIND, request.key)
        if artifact is None:
            missing.append(request)
            continue
        tensors, description = artifact
        for name, shape in request.unit.linears.items():
            stored = {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}:")}
            weights[name] = QuantizedWeight.unpack(stored, shape, request.format)
        notes |= description["notes"]
        for stage in seconds:
            seconds[stage] += description["seconds"][stage]
    _refuse_unchanged(weights, loaded)
    return Loaded(weights, notes, seconds), missing


@dataclass(frozen=True)
class Loaded:
    """Quantized weights by linear, what the solvers noted, and the seconds that calibrating and quantizing them took."""

    weights: dict[str, QuantizedWeight]
    notes: dict[str, Any]
    seconds: dict[str, float]


def _quantize(
    request: Request, loaded: LoadedModel, stats: Sequence[SharedStats] | None, calibrate_seconds: float, store: Store
) -> None:
    started = time.perf_counter()
    tensors: dict[str, torch.Tensor] = {}
    notes: dict[str, Any] = {}
    for names, shared in _sharing(request.unit, stats):
        weights = [loaded.linear(name).weight.detach().float() for name in names]
        try:
            solution: Solution = request.method.quantize(weights, shared, request.format)
        except ValueError as error:
            raise ValueError(f"{names[0]}: {error}") from error
        if solution.notes:
            notes |= dict.fromkeys(names, solution.notes)
        for name, quantized in zip(names, solution.weights, strict=True):
            tensors |= {f"{name}:{key}": tensor for key, tensor in quantized.pack().items()}
    seconds = {"calibrate": calibrate_seconds, "quantize": time.perf_counter() - started}
    store.save_artifact(KIND, request.key, tensors, {"unit": request.unit.name, "notes": notes, "seconds": seconds})


def _sharing(unit: Unit, stats: Sequence[SharedStats] | None) -> list[tuple[list[str], LayerStats | None]]:
    """The unit's linears, together where they share an input."""
    if stats is None:
        return [([name], None) for name in unit.linears]
    groups = [([name for name in shared.linears if name in unit.linears], shared.stats) for shared in stats]
    reached = {name for names, _ in groups for name in names}
    if unreached := [name for name in unit.linears if name not in reached]:
        raise ValueError(f"{', '.join(unreached)}: no calibration token reached it")
    return [(names, shared) for names, shared in groups if names]


def _refuse_unchanged(weights: Mapping[str, QuantizedWeight], loaded: LoadedModel) -> None:
    unchanged = []
    for name, quantized in weights.items():
        original = loaded.linear(name).weight
        if torch.equal(quantized.dequantize().to(original.device, original.dtype), original):
            unchanged.append(name)
    if unchanged:
        raise TargetError(
            f"quantizing left {len(unchanged)} linears as they were in every element, so the cell would measure full "
            f"precision: {', '.join(unchanged[:5])}"
        )


def _distinct(values: Iterable[Mapping[str, Any] | None]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for value in values:
        if value is not None and value not in found:
            found.append(value)
    return found
