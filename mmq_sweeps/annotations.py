"""Which files say what a task's data are, by their content. Imports no torch: cells are named before anything is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmq_sweeps.build import find_class
from mmq_sweeps.cell import Annotations
from mmq_sweeps.errors import ConfigError


def annotations_of(config: Mapping[str, Any]) -> Annotations | None:
    """The digests of a configuration's annotation files; ``None`` where its reader has none, for data that are drawn.

    A ``ConfigError`` says which file is missing and how to get it. Those of the calibration split are looked for where
    the method is calibrated.
    """
    task = config["task"]
    target = task.get("data", {}).get("_target_")
    if target is None or not hasattr(reader := find_class("task.data._target_", target), "sources"):
        return None
    calibrated = config["method"].get("calibration") is not None
    return Annotations(
        evaluation=_digest_of(reader, task, "split"),
        calibration=_digest_of(reader, task, "calibration_split") if calibrated else "",
    )


def _digest_of(reader: Any, task: Mapping[str, Any], split: str) -> str:
    given = {name: value for name, value in task["data"].items() if name != "_target_"}
    try:
        sources = reader(split=task[split], **given).sources()
        stamps = [(path, status.st_size, status.st_mtime_ns) for path in sources for status in [path.stat()]]
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"task.data: {error}") from error
    whole = hashlib.sha256()
    for stamp in stamps:
        whole.update(_content(*stamp))
    return whole.hexdigest()[:16]


@lru_cache(maxsize=64)
def _content(path: Path, size: int, changed: int) -> bytes:  # noqa: ARG001 - what the cache goes by
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
