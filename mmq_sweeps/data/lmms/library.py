"""Import lmms-eval, make its task objects, and undo what it changes for the whole process.

Importing it lets Pillow decode truncated files as if they were whole, ignores every warning, logs to standard error and sets
environment variables; its tasks print. None of that may reach other readers, or the output of a command.
"""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ImageFile

from mmq_sweeps.data.lmms import installed
from mmq_sweeps.data.lmms.catalog import TaskYaml, find_task
from mmq_sweeps.data.lmms.sources import BUILDERS, DataPlace, cache_folder, data_place, refuse_unfit

logger = logging.getLogger(__name__)
# What its modules have set in the environment; they find it there whenever they run.
_ENVIRONMENT: dict[str, str] = {}
_FORWARDED: set[tuple[bool, bool]] = set()
# As its command draws few-shot examples.
_FEWSHOT_SEED = 1234


@lru_cache(maxsize=4)
def load_task(name: str, include_path: str | None, model: str | None, copy: str | None) -> Any:
    """Return lmms-eval's object of a task, with its data set read from this machine.

    ``model`` is the lmms-eval model whose prompts apply, None for the defaults; ``copy`` a folder in place of the task's data
    set. Raises ValueError if the task, its data or a package that its code imports is missing.
    """
    task = find_task(name, include_path)
    refuse_unfit(task)
    place = data_place(task, copy)
    installed.warn_if_untested()
    with contained(), _offline():
        try:
            return _made(task, model, place)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"lmms_task={name}: its code imports {error.name}, which is not installed; install the package that has it, "
                f"in most cases with: pip install {str(error.name).partition('.')[0]}"
            ) from error
        except Exception as error:
            raise ValueError(f"lmms_task={name}: cannot be made: {type(error).__name__}: {error}") from error


@contextmanager
def contained() -> Iterator[None]:
    """Run code of lmms-eval and undo what it does to the process."""
    environment, truncated = dict(os.environ), ImageFile.LOAD_TRUNCATED_IMAGES
    drawn, drawn_by_numpy, path = random.getstate(), np.random.get_state(), list(sys.path)
    printed = io.StringIO()
    os.environ.update(_ENVIRONMENT)
    try:
        with warnings.catch_warnings(), redirect_stdout(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        _ENVIRONMENT.update({key: value for key, value in os.environ.items() if environment.get(key) != value})
        os.environ.clear()
        os.environ.update(environment)
        ImageFile.LOAD_TRUNCATED_IMAGES = truncated
        random.setstate(drawn)
        np.random.set_state(drawn_by_numpy)
        sys.path[:] = path
        _forward_log()
        if told := printed.getvalue().strip():
            logger.debug("lmms-eval printed: %s", told)


@contextmanager
def truncated_allowed() -> Iterator[None]:
    """Decode images as lmms-eval does, which fills the missing rest of truncated files with grey."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _made(task: TaskYaml, model: str | None, place: DataPlace) -> Any:
    import datasets
    from lmms_eval.tasks import ConfigurableTask  # With all metrics and filters registered.
    from lmms_eval.utils import load_yaml_config

    _forward_log()

    class Once(ConfigurableTask):  # type: ignore[misc]
        """Its task, which would try five times to read a data set that is not there."""

        download = ConfigurableTask.download.__wrapped__

    config = load_yaml_config(str(task.files[0]), mode="full")
    config["dataset_path"], config["dataset_name"] = place.path, place.subset
    kwargs = {**(config.get("dataset_kwargs") or {})}
    kwargs.pop("token", None)  # Nothing is downloaded, and without a login it is an error.
    config["dataset_kwargs"] = kwargs
    if place.path not in BUILDERS and not os.path.isdir(place.path):
        os.environ["LMMS_EVAL_DATASETS_CACHE"] = str(cache_folder())
    bars, told = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        made = Once(config=config, model_name=model)
    finally:
        datasets.logging.set_verbosity(told)
        if not bars:
            datasets.enable_progress_bars()
    if made.config.num_fewshot is None:
        made.set_config("num_fewshot", 0)
    made.set_fewshot_seed(_FEWSHOT_SEED)
    return made


@contextmanager
def _offline() -> Iterator[None]:
    """Keep ``datasets`` from asking the Hub for newer data than those that the cell's id names."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _forward_log() -> None:
    """Send what lmms-eval logs with loguru as warnings and errors to ``logging``, in place of standard error."""
    # Its models' module, which few tasks import, sets other handlers.
    known = "loguru" in sys.modules, f"{installed.PACKAGE}.models" in sys.modules
    if known[0] and known not in _FORWARDED:
        sys.modules["loguru"].logger.configure(handlers=[{"sink": _log, "level": "WARNING", "format": "{message}"}])
        _FORWARDED.add(known)


def _log(message: Any) -> None:
    logging.getLogger(installed.PACKAGE).log(message.record["level"].no, "%s", message.record["message"])
