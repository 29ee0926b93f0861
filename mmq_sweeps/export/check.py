"""``python -m mmq_sweeps.export check DIR``: verify a checkpoint's folder, whoever wrote it, by loading it with transformers.

A line a check. Exit status: 0 all is well, 1 a check failed, 2 bad input.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmq_sweeps.errors import Parser, some_of
from mmq_sweeps.models.quantized.configuration import read_values

if TYPE_CHECKING:
    from mmq_sweeps.models.quantized.names import FittedCheckpoint

FAILED = 1
# As ``mmq_sweeps/export/export.py`` names it.
MANIFEST = "mmq_sweeps.json"


class CheckError(Exception):
    """A fault of a folder, in a sentence."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = Parser(prog="python -m mmq_sweeps.export check", description="Verify a checkpoint's folder.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a checkpoint's folder, ours or another tool's")
    folder: Path = parser.parse_args(arguments).folder
    try:
        values = read_values(folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    raise SystemExit(0 if check(folder, values) else FAILED)


def check(folder: Path, values: Mapping[str, Any]) -> bool:
    """Run every check of ``folder``, whose config.json holds ``values``, and print a line for each; True if all passed.

    A check that needs the result of one that failed is left out.
    """
    passed = _told("checksums", lambda: _checksums(folder))
    # Slow imports, which bad input need not wait for.
    from mmq_sweeps.execution.executor import quiet_libraries

    found: list[FittedCheckpoint] = []
    with quiet_libraries():
        readable = _told("tensors", lambda: _tensors(folder, values, found))
        if not readable:
            return False
        fitted = found[0]
        passed &= _told("names", lambda: _names(fitted))
        passed &= _told("loading", lambda: _loading(folder, fitted))
    return passed


def _told(name: str, run: Callable[[], str]) -> bool:
    try:
        said, passed = run(), True
    except CheckError as error:
        said, passed = str(error), False
    sys.stdout.write(f"{'ok' if passed else 'failed':<7} {name:<10} {said}\n")
    sys.stdout.flush()
    return passed


def _checksums(folder: Path) -> str:
    """Compare every file with the SHA-256 in the folder's manifest."""
    from mmq_sweeps.export.writer import sha256

    if not (folder / MANIFEST).is_file():
        return f"none are known: there is no {MANIFEST}, so a changed value would not be seen"
    try:
        listed: dict[str, str] = json.loads((folder / MANIFEST).read_text())["sha256"]
        names = sorted(listed)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckError(f"{MANIFEST} has none that can be read: {error}") from error
    absent = [name for name in names if not (folder / name).is_file()]
    changed = [name for name in names if name not in absent and sha256(folder / name) != listed[name]]
    more = [path.name for path in sorted(folder.glob("*.safetensors")) if path.name not in listed]
    wrong = [
        f"{', '.join(own)} {what}"
        for own, what in (
            (absent, "is listed and not there"),
            (changed, f"is not as {MANIFEST} says"),
            (more, "is not listed"),
        )
        if own
    ]
    if wrong:
        raise CheckError("; ".join(wrong))
    return f"{len(names)} files are as {MANIFEST} says"


def _tensors(folder: Path, values: Mapping[str, Any], found: list[FittedCheckpoint]) -> str:
    """Read the headers of the weights and match them with the modules of the class that config.json names."""
    from mmq_sweeps.models.quantized.checkpoint import read_checkpoint
    from mmq_sweeps.models.quantized.measuring import fit_class

    named = (values.get("architectures") or [None])[0]
    if named is None:
        raise CheckError("config.json names no class in architectures")
    try:
        checkpoint = read_checkpoint(folder)
        fitted = fit_class(checkpoint, {"class_name": named})
    except (OSError, ValueError) as error:
        raise CheckError(str(error)) from error
    found.append(fitted)
    layouts = Counter(linear.stored_as for linear in fitted.linears.values())
    told = ", ".join(f"{count} {layout}" for layout, count in sorted(layouts.items())) or "all at full precision"
    return f"{len(checkpoint.linears)} quantized linears ({told}), {checkpoint.size:,} bytes of weights"


def _names(fitted: FittedCheckpoint) -> str:
    """Compare the names in the configuration, the files and the model."""
    from mmq_sweeps.models.quantized.loaders import faults

    if wrong := list(faults(fitted)):
        raise CheckError("; ".join(wrong))
    configuration = fitted.checkpoint.configuration
    if configuration is None:
        return f"every weight of {type(fitted.model).__name__} is there, and nothing else"
    targets = sum(len(scheme.targets) for scheme in configuration.schemes)
    by = f"{targets} targets name" if targets else f"{configuration.method} names"
    return f"{by} the quantized linears of {type(fitted.model).__name__} and nothing else; no weight is missing"


def _loading(folder: Path, fitted: FittedCheckpoint) -> str:
    """Load the weights as anyone would, and look at every value."""
    import torch
    import transformers

    from mmq_sweeps.models.loading import decompress, silent_bars
    from mmq_sweeps.models.quantized.loaders import lacking_packages, of_transformers
    from mmq_sweeps.models.quantized.measuring import pip

    if packages := lacking_packages(fitted):
        raise CheckError(f"takes packages that are not installed: {pip(packages)}")
    try:
        with silent_bars():
            model, info = type(fitted.model).from_pretrained(
                folder, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, local_files_only=True
            )
            wrong = [f"{name}: {_some(keys)}" for name, keys in info.items() if keys]
            if wrong:
                raise CheckError(f"transformers does not load all of it ({'; '.join(wrong)})")
            decompress(model)
    except (ImportError, ValueError, RuntimeError, AttributeError, OSError, MemoryError) as error:
        verdict = of_transformers(fitted)
        why = "; ".join(verdict.reasons) if verdict.loads is False else " ".join(str(error).split())
        raise CheckError(f"transformers does not load it: {type(error).__name__}: {why}") from error
    values = dict(model.named_parameters()) | dict(model.named_buffers())
    if odd := [name for name, value in values.items() if value.is_floating_point() and not torch.isfinite(value).all()]:
        raise CheckError(f"not every value is a finite number ({_some(odd)})")
    count = sum(math.prod(value.shape) for value in values.values())
    return f"transformers {transformers.__version__} loads every tensor; all {count:,} values are finite"


def _some(names: Any) -> str:
    shown = sorted(str(name[0]) if isinstance(name, tuple) else str(name) for name in names)
    return some_of(shown)


if __name__ == "__main__":
    main()
