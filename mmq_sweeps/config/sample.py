"""``task.sample``: some of a task's items in a random order, so that a cell can be measured on few."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmq_sweeps.errors import unknown

KEYS = ("seed", "start", "stop", "apart_from")
EXAMPLE = "task.sample={seed: 0, start: 0, stop: 32}"


def sample_problems(task: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the sample of a task, and of the calibration that it is apart from."""
    yield from _apart_problems("task.apart_from", task.get("apart_from"), task)
    given = task.get("sample")
    if given is None:
        return
    if not isinstance(given, Mapping):
        yield f"task.sample={given!r}: give a mapping, for instance {EXAMPLE}, or null for all items."
        return
    if wrong := [key for key in given if key not in KEYS]:
        yield from (f"task.sample.{key}: {unknown('key', key, KEYS)}" for key in wrong)
        return
    found = normal(given)
    numbers = {key: found[key] for key in ("seed", "start", "stop")}
    if wrong := [key for key, value in numbers.items() if not _is_count(value)]:
        for key in wrong:
            yield f"task.sample.{key}={numbers[key]!r}: choose a whole number from 0 on, for instance {EXAMPLE}."
    elif found["stop"] <= found["start"]:
        yield f"task.sample.stop={found['stop']}: choose a number above task.sample.start={found['start']}."
    yield from _apart_problems("task.sample.apart_from", found["apart_from"], task)


def _apart_problems(key: str, apart: Any, task: Mapping[str, Any]) -> Iterator[str]:
    if apart is None:
        return
    if not isinstance(apart, Mapping) or set(apart) != {"samples", "seed"} or not all(map(_is_count, apart.values())):
        yield f"{key}={apart!r}: give the calibration's own {{samples: 128, seed: 0}}, or null."
    elif task.get("split") != task.get("calibration_split"):
        yield (
            f"{key}: leaves calibration samples out, and task.split={task.get('split')} is not the split that they are "
            f"drawn from; give task.split={task.get('calibration_split')}, or no {key}."
        )


def normal(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a sample with all its keys, as it stands in a cell's id."""
    return {"seed": None, "start": 0, "stop": None, "apart_from": None, **given}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
