"""Ask the command without starting it: forked from this process, which has imported torch, or called within it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from launch.start import HERE, start
from mmq_sweeps.config.hydra_errors import explain
from mmq_sweeps.config.overrides import as_written, kept_apart
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, StoreError
from tests.configurations import composed

Told = tuple[int, str, str]


def answered(folder: Path, *arguments: str, module: str = "mmq_sweeps") -> Told:
    """Return exit status, standard output and standard error of ``python -m module ARGUMENT ...`` in ``folder``."""
    importlib.import_module("tests.preloaded")  # Here, since each fork would import it again.
    paths = [folder / "standard-output", folder / "standard-error"]
    child = os.fork()
    if not child:
        status = 99
        try:
            for number, path in enumerate(paths, start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            os.chdir(folder)
            sys.argv = [module, *arguments]
            importlib.import_module(f"{module}.__main__").main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, *(path.read_text() for path in paths)


def refused(*overrides: str) -> list[str]:
    """Return the lines that ``python -m mmq_sweeps OVERRIDE ...`` writes after ``error: ``, in a third of its time."""
    given = kept_apart(overrides)
    try:
        start(plan([composed(*given)]), HERE)
    except (ConfigError, StoreError, HydraException, OmegaConfBaseException) as error:
        return explain(error, as_written(given))
    raise AssertionError(f"{overrides} ran")
