"""List the files that a task's results depend on: its yaml, its code, the library's own, and its data.

Data of the Hub are read from the cache of ``datasets``; nothing is downloaded while a sweep runs, so that every cell sees the
same data.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmq_sweeps.data.lmms import installed
from mmq_sweeps.data.lmms.catalog import TaskYaml, leaves
from mmq_sweeps.data.lmms.network import read_by

# Builders of ``datasets`` that read the files they are given.
BUILDERS = ("arrow", "csv", "imagefolder", "json", "pandas", "parquet", "text", "webdataset")
OUTPUT_TYPE = "generate_until"
_MEDIA = ("video", "From_YouTube", "audio")


@dataclass(frozen=True)
class DataPlace:
    """Where a task's data set lies: local ``files``, or the name of one on the Hub with its ``subset``."""

    path: str
    subset: str | None
    files: tuple[Path, ...]


def refuse_unfit(task: TaskYaml) -> None:
    """Raise ValueError if a task cannot be run as its yaml says: another kind of output, videos, audio, several answers."""
    config, told = task.config, f"lmms_task={task.name}"
    output = config.get("output_type", OUTPUT_TYPE)
    if output != OUTPUT_TYPE:
        raise ValueError(f"{told}: its output_type is {output}; only tasks with {OUTPUT_TYPE} can be run")
    kwargs = config.get("dataset_kwargs") or {}
    named = [str(function.name) for function in task.functions("doc_to_visual")]
    if (media := next((key for key in _MEDIA if kwargs.get(key)), None)) is not None:
        raise ValueError(
            f"{told}: its documents have videos or sound (dataset_kwargs.{media}); only images can be shown"
        )
    if heard := next((name for name in named if re.search("audio|video", name)), None):
        raise ValueError(
            f"{told}: its documents have videos or sound (doc_to_visual is {heard}); only images can be shown"
        )
    if config.get("repeats", 1) != 1:
        raise ValueError(f"{told}: asks each document {config['repeats']} times (repeats); only once is possible")


def task_sources(task: TaskYaml) -> list[Path]:
    """Return the yaml and code of ``task``, the files beside it that they read, and the library's for prompts and scores."""
    code = [path for function in task.functions() if function.file is not None for path in read_by(function.file)]
    root = installed.root()
    own = [path for folder in ("api", "filters") for path in sorted((root / folder).glob("*.py"))]
    return list(dict.fromkeys([*task.files, *code, *own, *_metadata()]))


def data_place(task: TaskYaml, copy: str | None = None) -> DataPlace:
    """Return where the data of ``task`` lie; ``copy`` is a local folder in place of its own ``dataset_path``.

    Raises ValueError if they are not on this machine, with the command that gets them.
    """
    config = task.config
    path, subset = copy or str(config.get("dataset_path")), config.get("dataset_name")
    kwargs = config.get("dataset_kwargs") or {}
    if path in BUILDERS:
        files = list(_given(kwargs, task.files[0].parent))
        if not files:
            raise ValueError(f"lmms_task={task.name}: there are no files of its dataset_kwargs {dict(kwargs)}")
        return DataPlace(path, subset, tuple(files))
    if Path(path).is_dir():
        if copy is not None and not Path(path, "README.md").is_file():
            subset = None  # The README of a data set names its subsets.
        return DataPlace(path, subset, tuple(_visible(Path(path))))
    if copy is not None or path.startswith(("/", "./", "../", "~")):
        raise ValueError(f"lmms_task={task.name}: there is no folder {path}, which should have its data set")
    return DataPlace(path, subset, tuple(_cached(task.name, path, subset)))


def cache_folder() -> Path:
    """Return the folder of prepared data sets, as lmms-eval and ``datasets`` find it."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    named = os.environ.get("LMMS_EVAL_DATASETS_CACHE") or os.environ.get("HF_DATASETS_CACHE")
    return Path(os.path.expanduser(os.path.expandvars(named or os.path.join(home, "datasets"))))


def _cached(task: str, path: str, subset: str | None) -> list[Path]:
    """Return the tables of the newest prepared copy of a data set of the Hub, which ``datasets`` takes offline."""
    *above, name = path.split("/")
    name = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower()
    found = list((cache_folder() / "___".join([*above, name])).glob(f"{subset or '*'}/*/*/dataset_info.json"))
    if not found:
        asked = ", ".join(repr(one) for one in (path, subset) if one is not None)
        raise ValueError(
            f"lmms_task={task}: its data set {path} of the Hub is not in {cache_folder()}; get it first: "
            f'python -c "import datasets; datasets.load_dataset({asked})", or give a copy: task.dataset_path=FOLDER'
        )
    newest = max(found, key=lambda info: info.parent.stat().st_mtime)
    return sorted(newest.parent.glob("*.arrow"))


def _given(kwargs: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    given = leaves([kwargs.get("data_files"), kwargs.get("data_dir")])
    for value in (leaf for leaf in given if isinstance(leaf, str)):
        beside = folder / value
        place = beside if beside.is_file() else Path(value)
        if place.is_dir():
            yield from _visible(place)
        else:
            yield from sorted(place.parent.glob(place.name))


def _visible(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _metadata() -> list[Path]:
    try:
        files = importlib.metadata.files(installed.DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())) for file in files if file.name == "METADATA"]
