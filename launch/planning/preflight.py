"""Check all cells in a child process with torch before the first job.

Planning and submitting import neither torch nor transformers, so that they are fast and work on a login node. The
checks need no weights and no accelerator: modules are built without weights (``mmq_sweeps.models.shapes``).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell, digest

SKIP = "hydra.launcher.check=false goes without this check"


def check(sweep: Sweep) -> list[str]:
    """Check every cell in a child process and return reasons for cells that could not be checked.

    Raises a ``ConfigError`` listing all problems.
    """
    done = subprocess.run(
        [sys.executable, "-m", "launch.planning.preflight"],
        input=json.dumps(sweep.to_json()), capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        found = json.loads(done.stdout)
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ConfigError(f"checking the cells ended with status {done.returncode}: {last}; {SKIP}") from error
    if found["problems"]:
        raise ConfigError(found["problems"])
    unchecked: list[str] = found["unchecked"]
    return unchecked


def look(sweep: Sweep, cache: Path) -> dict[str, list[str]]:
    """Return ``problems`` of the sweep's cells and ``unchecked``, with the reasons; tasks cache their checks in ``cache``."""
    unchecked: list[str] = []
    problems = [
        *_of_checkpoints(sweep), *_of_methods(sweep, unchecked), *_of_tasks(sweep, cache), *_of_tracker(sweep),
    ]  # fmt: skip
    return {"problems": list(dict.fromkeys(problems)), "unchecked": unchecked}


def _of_checkpoints(sweep: Sweep) -> Iterator[str]:
    """Yield a problem for each checkpoint that is quantized and cannot be measured so; only local folders are checked."""
    from mmq_sweeps.identity.checkpoint import checkpoint_path, quantization_method, quantized_already
    from mmq_sweeps.models.quantized.measuring import fit_checkpoint, problem
    from mmq_sweeps.models.shapes import find_shape

    models = {digest(cell.model): sweep.configs[cell.id]["model"] for cell in sweep.cells}
    for config in models.values():
        folder = checkpoint_path(config["checkpoint"])
        if not isinstance(folder, Path) or not (folder / "config.json").is_file():
            continue
        if refused := quantized_already(config["checkpoint"], find_shape(config).values, folder):
            yield refused
        elif quantization_method(folder) is not None:
            try:
                found = problem(config, fit_checkpoint(config))
            except (OSError, ValueError) as error:
                found = str(error)
            if found is not None:
                yield found


def _of_methods(sweep: Sweep, unchecked: list[str]) -> Iterator[str]:
    """Yield problems: methods that cannot be built, selections that match no linears, formats that do not fit them."""
    from mmq_sweeps.models.shapes import build_on_meta, find_shape
    from mmq_sweeps.quantization.targets import find_parts, tied_problems

    models: dict[str, Any] = {}
    for config, cell in _distinct(sweep):
        if (key := digest(cell.model)) not in models:
            models[key] = None
            try:
                shape = find_shape(config)
            except ValueError as error:
                unchecked.append(str(error))
                continue
            try:
                models[key] = find_parts(build_on_meta(config, shape), config)
            except ValueError as error:
                yield str(error)
        if models[key] is not None:
            yield from _of_one(cell, models[key])
    # Of whole cells: each part alone may be quantized as in another cell.
    for cell in sweep.cells:
        if parts := models.get(digest(cell.model)):
            yield from tied_problems(parts, cell.parts, cell.names["model"])


def _of_one(cell: Cell, parts: Mapping[str, Any]) -> Iterator[str]:
    from mmq_sweeps.config.instantiate import build
    from mmq_sweeps.quantization.requests import calibration_problems, problems, requests

    for part, selection in cell.parts.items():
        try:
            found = requests(replace(cell, parts={part: selection}), build, parts)
            yield from calibration_problems(found) or problems(found)
        except ValueError as error:
            yield str(error)


def _distinct(sweep: Sweep) -> Iterator[tuple[dict[str, Any], Cell]]:
    """Yield cells that together quantize every part in every way of the sweep, with their models' configurations."""
    seen: set[str] = set()
    for cell in sweep.cells:
        keys = {part: cell.part_key(part) for part in cell.parts}
        if new := {part: selection for part, selection in cell.parts.items() if keys[part] not in seen}:
            seen |= {keys[part] for part in new}
            yield sweep.configs[cell.id]["model"], replace(cell, parts=new)


def _of_tasks(sweep: Sweep, cache: Path) -> Iterator[str]:
    """Yield problems: tasks that cannot be built, lack data, or evaluate on a calibration sample."""
    from mmq_sweeps.config.instantiate import build

    tasks: dict[str, tuple[dict[str, Any], dict[str, dict[str, Any]]]] = {}
    for cell in sweep.cells:
        _, calibrations = tasks.setdefault(digest(cell.task), (sweep.configs[cell.id]["task"], {}))
        if cell.calibration:
            calibrations[digest(cell.calibration)] = cell.calibration
    for config, calibrations in tasks.values():
        try:
            build("task", config).check(list(calibrations.values()), cache)
        except OSError as error:
            yield f"task.data: cannot read {error.filename}: {error.strerror}"
        except (ValueError, RuntimeError) as error:
            yield str(error)


def _of_tracker(sweep: Sweep) -> Iterator[str]:
    from mmq_sweeps.config.instantiate import build

    try:
        build("tracker", sweep.settings["tracker"])
    except ValueError as error:
        yield str(error)


def main() -> None:
    """Run the child process: read a sweep from standard input, write the findings to standard output."""
    from mmq_sweeps.execution.executor import quiet_libraries

    sweep = Sweep.from_json(json.load(sys.stdin))
    with quiet_libraries(), TemporaryDirectory() as cache:
        found = look(sweep, Path(cache))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
