"""Choose the format of an exported folder, or say why it cannot be the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.export.formats.base import CheckpointFormat, LinearSpec
from mmq_sweeps.export.formats.dequantized import Dequantized

FORMATS: dict[str, CheckpointFormat] = {one.name: one for one in (Dequantized(),)}
PREFERRED, PLAIN = "compressed-tensors", "dequantized"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Choice:
    """The format and dtype of an export; ``why`` says why the format is not the preferred one, empty if it is."""

    format: CheckpointFormat
    dtype: torch.dtype
    why: str = ""


@dataclass(frozen=True)
class Asked:
    """What the command was asked for; None leaves it to the cell."""

    format: str | None = None
    dtype: str | None = None


def choose(
    asked: Asked, linears: Mapping[str, LinearSpec], dense: tuple[str, ...], main_input: str, own_dtype: str
) -> Choice:
    """Return the format for ``linears`` of a model in ``own_dtype``; ConfigError if it cannot hold them exactly."""
    dtype = DTYPES[asked.dtype or own_dtype]
    name = asked.format or (PREFERRED if PREFERRED in FORMATS else PLAIN)
    problem = _of_dtype(asked, own_dtype) or FORMATS[name].problem(linears, dtype, dense, main_input)
    if problem is None or name == PLAIN:
        return Choice(FORMATS[name], dtype)
    if asked.format is not None:
        raise ConfigError(f"--format {name}: {problem}")
    return Choice(FORMATS[PLAIN], dtype, problem)


def _of_dtype(asked: Asked, own_dtype: str) -> str | None:
    if asked.dtype in (None, own_dtype):
        return None
    return (
        f"--dtype {asked.dtype}: loaders multiply codes and scales in the dtype of the file, and the cell was measured in "
        f"{own_dtype}; leave --dtype out, choose --format {PLAIN}, or measure the cell with model.dtype={asked.dtype}"
    )
