"""Checkpoint formats by the names that ``--format`` takes."""

from __future__ import annotations

from mmq_sweeps.errors import one_of
from mmq_sweeps.export.formats.awq import AWQ
from mmq_sweeps.export.formats.base import CheckpointFormat
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.export.formats.dequantized import Dequantized
from mmq_sweeps.export.formats.gptq import GPTQ

FORMATS: dict[str, type[CheckpointFormat]] = {
    format.name: format for format in (CompressedTensors, Dequantized, GPTQ, AWQ)
}


def format_named(name: str) -> CheckpointFormat:
    """Return the format ``name``; a ValueError that lists the choices if there is none."""
    if name not in FORMATS:
        raise ValueError(f"--format {name} is unknown. {one_of(FORMATS)}")
    return FORMATS[name]()
