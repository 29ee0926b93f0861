"""Task of lmms-eval: its documents, prompts and scoring."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mmq_sweeps.data.lmms.catalog import TaskYaml
from mmq_sweeps.data.lmms.network import refuse_asking
from mmq_sweeps.identity.roles import EVALUATION, LABEL
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.plain_text import plain_text
from mmq_sweeps.tasks.base import Predictions, Progress
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.task import GenerationTask
from mmq_sweeps.tasks.items import problem_of_references, problem_of_text
from mmq_sweeps.tasks.lmms.rehearsal import rehearse
from mmq_sweeps.tasks.lmms.scoring import LmmsScorer

logger = logging.getLogger(__name__)
# Where a document's text names an image, as some tasks' doc_to_text do.
PLACE = "<image>"
# The settings that lmms-eval's models take from a task's generation_kwargs, and their defaults.
GENERATION = {"max_new_tokens": 1024, "num_beams": 1}
_SAMPLED = ("temperature", "top_p")


@dataclass(frozen=True)
class _Interleaved(Item):
    """Item whose text says itself where its images are; ``image`` stands there in the prompt."""

    image: str = ""

    @property
    def prompt(self) -> str:
        return self._with(str(self.question).replace(PLACE, self.image))

    def prompt_for(self, processor: Any) -> str:
        return self._with(self.image.join(plain_text(text, processor) for text in str(self.question).split(PLACE)))


@dataclass(frozen=True, eq=False)
class LmmsEvalTask(GenerationTask):
    """Task ``lmms_task`` of the installed lmms-eval; ``data`` is the reader ``LmmsDocuments`` with the same fields.

    ``prompt`` has ``{question}``, for which stands what the task's ``doc_to_text`` gives; where that names its images itself,
    as ``<image>``, they stand there. ``generation`` wins over the task's own ``generation_kwargs``. ``metrics`` are names of
    the task's metric_list; without any, all. With ``stop_at_until`` answers end before the first of the task's ``until``, as
    with some of lmms-eval's models. ``draws`` is the number of times that an aggregation other than the mean is repeated for an
    interval. ``allow_network`` runs scoring that may ask servers.
    """

    lmms_task: str = field(kw_only=True)
    include_path: str | None = field(default=None, kw_only=True, metadata=LABEL)  # ids hold the files' contents
    lmms_model: str | None = field(default=None, kw_only=True)
    dataset_path: str | None = field(default=None, kw_only=True, metadata=LABEL)
    stop_at_until: bool = field(default=False, kw_only=True, metadata=EVALUATION)
    draws: int = field(default=200, kw_only=True, metadata=EVALUATION)
    allow_network: bool = field(default=False, kw_only=True, metadata=LABEL)

    known_as: ClassVar[str] = "lmms_eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{question}" not in self.prompt:
            raise ValueError(f"prompt={self.prompt!r}: has no {{question}} in it")
        if self.draws < 0:
            raise ValueError(f"draws={self.draws}: choose 0 or more")
        object.__setattr__(self, "generation", {**self._own_generation, **self.generation})

    def items_of(self, example: Any) -> list[Item]:
        inside = isinstance(example.text, str) and 0 < example.text.count(PLACE) == example.image_count
        given = {"references": example.references, "question": example.text, "group": example.group}
        if not inside or self.image_prompt is None:
            return [Item(example.id, example, self.prompt, **given)]
        bare = self.prompt.replace(self.image_prompt, "")
        return [_Interleaved(example.id, example, bare, **given, image=self.image_prompt.strip())]

    def problem_of(self, item: Item) -> str | None:
        if problem := problem_of_text("its text", item.question) or item.example.problem:
            return str(problem)
        # Right texts are for calibration only: the task scores answers by other columns of its documents.
        return super().problem_of(replace(item, references=("",)))

    def check(self, calibrations: Sequence[Mapping[str, Any]], cache: Path) -> None:
        self._check_metrics()
        self._warn_of_chat_models()
        super().check(calibrations, cache)
        if not self.teacher_forced:
            scorer = self._scorer(cache)
            assert isinstance(scorer, LmmsScorer)
            rehearse(scorer, self.lmms_task, len(self.items), self.allow_network)

    def predict(self, loaded: LoadedModel, progress: Progress) -> Predictions:
        predictions = super().predict(loaded, progress)
        if self.stop_at_until and not self.teacher_forced:
            predictions.update({item: self._until(answer) for item, answer in predictions.items()})
        return predictions

    def make_scorer(self, items: Sequence[Item], cache: Path) -> LmmsScorer:  # noqa: ARG002 - nothing is worth caching
        return LmmsScorer(self._reader.load(), items, self.metrics, self.draws)

    @cached_property
    def _asks_confidence(self) -> bool:
        return False

    def _check_samples(self, examples: Sequence[Any]) -> None:
        super()._check_samples(examples)
        bare = {one.id: problem for one in examples if (problem := problem_of_references(one.references)) is not None}
        if bare:
            first, problem = next(iter(bare.items()))
            raise ValueError(
                f"task.calibration_split={self.calibration_split}: {len(bare)} of {len(examples)} samples cannot be used: "
                f"{first}: {problem}"
            )

    def _check_metrics(self) -> None:
        """Raise ValueError for a metric that the task has not, or whose code may ask a server."""
        if self.teacher_forced:
            return
        known = self._yaml.metrics
        for name in self.metrics:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]}?" if close else ""
                raise ValueError(
                    f"task.metrics: {name} is no metric of lmms-eval's task {self.lmms_task}.{hint} It has "
                    f"{', '.join(known)}"
                )
        if not self.allow_network:
            refuse_asking(self._yaml, self.metrics or known)

    def _warn_of_chat_models(self) -> None:
        """Warn if lmms-eval's models with a chat format ask something else than its others, whose way is taken here."""
        config = self._yaml.config
        if config.get("doc_to_messages") is not None:
            what = "by its doc_to_messages"
        elif config.get("description") or config.get("num_fewshot"):
            what = "without its description and few-shot examples"
        else:
            return
        logger.warning(
            "lmms_task=%s: lmms-eval asks its models with a chat format %s, and the others, as here, by doc_to_text; figures "
            "of the former may differ",
            self.lmms_task,
            what,
        )

    def _until(self, answer: str) -> str:
        """End an answer before each of the task's ``until`` but a blank line, its default, at which models stay."""
        until = (self._yaml.config.get("generation_kwargs") or {}).get("until") or []
        for term in [until] if isinstance(until, str) else until:
            if term and term != "\n\n":
                answer = answer.split(term)[0]
        return answer

    @property
    def _own_generation(self) -> dict[str, Any]:
        """Arguments of lmms-eval's models to ``generate``: sampling if there is a temperature, whatever ``do_sample`` says."""
        config, model = self._yaml.config, self.lmms_model
        of_models = config.get("model_specific_generation_kwargs") or {}
        given = {**(config.get("generation_kwargs") or {}), **of_models.get(model, of_models.get("default", {}))}
        found = {name: given.get(name, value) for name, value in GENERATION.items()}
        if float(given.get("temperature") or 0) > 0:
            return {
                **found,
                "do_sample": True,
                **{name: given[name] for name in _SAMPLED if given.get(name) is not None},
            }
        return {**found, "do_sample": False}

    @cached_property
    def _yaml(self) -> TaskYaml:
        yaml: TaskYaml = self._reader.yaml
        return yaml

    @cached_property
    def _reader(self) -> Any:
        """The reader of the evaluated documents."""
        return self.examples.read(self.split, None)
