"""Score answers with an lmms-eval task's own ``process_results`` and aggregation, with intervals over its documents.

The steps are those of ``lmms_eval.evaluator.evaluate`` as its command calls it: filters, removal of reasoning, processing of
each document without its images, and an aggregation per metric over what the documents gave for it.
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from mmq_sweeps.data.lmms import installed, library
from mmq_sweeps.metrics import MetricResult, degenerate
from mmq_sweeps.metrics.base import Floats, Metric, MetricBase, Scores
from mmq_sweeps.metrics.intervals import SEED, interval_of, owners_of, result_of
from mmq_sweeps.metrics.result import Alike
from mmq_sweeps.tasks.generation.item import Item

logger = logging.getLogger(__name__)

# The default of its command's --reasoning_tags, used unless a task has its own.
REASONING_TAGS = [["<think>", "</think>"], ["<analysis>", "</analysis>"]]
# The key of a score in a document's results, by lmms-eval's convention; a task's score_key is another.
SCORE = "score"


@dataclass(frozen=True)
class Entries:
    """Entries of the documents for a metric: an entry for each of ``items``, which may be some of all."""

    items: list[str]
    values: list[Any]

    def numbers(self, key: str) -> Floats | None:
        """Return a number per entry: the entry itself, or its score if it is a dict; None if some have none."""
        found = [value.get(key) if isinstance(value, Mapping) else value for value in self.values]
        if not all(is_figure(number) for number in found):
            return None
        return np.array(found, dtype=np.float64)


class LmmsScorer:
    """Scorer of the answers to ``items``, whose examples are documents of ``task``.

    ``metrics`` selects some of the task's, in the order given; without them all, in its own. ``draws`` is the number of times
    that an aggregation other than the mean is repeated for its interval; 0 gives none.
    """

    def __init__(self, task: Any, items: Sequence[Item], metrics: Sequence[str], draws: int) -> None:
        self._task, self._items, self._draws = task, list(items), draws
        self.metrics = list(metrics) or list(task.aggregation())
        self._groups = {item.id: item.group for item in items if item.group}
        self._rights = [item.references[0] if item.references else "" for item in items]

    def score(self, predictions: Mapping[str, str]) -> dict[str, MetricResult]:
        """Return every metric that has a figure; raises ValueError naming the function of the task's code that fails."""
        entries = self.entries([predictions[item.id] for item in self._items])
        with library.contained():
            found = {name: self._result(name, metric, own) for (name, metric), own in entries.items()}
        results = {name: result for name, result in found.items() if result is not None}
        answers = [predictions[item.id].strip().lower() for item in self._items]
        rights = [right.strip().lower() for right in self._rights]
        warnings = degenerate.of_outputs("answers", answers, rights, degenerate.SAME_ANSWER)
        alike: Alike | None = degenerate.alike(answers, rights)
        return {name: replace(result, alike=alike).warned(*warnings) for name, result in results.items()}

    def entries(self, answers: Sequence[str]) -> dict[tuple[str, str], Entries]:
        """Return the documents' entries for each metric, by its name here and its own; one answer per item."""
        found: dict[tuple[str, str], Entries] = {}
        with library.contained():
            for filtered, texts in self._filtered(answers).items():
                for item, text in zip(self._items, texts, strict=True):
                    for metric, value in self._processed(item, text).items():
                        # As lmms-eval's own tables do, which name the filter of every metric.
                        name = metric if filtered == "none" or len(self._task._filters) == 1 else f"{metric}@{filtered}"
                        own = found.setdefault((name, metric), Entries([], []))
                        own.items.append(item.id)
                        own.values.append(value)
        order = {metric: place for place, metric in enumerate(self.metrics)}
        known = sorted((key for key in found if key[1] in order), key=lambda key: order[key[1]])
        return {key: found[key] for key in known}

    def figure(self, metric: str, values: Sequence[Any]) -> Any:
        """Return the aggregation of ``values``, whatever it is; raises ValueError if it fails. To be called ``contained``."""
        aggregate, given = self._task.aggregation()[metric], {}
        with ExitStack() as stack:
            if "args" in inspect.signature(aggregate).parameters:
                folder = stack.enter_context(TemporaryDirectory())  # For a file of answers to be submitted.
                given = {"args": SimpleNamespace(output_path=folder, tasks=self._task.task_name)}
            stack.enter_context(_unchanged(aggregate))
            try:
                return aggregate(list(values), **given)
            except (Exception, SystemExit) as error:
                raise ValueError(
                    f"lmms-eval's task {self._task.task_name}: the aggregation of {metric} fails: "
                    f"{type(error).__name__}: {error}"
                ) from error

    def _filtered(self, answers: Sequence[str]) -> dict[str, list[Any]]:
        """Return the answers after each of the task's filters and without reasoning, by the filter's name."""
        from lmms_eval.api.instance import Instance
        from lmms_eval.api.reasoning import parse_reasoning_tags_config, strip_reasoning_tags

        task = self._task
        tags = parse_reasoning_tags_config(task_value=task.config.reasoning_tags)
        tags = REASONING_TAGS if task.config.reasoning_tags is None else tags
        instances = []
        for item, answer in zip(self._items, answers, strict=True):
            metadata = {"task": task.task_name, "doc_id": int(item.id), "repeats": 1, "split": item.example.split}
            place = int(item.id), task.task_name, item.example.split
            asked: tuple[Any, ...] = (item.question, {}, task.doc_to_visual, *place)
            instances.append(Instance("generate_until", asked, 0, metadata))
            instances[-1].resps = [answer]
        for ensemble in task._filters:
            ensemble.apply(instances, [item.example.doc for item in self._items])

        def bare(found: Any) -> Any:
            if isinstance(found, str) and tags is not None:
                return strip_reasoning_tags(found, tags)
            return [bare(one) for one in found] if isinstance(found, list) else found

        names = [ensemble.name for ensemble in task._filters]
        return {name: [bare(one.filtered_resps[name]) for one in instances] for name in names}

    def _processed(self, item: Item, answer: Any) -> dict[str, Any]:
        try:
            # Without the five attempts, seconds apart, that lmms-eval makes.
            found: dict[str, Any] = type(self._task).process_results.__wrapped__(self._task, item.example.doc, [answer])
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"lmms-eval's task {self._task.task_name}: process_results fails on document {item.id} with the answer "
                f"{answer!r}: {type(error).__name__}: {error}"
            ) from error
        return found

    def _result(self, name: str, metric: str, entries: Entries) -> MetricResult | None:
        """Return the result of a metric; None if its aggregation gives no number."""
        value = self.figure(metric, entries.values)
        if not is_figure(value):
            return None
        numbers = entries.numbers(self._task.config.score_key)
        better = self._task.higher_is_better().get(metric)
        direction = True if better is None else bool(better)
        if self.is_mean(metric) and numbers is not None:
            found = result_of(_mean(name, direction), tuple(entries.items), Scores.mean(numbers), self._groups)
            return replace(found, value=float(value), definition=self._definition)
        interval, warnings = self._interval(metric, entries, float(value))
        per_item = {} if numbers is None else dict(zip(entries.items, numbers.tolist(), strict=True))
        return MetricResult(
            name, float(value), per_item, interval, direction, definition=self._definition, warnings=warnings
        )

    def is_mean(self, metric: str) -> bool:
        """Return whether a metric is the mean of its entries."""
        from lmms_eval.api.metrics import mean

        return self._task.aggregation()[metric] is mean

    def _interval(self, metric: str, entries: Entries, value: float) -> tuple[tuple[float, float], tuple[str, ...]]:
        """Return the 95% interval over draws of documents, aggregated anew; without a width where there is none, and why.

        Documents about the same images are drawn together.
        """
        values = entries.values
        if len(values) == 1:
            return (value, value), degenerate.of_count(1)
        if not self._draws:
            return (value, value), ("its interval has no width, since task.draws is 0",)
        owners = owners_of(entries.items, self._groups)
        together: list[list[Any]] = [[] for _ in range(len(values) if owners is None else int(owners.max()) + 1)]
        for place, entry in enumerate(values):
            together[place if owners is None else owners[place]].append(entry)
        try:
            figures = self._drawn(metric, together, len(together), replace=True)
        except ValueError as error:
            try:
                return self._interval_of_halves(metric, together, value), ()
            except ValueError:
                return (value, value), (f"its interval has no width, since on a draw of documents {error}",)
        return interval_of(figures), ()

    def _interval_of_halves(self, metric: str, together: list[list[Any]], value: float) -> tuple[float, float]:
        """Return the interval of an aggregation that refuses documents drawn twice, from halves without any.

        The figure of a half is as far from that of all as two samples are, but for the square root of the halves' sizes.
        """
        count = len(together)
        figures = self._drawn(metric, together, count // 2, replace=False)
        if not figures.min() <= value <= figures.max():
            raise ValueError("halves of the documents have another figure than all, as sums have")
        away = (figures - value) * math.sqrt((count // 2) / (count - count // 2))
        return interval_of(value + away)

    def _drawn(self, metric: str, together: list[list[Any]], count: int, *, replace: bool) -> Floats:
        """Return the figures of draws of ``count`` groups of documents; raises ValueError if one is none."""
        figures, groups = [], len(together)
        generator = np.random.Generator(np.random.PCG64(SEED))
        without = (generator.permutation(groups)[:count] for _ in range(self._draws))
        for chosen in generator.integers(0, groups, (self._draws, count)) if replace else without:
            figures.append(self.figure(metric, [entry for place in chosen for entry in together[place]]))
            if not is_figure(figures[-1]):
                raise ValueError("it is no number")
        return np.array(figures, dtype=np.float64)

    @property
    def _definition(self) -> str:
        return f"lmms-eval {installed.version()}, {self._task.task_name}"


def is_figure(value: Any) -> bool:
    """Return whether ``value`` is a finite number, of Python or numpy."""
    return isinstance(value, bool | int | float | np.bool_ | np.integer | np.floating) and math.isfinite(value)


def _mean(metric: str, higher: bool) -> Metric:
    """Return the mean of the values that a task gives per document, under its own name."""

    class Mean(MetricBase):
        name: ClassVar[str] = metric
        needs: ClassVar[str] = "answers"
        higher_is_better: ClassVar[bool] = higher

        def score(self, prepared: Any, predictions: Any) -> Scores:  # noqa: ARG002
            return Scores.mean(np.asarray(predictions, dtype=np.float64))

    return Mean()


@contextmanager
def _unchanged(function: Callable[..., Any]) -> Iterator[None]:
    """Restore the lists and dicts of a function's module, in which some aggregations count: a second call would add up."""
    known = getattr(inspect.unwrap(getattr(function, "func", function)), "__globals__", {})
    held = {
        name: value
        for name, value in known.items()
        if isinstance(value, dict | list | set) and not name.startswith("__")
    }
    before = {}
    for name, value in held.items():
        try:
            before[name] = copy.deepcopy(value)
        except Exception:  # noqa: BLE001 - such as of locks; nothing that counts
            logger.debug("cannot copy %s", name)
    try:
        yield
    finally:
        for name, value in before.items():
            own = held[name]
            own.clear()
            own.extend(value) if isinstance(own, list) else own.update(value)
