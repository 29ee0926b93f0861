"""Read ``hydra.sweeper`` of a search: the budgets, and how to search."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.config.problems import OWN_METRICS
from mmq_sweeps.errors import ConfigError, one_of, unknown

BUDGETS = ("max_bpw", "max_gb", "min_quality")
GRANULARITIES = ("part", "kind", "group", "unit")
SPLITS = ("calibration", "evaluation")
OTHERS = ("granularity", "metric", "split", "seed", "items", "candidates", "error")
KEYS = (*BUDGETS, *OTHERS, "params")
HERE = "hydra.sweeper"


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    ``kind`` is one of ``BUDGETS``, ``budgets`` its values, in ascending order. Without ``items`` the race has as many as
    ``mmq_sweeps.search`` takes.
    """

    kind: str
    budgets: tuple[float, ...]
    granularity: str = "part"
    metric: str | None = None
    split: str = "calibration"
    seed: int = 0
    items: int | None = None
    candidates: int = 6
    error: float = 0.05

    @staticmethod
    def of(given: Mapping[str, Any]) -> Settings:
        """Return the settings of a composed ``hydra.sweeper``; a ``ConfigError`` lists all that is wrong with it."""
        found = list(_problems(given))
        if found:
            raise ConfigError(found)
        kind = next(kind for kind in BUDGETS if given.get(kind) is not None)
        rest = {key: given[key] for key in OTHERS if key in given}
        return Settings(kind, tuple(sorted(map(float, set(_several(given[kind]))))), **rest)


def _problems(given: Mapping[str, Any]) -> Iterator[str]:
    for key in given:
        if key not in KEYS and key != "_target_":
            yield f"{HERE}.{key}: {unknown('key', key, KEYS)}"
    asked = [kind for kind in BUDGETS if given.get(kind) is not None]
    if not asked:
        ways = " or ".join(f"{HERE}.{kind}=NUMBER" for kind in BUDGETS)
        yield f"{HERE}: names no budget; give {ways}, or several numbers as {HERE}.max_bpw=[3,3.5,4]"
    elif len(asked) > 1:
        both = " and ".join(f"{HERE}.{kind}" for kind in asked)
        yield f"{both}: are two kinds of budget; give one, and null for the other"
    for kind in asked:
        yield from _budget_problems(kind, given[kind])
    for key, choices in (("granularity", GRANULARITIES), ("split", SPLITS)):
        if key in given and given[key] not in choices:
            yield f"{HERE}.{key}={given[key]}: {unknown('choice', given[key], choices)}"
    for key, least in (("seed", 0), ("items", 8), ("candidates", 1)):
        value = given.get(key, least)
        if value is None and key == "items":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            yield f"{HERE}.{key}={value}: choose a whole number from {least}."
    error = given.get("error", 0.05)
    if isinstance(error, bool) or not isinstance(error, int | float) or not 0 < error < 1:
        yield f"{HERE}.error={error}: choose a probability between 0 and 1."
    if not isinstance(given.get("metric"), str | None):
        yield f"{HERE}.metric={given['metric']}: give the name of one of task.metrics, or null for the first."
    if not isinstance(given.get("params") or {}, Mapping):
        yield f"{HERE}.params={given['params']}: give a mapping from keys to choices, such as {{bits: '2,3'}}."


def _budget_problems(kind: str, given: Any) -> Iterator[str]:
    values = _several(given)
    if not values:
        yield f"{HERE}.{kind}=[]: names no budget; give a number, or several."
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"{HERE}.{kind}={value}: give a number, or several as {HERE}.{kind}=[3,4]."
        elif kind == "min_quality" and not 0 < value < 1:
            yield f"{HERE}.{kind}={value}: choose a share of full precision between 0 and 1, such as 0.98."
        elif value <= 0:
            yield f"{HERE}.{kind}={value}: choose a number above 0."


def _several(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]


def metric_of(settings: Settings, task: Mapping[str, Any]) -> str:
    """Return the metric that a search maximises; a ``ConfigError`` if the task lacks it or less of it is better."""
    # Imported here because metrics load slowly.
    from mmq_sweeps.metrics.names import load_metric

    if task.get("_target_", "").rpartition(".")[2] in OWN_METRICS:
        raise ConfigError(
            f"task={task['name']}: a search draws items and scores them by metrics of this package, and lmms-eval's "
            "tasks bring their own; search with another task, and measure its answer with this one"
        )
    metrics = list(task["metrics"])
    name = settings.metric or metrics[0]
    if name not in metrics:
        raise ConfigError(f"{HERE}.metric={name}: is none of task.metrics. {one_of(metrics)}")
    if not getattr(load_metric(name), "higher_is_better", True):
        others = [one for one in metrics if one != name and load_metric(one).higher_is_better]
        choose = f"choose {HERE}.metric={others[0]}" if others else "add one to task.metrics"
        raise ConfigError(f"{HERE}.metric={name}: less of it is better, and a search maximises its metric; {choose}.")
    return name
