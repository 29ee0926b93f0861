"""Write a finished cell as a folder that ``from_pretrained`` takes, verified, or nothing at all."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mmq_sweeps.config.sweep import changed_files
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.export import card
from mmq_sweeps.export.checkpoint_files import copy_files, write_config
from mmq_sweeps.export.choice import PLAIN, Asked, Choice, choose
from mmq_sweeps.export.folder import check_target, empty, folder_at
from mmq_sweeps.export.formats.names import format_named
from mmq_sweeps.export.source import Source
from mmq_sweeps.export.tensors import ExportedTensors, InexactError
from mmq_sweeps.export.verify import Verified, verify
from mmq_sweeps.export.weights import CellWeights
from mmq_sweeps.export.writer import SHARD_BYTES, WeightFiles, sha256, write_bytes, write_json
from mmq_sweeps.memory import format_bytes
from mmq_sweeps.models.loading import checkpoint_folder
from mmq_sweeps.reporting.progress import Reporter
from mmq_sweeps.store.kinds import ArtifactKind

logger = logging.getLogger(__name__)
MANIFEST = "mmq_sweeps.json"
# The most that files beside the weights take, to tell whether a disk has room.
BESIDE = 100 * 10**6


@dataclass(frozen=True)
class Order:
    """An export to make: ``out`` is the folder, ``command`` the line that asked for it, for the card."""

    out: Path
    asked: Asked = field(default_factory=Asked)
    evaluate: bool = False
    command: str = ""
    shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True)
class Exported:
    """A finished export: its format, why it is not the preferred one, and the verification."""

    folder: Path
    choice: Choice
    bytes: int
    verified: Verified


def export(source: Source, order: Order, progress: Reporter) -> Exported:
    """Export the cell of ``source``; ConfigError, before anything is written, if it cannot be as ``order`` says.

    Raises ``VerificationError`` if what was written is not what was measured; then the folder does not come to be.
    """
    check_target(order.out)
    with quiet_libraries():
        session = Sessions(source.sweep, source.store).open(source.cell)
        weights = CellWeights(session, source.cell, progress)
        with source.store.locks.pinned((ArtifactKind.QUANTIZED, one.key) for one in weights.requests):
            tensors = _chosen(source, session, weights, order)
            with folder_at(order.out) as folder:
                try:
                    size = _write(source, order, tensors, folder, progress)
                except InexactError as error:
                    tensors = _instead(order, tensors, error)
                    empty(folder)
                    size = _write(source, order, tensors, folder, progress)
                kept, choice = tensors.kept_in_float32, tensors.choice
                del session, weights, tensors  # Frees the model before the other process loads it.
                measured = {name: metric["value"] for name, metric in source.record.metrics.items()}
                verified = verify(
                    folder, source.sweep, source.store, choice.format.name,
                    choice.dtype_name, kept, measured if order.evaluate else None,
                )  # fmt: skip
    return Exported(order.out, choice, size, verified)


def _chosen(source: Source, session: Session, weights: CellWeights, order: Order) -> ExportedTensors:
    loaded = session.loaded
    main_input, own_dtype = loaded.model.main_input_name, loaded.config["dtype"]

    def chosen() -> Choice:
        return choose(order.asked, weights.linears, weights.dense_linears, main_input, own_dtype)

    chosen()  # Before evicted units are computed again, which takes long.
    if missing := weights.missing:
        if changed := changed_files(source.sweep, [source.cell]):
            raise ConfigError(changed)
        weights.quantize_again(missing)
    tensors = ExportedTensors(loaded, weights, chosen())
    if (name := tensors.inexact()) is not None:
        raise ConfigError(
            f"--dtype {order.asked.dtype}: {name} is not exact in it, as it was measured in {own_dtype}; leave --dtype out, or "
            f"measure the cell with model.dtype={order.asked.dtype}"
        )
    if tensors.choice.why:
        logger.info("exported as %s: %s", tensors.format.name, tensors.choice.why)
    return tensors


def _instead(order: Order, tensors: ExportedTensors, error: InexactError) -> ExportedTensors:
    """Return the tensors dequantized in place of a format that turned out not to be exact, unless that was asked for."""
    if order.asked.format is not None:
        raise ConfigError(f"--format {tensors.format.name}: {error}; use --format {PLAIN}") from error
    logger.info("exported as %s: %s", PLAIN, error)
    return ExportedTensors(tensors.loaded, tensors.weights, Choice(format_named(PLAIN), tensors.dtype, str(error)))


def _write(source: Source, order: Order, tensors: ExportedTensors, folder: Path, progress: Reporter) -> int:
    """Write all files; return the bytes of those with weights."""
    files = WeightFiles(folder, tensors.specs, order.shard_bytes)
    free, needed = shutil.disk_usage(folder).free, files.bytes + BESIDE
    if free < needed:
        raise ConfigError(
            f"--out {order.out}: needs {format_bytes(needed)}, and its disk has {format_bytes(free)} free; make room, or "
            "choose a folder on another disk"
        )
    with files:
        for count, (name, tensor) in enumerate(tensors, 1):
            files.write(name, tensor)
            progress.stage("export", count, len(tensors.specs))
    checkpoint = checkpoint_folder(source.model)
    assert checkpoint is not None
    copy_files(checkpoint, folder)
    settings = tensors.format.settings(tensors.packed, tensors.dense)
    write_config(checkpoint, folder, tensors.loaded.model, tensors, settings)
    write_bytes(folder / card.NAME, card.card(source, tensors, files.bytes, order.command).encode())
    write_json(folder / MANIFEST, _manifest(source, order, tensors, files.bytes, folder))
    return files.bytes


def _manifest(source: Source, order: Order, tensors: ExportedTensors, size: int, folder: Path) -> dict[str, Any]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "schema": 1,
        "format": tensors.format.name,
        "dtype": tensors.choice.dtype_name,
        "weight_bytes": size,
        "quantized_again": tensors.weights.recomputed,
        "command": order.command,
        "commands": dict(source.commands),
        "versions": environment.versions(),
        "record": asdict(source.record),
        "sha256": {str(path.relative_to(folder)): sha256(path) for path in paths},
    }
