"""Import lmms-eval, make its task objects, and undo its changes to the process.

Importing it lets Pillow decode truncated files as if they were whole, ignores every warning, logs to standard error and sets
environment variables; its tasks print. None of that may reach other readers, or the output of a command.
"""

from __future__ import annotations

import io
import logging
import os
import random
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import ImageFile

from mmq_sweeps.data.lmms import installed
from mmq_sweeps.data.lmms.catalog import TaskYaml, find_task
from mmq_sweeps.data.lmms.network import modules_of
from mmq_sweeps.data.lmms.sources import BUILDERS, DataPlace, cache_folder, data_place, refuse_unfit

logger = logging.getLogger(__name__)
# Variables that its modules have set in the environment; they find them there whenever they run.
_ENVIRONMENT: dict[str, str] = {}
# All threads share the changes: nothing may be undone in another order than it was done.
_ALONE = threading.RLock()
_FORWARDED: set[tuple[bool, bool]] = set()
# The defaults of its command's --seed: for random, numpy and few-shot examples.
_SEED, _NUMPY_SEED, _FEWSHOT_SEED = 0, 1234, 1234
# How often a line of its code may warn; some do so for every document.
SHOWN = 3
_TOLD: Counter[tuple[str, int]] = Counter()
_UNTOLD: list[bool] = []
# Files of tasks' code.
_BESIDE: set[str] = set()


@lru_cache(maxsize=4)
def load_task(name: str, include_path: str | None, model: str | None, copy: str | None, contents: str) -> Any:  # noqa: ARG001
    """Return lmms-eval's object of a task, with its data set read from this machine.

    ``model`` is the lmms-eval model whose prompts apply, None for the defaults; ``copy`` a folder in place of the task's data
    set; ``contents`` a digest of all that it is made from, so that a process which outlives a change reads it anew. Raises
    ValueError if the task, its data or a package that its code imports is missing.
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
    """Run code of lmms-eval and undo its changes to the process; in one thread at a time.

    Random numbers start from its seeds, so that the draws of the code do not depend on earlier runs.
    """
    with _ALONE:
        yield from _contained()


def _contained() -> Iterator[None]:
    environment, truncated = dict(os.environ), ImageFile.LOAD_TRUNCATED_IMAGES
    drawn, drawn_by_numpy, path = random.getstate(), np.random.get_state(), list(sys.path)
    printed = io.StringIO()
    os.environ.update(_ENVIRONMENT)
    random.seed(_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        with warnings.catch_warnings(), redirect_stdout(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        _ENVIRONMENT.update({key: value for key, value in os.environ.items() if environment.get(key) != value})
        for key in [key for key, value in os.environ.items() if environment.get(key) != value]:
            del os.environ[key]
        os.environ.update({key: value for key, value in environment.items() if key not in os.environ})
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
    with _ALONE:
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

    _forget_beside(task)
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
    if made.config.num_fewshot and not hasattr(made, "sampler"):
        raise ValueError(
            f"num_fewshot={made.config.num_fewshot} without a fewshot_config, which lmms-eval takes its sampler from; add "
            "fewshot_config: {sampler: default}"
        )
    return made


def _forget_beside(task: TaskYaml) -> None:
    """Let Python import anew the modules beside a task's code, which may have changed or be another task's."""
    _BESIDE.update(
        str(path) for function in task.functions() if function.file is not None for path in modules_of(function.file)
    )
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in _BESIDE and name.partition(".")[0] != installed.PACKAGE:
            del sys.modules[name]


def start_fewshot(task: Any) -> None:
    """Let few-shot examples be drawn as in a new process of lmms-eval, from its seed."""
    task.set_fewshot_seed(_FEWSHOT_SEED)


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
    """Send lmms-eval's loguru messages as warnings and errors to ``logging``, in place of standard error."""
    # Its models' module, which few tasks import, sets other handlers.
    known = "loguru" in sys.modules, f"{installed.PACKAGE}.models" in sys.modules
    if known[0] and known not in _FORWARDED:
        sys.modules["loguru"].logger.configure(handlers=[{"sink": _log, "level": "WARNING", "format": "{message}"}])
        _FORWARDED.add(known)


def _log(message: Any) -> None:
    """Pass a message on; after ``SHOWN`` of a line of code, its rest are for debugging."""
    if _UNTOLD:
        return
    record = message.record
    place = str(record["name"]), int(record["line"])
    _TOLD[place] += 1
    level = record["level"].no if _TOLD[place] <= SHOWN else logging.DEBUG
    more = " (more from this line of its code are not shown)" if _TOLD[place] == SHOWN else ""
    logger.log(level, "lmms-eval: %s%s", record["message"], more)


@contextmanager
def untold() -> Iterator[None]:
    """Drop lmms-eval's log, such as about answers that no model gave; to be called ``contained``."""
    _UNTOLD.append(True)
    try:
        yield
    finally:
        _UNTOLD.pop()
