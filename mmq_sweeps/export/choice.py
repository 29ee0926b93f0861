"""Choose the format of an exported folder, or say why it cannot be the one that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.export.formats.base import CheckpointFormat, LinearSpec
from mmq_sweeps.export.formats.exact import name_of
from mmq_sweeps.export.formats.names import format_named

PREFERRED, PLAIN = "compressed-tensors", "dequantized"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Packages that reload each format, with the first release that reads it as it is written here.
READERS = {PREFERRED: ("compressed-tensors", "0.18"), "gptq": ("gptqmodel", "7"), "awq": ("gptqmodel", "7")}


@dataclass(frozen=True)
class Choice:
    """The format and dtype of an export; ``why`` says why the format is not the preferred one, empty if it is."""

    format: CheckpointFormat
    dtype: torch.dtype
    why: str = ""

    @property
    def dtype_name(self) -> str:
        """The dtype as configurations spell it."""
        return name_of(self.dtype)


@dataclass(frozen=True)
class Asked:
    """The format and dtype that the command was asked for; None leaves it to the cell."""

    format: str | None = None
    dtype: str | None = None


def choose(
    asked: Asked, linears: Mapping[str, LinearSpec], dense: tuple[str, ...], main_input: str, own_dtype: str
) -> Choice:
    """Return the format for ``linears`` of a model in ``own_dtype``; ConfigError if it cannot hold them exactly."""
    dtype = DTYPES[asked.dtype or own_dtype]
    format = format_named(asked.format or PREFERRED)
    if format.name == PLAIN:
        return Choice(format, dtype)
    problem = (
        _of_dtype(asked, own_dtype)
        or _of_nothing(linears, format.name)
        or format.problem(linears, dtype, dense, main_input)
    )
    if problem is None:
        _check_reader(format.name)
        return Choice(format, dtype)
    if asked.format is not None:
        raise ConfigError(problem)
    return Choice(format_named(PLAIN), dtype, problem)


def _of_dtype(asked: Asked, own_dtype: str) -> str | None:
    if asked.dtype in (None, own_dtype):
        return None
    return (
        f"--dtype {asked.dtype}: loaders multiply codes and scales in the dtype of the file, and the cell was measured in "
        f"{own_dtype}; leave --dtype out, choose --format {PLAIN}, or measure the cell with model.dtype={asked.dtype}"
    )


def _of_nothing(linears: Mapping[str, LinearSpec], name: str) -> str | None:
    if linears:
        return None
    return (
        f"--format {name}: the cell quantizes embeddings or experts only, which are loaded dense; use --format {PLAIN}"
    )


def _check_reader(format: str) -> None:
    package, least = READERS[format]
    try:
        found = version(package)
    except PackageNotFoundError:
        found = "absent"
    if found == "absent" or Version(found) < Version(least):
        extra = "'mmq-sweeps[export]'" if format == PREFERRED else f"'{package}>={least}'"
        raise ConfigError(
            f"--format {format}: is reloaded to verify it, which needs {package} {least} or later, and here it is {found}; "
            f"install it with pip install {extra}, or choose --format {PLAIN}"
        )
