"""Verify an exported folder in a process of its own: reloaded by transformers, it must be the model that was measured.

``python -m mmq_sweeps.export.verify`` reads its task as JSON from standard input and writes its findings as JSON. It
imports the exported weights with nothing but transformers.
"""

from __future__ import annotations

import gc
import json
import logging
import subprocess
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.export.choice import DTYPES
from mmq_sweeps.export.formats.names import format_named
from mmq_sweeps.export.tensors import ExportedTensors
from mmq_sweeps.export.weights import CellWeights
from mmq_sweeps.export.writer import INDEX, SINGLE
from mmq_sweeps.grouping import grouped
from mmq_sweeps.memory import Computed
from mmq_sweeps.models import experts
from mmq_sweeps.models.device_map import choose_device, offloading_hooks
from mmq_sweeps.models.loading import LoadedModel, decompress, prepared
from mmq_sweeps.models.processors import load_processor
from mmq_sweeps.models.shapes import find_class
from mmq_sweeps.quantization.folding import tensors_in
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)
# Inputs on which outputs are compared: samples in all, in a batch, and batches.
SAMPLES, BATCH_SIZE, BATCHES = 4, 2, 2
SHOWN = 3


class VerificationError(RuntimeError):
    """An exported folder is not the model that was measured."""


@dataclass(frozen=True)
class Verified:
    """The findings: how many linears' codes and values of outputs are equal, and with an evaluation every metric."""

    linears: int
    outputs: int
    metrics: dict[str, float]


def verify(
    folder: Path,
    sweep: Sweep,
    store: Store,
    format: str,
    dtype: str,
    kept: Collection[str],
    metrics: Mapping[str, float] | None,
) -> Verified:
    """Verify ``folder`` in a new process; VerificationError names a difference.

    ``kept`` names parameters that the measured model had in float32 whatever its dtype. With ``metrics``, those of the
    record, the task is evaluated and must give the same values.
    """
    asked = {
        "folder": str(folder),
        "sweep": sweep.to_json(),
        "store": str(store.root),
        "format": format,
        "dtype": dtype,
        "kept": list(kept),
        "metrics": None if metrics is None else dict(metrics),
    }
    told = in_new_process(asked)
    if "problem" in told:
        raise VerificationError(told["problem"])
    return Verified(**told)


def in_new_process(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``answer(asked)`` of a process that has loaded nothing yet."""
    done = subprocess.run(
        [sys.executable, "-m", "mmq_sweeps.export.verify"],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise VerificationError(f"the process that reloads it ended with status {done.returncode}: {last}") from None
    for warning in told.pop("warnings"):
        logger.warning("%s", warning)
    return told


def main() -> None:
    """Verify the folder that standard input names."""
    warnings: list[str] = []
    with quiet_libraries(), warnings_to(warnings.append):
        told = answer(json.load(sys.stdin))
    json.dump({**told, "warnings": warnings}, sys.stdout)


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Verify the folder that ``asked`` names; return the fields of ``Verified``, or the problem."""
    try:
        return vars(_verified(asked))
    except VerificationError as error:
        return {"problem": str(error)}


def _verified(asked: Mapping[str, Any]) -> Verified:
    folder, sweep = Path(asked["folder"]), Sweep.from_json(asked["sweep"])
    model = sweep.configs[sweep.cells[0].id]["model"]
    measured_in = DTYPES[model["dtype"]]
    model["dtype"] = asked["dtype"]
    sessions = Sessions(sweep, Store.existing(asked["store"]))
    session = sessions.open(sweep.cells[0])
    weights = CellWeights(session, sweep.cells[0], _Quiet())
    tensors = ExportedTensors(session.loaded, weights, format_named(asked["format"]), DTYPES[asked["dtype"]])
    linears = _check_codes(folder, tensors, weights)
    inputs = list(_inputs(session))
    expected = _measured(session, weights, inputs, measured_in, set(asked["kept"]))
    task, references, config = session.task, session.references, session.loaded.config
    packed = tuple(tensors.packed)
    # Frees the original, whose modules refer to each other, before the other is loaded.
    del session, sessions, tensors, weights
    gc.collect()
    loaded = _reloaded(folder, config, packed)
    outputs = _check_outputs(expected, (_outputs(loaded, one) for one in inputs))
    metrics = {}
    if asked["metrics"] is not None:
        task.check([], references)
        scored = task.score(task.predict(loaded, lambda done, total: None), references)
        metrics = {name: result.value for name, result in scored.items()}
        _check_metrics(asked["metrics"], metrics)
    return Verified(linears, outputs, metrics)


class _Quiet:
    def begin(self, title: str, cell: str = "") -> None: ...

    def stage(self, name: str, done: int, total: int) -> None: ...

    def finish(self, title: str, outcome: str, cell: str = "") -> None: ...

    def say(self, text: str) -> None: ...


def _check_codes(folder: Path, tensors: ExportedTensors, weights: CellWeights) -> int:
    """Compare the codes in the file with those in the store, linear by linear; return how many there are."""
    by_module = grouped(_held(folder).items(), lambda held: held[0].rpartition(".")[0])
    for name in tensors.packed:
        prefix = tensors.prefixes[name]
        stored = {full.removeprefix(f"{prefix}."): _read(path, full) for full, path in by_module.get(prefix, ())}
        if not tensors.format.holds(stored, weights[name]):
            raise VerificationError(f"{name}: codes, zeros or scales in the file are not those that were measured")
    return len(tensors.packed)


def _held(folder: Path) -> dict[str, Path]:
    """Return the file of every tensor in ``folder``."""
    index = folder / INDEX
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    with safe_open(folder / SINGLE, "pt") as file:
        return dict.fromkeys(file.keys(), folder / SINGLE)


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _inputs(session: Session) -> Iterator[dict[str, Any]]:
    """Yield prepared inputs of the task: a few samples of its calibration split."""
    calibration = {"samples": SAMPLES, "seed": 0, "batch_size": BATCH_SIZE}
    yield from islice(session.task.calibration_batches(session.loaded, calibration), BATCHES)


def _measured(
    session: Session,
    weights: CellWeights,
    inputs: Iterable[Mapping[str, Any]],
    dtype: torch.dtype,
    kept: Collection[str] = (),
) -> list[list[Tensor]]:
    """Return the outputs of the original with the weights in place that were measured, in ``dtype`` but for ``kept``."""
    if session.loaded.config["dtype"] != str(dtype).removeprefix("torch."):
        # Loaded in the folder's dtype, so that it computes in that; its weights are those that ``dtype`` holds.
        with torch.no_grad():
            for name, parameter in session.loaded.model.named_parameters():
                if name not in kept:
                    parameter.copy_(parameter.to(dtype))
    with _placed(session.loaded, _rounded(weights, dtype, kept), weights.dense):
        return [_outputs(session.loaded, one) for one in inputs]


@contextmanager
def _placed(loaded: LoadedModel, weights: Mapping[str, Tensor], dense: Mapping[str, Tensor]) -> Iterator[None]:
    """Run with the weights in place, over those of the original, which are not kept unless they lie elsewhere anyway."""
    if any(offloading_hooks(module) for module in loaded.model.modules()):
        with loaded.weights_replaced(weights, dense):
            yield
        return
    with torch.no_grad():
        for name, value in weights.items():
            sliced = experts.parse(name) is not None
            own = experts.view(loaded.model, name) if sliced else loaded.model.get_parameter(f"{name}.weight")
            own.copy_(value)
        for name, value in dense.items():
            loaded.model.get_parameter(name).copy_(value)
    yield


def _rounded(quantized: CellWeights, dtype: torch.dtype, kept: Collection[str]) -> Computed[Tensor]:
    """Return dequantized weights as a cell puts them into a model of ``dtype``, whichever dtype the model at hand has."""

    def weight(name: str) -> Tensor:
        own = quantized[name].dequantize()
        return own if f"{name}.weight" in kept else own.to(dtype)

    return Computed(quantized, weight)


@torch.no_grad()
def _outputs(loaded: LoadedModel, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Return every tensor in the output of a forward pass, logits among them, on the CPU."""
    return [tensor.cpu() for tensor in tensors_in(loaded.model(**loaded.to_device(inputs)))]


def _reloaded(folder: Path, config: Mapping[str, Any], packed: tuple[str, ...]) -> LoadedModel:
    """Load ``folder`` as anyone would; VerificationError if transformers misses or drops a tensor."""
    device = choose_device(config["device"])
    placing = {} if device.type == "cpu" else {"device_map": {"": device}}
    try:
        model, info = find_class(config).from_pretrained(folder, output_loading_info=True, **placing)
    except (ImportError, ValueError, RuntimeError, AttributeError) as error:
        otherwise = "; choose --format dequantized" if packed else ""
        raise VerificationError(f"transformers does not load it: {type(error).__name__}: {error}{otherwise}") from error
    wrong = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if wrong:
        shown = "; ".join(f"{name}: {', '.join(keys[:SHOWN])}" for name, keys in wrong.items())
        raise VerificationError(f"transformers does not load all of it ({shown})")
    if packed:
        decompress(model)
    return prepared(model, load_processor(folder, {}), config)


def _check_outputs(expected: Iterable[list[Tensor]], found: Iterable[list[Tensor]]) -> int:
    """Compare outputs bit for bit; return how many values are equal. NaN, as at padding, must be NaN, and does not count."""
    count = 0
    for own, other in zip(expected, found, strict=True):
        for one, two in zip(own, other, strict=True):
            if one.shape != two.shape or not torch.equal(one.isnan(), two.isnan()):
                raise VerificationError("its outputs are not those of the measured model: they differ in shape or NaN")
            numbers = ~one.isnan()
            if not torch.equal(one[numbers], two[numbers]):
                apart = (one[numbers].double() - two[numbers].double()).abs().max()
                raise VerificationError(f"its outputs are not those of the measured model: they differ by {apart}")
            count += int(numbers.sum())
    if not count:
        raise VerificationError("no output of the measured model is a number, so nothing can be compared")
    return count


def _check_metrics(expected: Mapping[str, float], found: Mapping[str, float]) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise VerificationError(
                f"its {name} is {found.get(name)}, and the record says {value}; another processor or release than the "
                "record's may answer otherwise"
            )


if __name__ == "__main__":
    main()
