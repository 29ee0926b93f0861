"""Digest the files of a task's data: annotations, and the images used for evaluation and calibration.

Works without importing the task's class, so that planning imports no torch. Generated data have no files; their reader's
``version`` identifies them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mmq_sweeps.config.assignment import calibration_of
from mmq_sweeps.config.instantiate import declaration, find_class
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.contents import content_digests

# Tasks with an item per question; all others are assumed to have an item per example.
ASKING = ("vqa", "benchmark")


@dataclass(frozen=True)
class DataFiles:
    """Digests of the evaluation files and of the calibration files; empty if there are none."""

    evaluation: str
    calibration: str


def data_files(config: Mapping[str, Any]) -> DataFiles | None:
    """Digest the files of a configuration's data; return None for generated data.

    The calibration split is read only if the method is calibrated. Raises ConfigError if an annotation file is missing,
    with a remedy. Any other defect of the data becomes part of the digest, and is reported by the task later.
    """
    task = config["task"]
    data = task.get("data")
    if not isinstance(data, Mapping) or "_target_" not in data or "split" not in task:
        return None
    reader = find_class("task.data._target_", data["_target_"])
    given = {name: value for name, value in data.items() if name != "_target_"}
    evaluation = _digest(reader, {**given, "split": task["split"]}, _evaluated(task))
    calibration = None
    drawn = calibration_of(config)
    if drawn is not None and "calibration_split" in task:
        draw = {"count": drawn.get("samples"), "seed": drawn.get("seed")}
        calibration = _digest(reader, {**given, "split": task["calibration_split"]}, _Choice(None), draw)
    if evaluation is None and calibration is None:
        return None
    return DataFiles(evaluation or "", calibration or "")


@dataclass(frozen=True)
class _Choice:
    """Limit on items, None for all. Items are questions for ``asking`` tasks, else examples."""

    items: int | None
    asking: bool = False

    def of(self, examples: Iterable[Any]) -> Iterator[Any]:
        """Yield the examples that the limit covers."""
        if self.items is None or not self.asking:
            yield from islice(examples, self.items)
            return
        left = self.items
        for example in examples:
            yield example
            left -= max(1, len(example.questions))
            if left <= 0:
                return


def _evaluated(task: Mapping[str, Any]) -> _Choice:
    limit, sample = task.get("limit"), task.get("sample")
    if task.get("apart_from") is not None or (isinstance(sample, Mapping) and sample.get("apart_from") is not None):
        # Examples are left out, so those within the limit lie further back, by a number that the images decide.
        return _Choice(None)
    asking = isinstance(limit, int) and declaration("task._target_", task["_target_"]).known_as in ASKING
    return _Choice(limit if isinstance(limit, int) else None, asking)


def _sources(reader: Any, given: Mapping[str, Any]) -> list[Path]:
    """List the annotation files; raise ConfigError if any is missing."""
    if not hasattr(reader, "sources"):
        return []
    try:
        found: list[Path] = reader(**given).sources()
        for path in found:
            path.stat()
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"task.data: {error}") from error
    return found


def _examples(reader: Any, given: Mapping[str, Any], choice: _Choice, draw: Mapping[str, Any]) -> list[Any]:
    """Read the examples; return none if their images are not files, as the reader or the first example says."""
    if not getattr(reader, "has_files", True):
        return []
    if not draw and not any(own.name == "count" and own.default is None for own in fields(reader)):
        if choice.items is None:
            return []
        draw = {"count": choice.items}
    found: list[Any] = []
    for example in choice.of(reader(**{**given, **draw})):
        if _pictures(example) is None and not found:
            return []
        found.append(example)
    return found


def _pictures(example: Any) -> Sequence[Any] | None:
    """Return the files of an example's images, and the images inside a source; None if its images are drawn."""
    if hasattr(example, "pictures"):
        return list(example.pictures)
    path = getattr(example, "path", None)
    return None if path is None else [Path(path)]


def _digest(
    reader: Any, given: Mapping[str, Any], choice: _Choice, draw: Mapping[str, Any] = MappingProxyType({})
) -> str | None:
    """Digest the annotations and images of a reader's examples; ``draw`` are the fields with which it draws a sample."""
    told: list[Any] = list(content_digests(_sources(reader, given)).values())
    try:
        examples = _examples(reader, given, choice, draw)
    except (ValueError, TypeError, OSError, AttributeError, IndexError, KeyError) as error:
        told.append(f"unreadable: {error}")
    else:
        files = [[one for one in _pictures(example) or () if isinstance(one, Path)] for example in examples]
        digests = content_digests(path for paths in files for path in paths)
        told += [
            [str(example.id), *(digests[path] or "missing" for path in paths)]
            for example, paths in zip(examples, files, strict=True)
            if paths
        ]
    if not told:
        return None
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
