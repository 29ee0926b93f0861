"""Turn the measurements of a search into cells, and their records into outcomes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from launch.search.choices import Chosen, labels
from launch.search.settings import HERE, Settings
from mmq_sweeps.config.assignment import Source, assigned
from mmq_sweeps.config.instantiate import build, declaration
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.identity.hashing import digest
from mmq_sweeps.models.shapes import build_on_meta, find_shape
from mmq_sweeps.quantization.requests import requests
from mmq_sweeps.quantization.targets import find_parts
from mmq_sweeps.reporting.compare import results_of
from mmq_sweeps.search import settings as searching
from mmq_sweeps.search.measuring import LIKELIHOOD, Items, Measurement, Outcome
from mmq_sweeps.search.sizing import Candidate, space_of
from mmq_sweeps.search.space import Option, Space
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

EVALUATION = "evaluation"


@dataclass(frozen=True)
class Question:
    """The question to a search: the plain configuration ``base``, the settings, and the options of each part."""

    base: Mapping[str, Any]
    settings: Settings
    options: Mapping[str, list[Chosen]]
    source: Source
    metric: str

    @property
    def scored(self) -> str:
        """The name of the metric in records, which that of a class of a user's own has for itself."""
        # Imported here because metrics load slowly.
        from mmq_sweeps.metrics.names import load_metric

        return load_metric(self.metric).name

    @property
    def id(self) -> str:
        """Digest of everything that the course of the search depends on, twelve hexadecimal digits."""
        settings = vars(self.settings) | {"metric": self.metric}
        base = {key: self.base[key] for key in ("model", "task", "calibration")}
        return digest([base, settings, {part: [vars(one) for one in own] for part, own in self.options.items()}])[:12]


@dataclass(frozen=True)
class Subject:
    """The model of a question, without weights: its parts and the space of its assignments."""

    question: Question
    parts: Mapping[str, Any]
    space: Space
    source: Source = field(repr=False)

    @staticmethod
    def of(question: Question) -> Subject:
        """Build the model on the meta device; a ``ConfigError`` if its shape is not known or no option fits a part."""
        model = question.base["model"]
        try:
            built = build_on_meta(model, find_shape(model))
            parts = find_parts(built, model)
            candidates = {part: _candidates(own, model["dtype"]) for part, own in question.options.items()}
            space = space_of(model["name"], built, parts, list(candidates), candidates, question.settings.granularity)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(str(error)) from error
        structures = {name: part.structure for name, part in parts.items()}
        return Subject(question, parts, space, Source(question.source.folders, lambda _: structures))

    def config(self, measurement: Measurement) -> dict[str, Any]:
        """Return the plain configuration of a measurement, to be planned."""
        if measurement.point is None:
            content: dict[str, Any] = {"parts": dict.fromkeys(self.question.options, FULL_PRECISION_BITS)}
        else:
            content = self.space.content(measurement.point)
        return assigned({**self.question.base, "task": self.task(measurement.items)}, content, self.source)

    def task(self, items: Items) -> dict[str, Any]:
        """Return the task over ``items``: its own, or a range of a drawn order of the search's split."""
        task = dict(self.question.base["task"])
        if items.split == EVALUATION:
            return task
        settings = self.question.settings
        sample: dict[str, Any] = {"seed": settings.seed, "start": items.start, "stop": items.stop}
        if settings.split != EVALUATION:
            # Drawn from so many items; in retrieval answers are chosen from all of them.
            most = max(self.settings.items, task["limit"] or 0)
            task["limit"] = most if self.available is None else min(most, self.available)
            task["split"] = task["calibration_split"]
            if drawn := self.calibration:
                sample["apart_from"] = {"samples": drawn["samples"], "seed": drawn["seed"]}
        if items.teacher_forced:
            return task | {"sample": sample, "metrics": [LIKELIHOOD], "teacher_forced": True}
        return task | {"sample": sample, "metrics": [self.question.metric]}

    def unit_keys(self, cell: Cell) -> dict[str, str]:
        """Return the artifact of each unit that ``cell`` quantizes, by the unit's name."""
        return {request.unit.name: request.key for request in requests(cell, build, self.parts)} if cell.method else {}

    @cached_property
    def available(self) -> int | None:
        """How many items the calibration split has beside the samples, at least; None if it has no end, or cannot be read.

        Items with the image of a sample are none.
        """
        task, drawn = self.question.base["task"], self.calibration
        apart = {"samples": drawn["samples"], "seed": drawn["seed"]} if drawn else task.get("apart_from")
        try:
            examples = build("task", {**task, "split": task["calibration_split"]}).examples.first(None, apart)
            return sum(1 for _ in examples)
        except (ValueError, OSError, AttributeError):
            return None  # Of data that cannot be read the checks of the first batch tell.

    @property
    def settings(self) -> searching.Settings:
        """The settings that the course of the search depends on."""
        asked, limit = self.question.settings, self.question.base["task"]["limit"]
        task = self.question.base["task"]
        # A benchmark with one split is searched on the items that measure it.
        optimistic = asked.split == EVALUATION or task["split"] == task["calibration_split"]
        settings = searching.Settings(
            self.question.scored, asked.seed, error=asked.error, candidates=asked.candidates, optimistic=optimistic
        )
        settings = settings if asked.granularity == "part" else settings.finer()
        most = limit if asked.split == EVALUATION else self.available
        items = asked.items or settings.items
        items = items if most is None else min(items, most)
        forced = settings.forced if self._likely else 0
        return replace(_larger(settings, items), forced=forced).within(items)

    @property
    def _likely(self) -> bool:
        """True if the task can be asked for the likelihood of right texts."""
        target = self.question.base["task"]["_target_"]
        return "teacher_forced" in declaration("task._target_", target).roles

    @property
    def methods(self) -> list[str]:
        """The names of the methods among the options."""
        return list(dict.fromkeys(map(_name, self._nodes)))

    @property
    def calibration(self) -> Mapping[str, Any] | None:
        """The calibration that methods of the search draw; None if none does."""
        return next((node["calibration"] for node in self._nodes if node.get("calibration")), None)

    @property
    def _nodes(self) -> Iterator[Mapping[str, Any]]:
        """The methods of the options."""
        return (one.method for own in self.question.options.values() for one in own if one.method is not None)


def outcome_of(measurement: Measurement, record: Record, store: Store, metric: str) -> Outcome:
    """Return the outcome in ``record`` of the measurement; its result is None if the cell failed."""
    # Quantization is shared by all cells of a search.
    seconds = sum(record.seconds.get(stage, 0.0) for stage in ("evaluate", "score"))
    if not record.done:
        return Outcome(measurement, None, None, seconds, record.id)
    total, items = record.size["total"], store.items(record.id)
    forced = measurement.items.teacher_forced
    result = results_of(record, items)[LIKELIHOOD if forced else metric]
    bits = round(total["bpw_exact"] * total["parameters"])
    predictions = {item["id"]: item["prediction"] for item in items} if forced else {}
    return Outcome(measurement, result, bits, seconds, record.id, predictions)


def check_task(task: Mapping[str, Any], settings: Settings) -> None:
    """Raise a ``ConfigError`` if the class of the task cannot evaluate a range of a drawn order."""
    roles = declaration("task._target_", task["_target_"]).roles
    if missing := [name for name in ("sample", "limit", "split", "calibration_split") if name not in roles]:
        raise ConfigError(
            f"task={task['name']}: its class has no field {missing[0]}, by which {HERE}.split={settings.split} draws items; "
            "add it (docs/search.md), or search by a task of this package."
        )
    if task.get("sample"):
        raise ConfigError("task.sample: a search draws its items itself; leave it out, and give hydra.sweeper.seed.")


def _larger(settings: searching.Settings, items: int) -> searching.Settings:
    """Return ``settings`` with more items in every stage if there are more than usual."""
    share = max(1.0, items / settings.items)
    rounds = tuple(int(count * share) for count in settings.rounds)
    return replace(settings, first=int(settings.first * share), rounds=rounds, last=int(settings.last * share))


def _candidates(options: list[Chosen], dtype: str) -> list[Candidate]:
    nodes = [
        one.method and {key: value for key, value in one.method.items() if key != "calibration"} for one in options
    ]
    methods = [None if node is None else build("method", node) for node in nodes]
    names = {one.method["_target_"]: _name(one.method) for one in options if one.method is not None}
    return [
        Candidate(Option(one.bits, one.method, one.group_size, label), method, dtype)
        for one, method, label in zip(options, methods, labels(options, names), strict=True)
    ]


def _name(node: Mapping[str, Any]) -> str:
    return declaration("method._target_", node["_target_"]).known_as.rpartition(".")[2]
