"""Drive a search: measure what it asks for as ordinary cells, batch by batch, until it has its answers.

All that it needs to go on is in the store: a search that is started again asks for the same cells, and those that have ended
are read from their records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launch import start, sweep_file
from launch.search import answer, forecast, journal
from launch.search.cells import EVALUATION, Question, Subject, check_task, outcome_of
from launch.search.settings import HERE
from mmq_sweeps.config.sweep import Sweep, plan_each
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.search import loop
from mmq_sweeps.search.loop import Measurement, Outcome
from mmq_sweeps.search.space import Budget
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)
AGAIN = "run the same command again to go on"


class Halted(Exception):
    """The search cannot go on; the message says why and what to do. ``status`` is that of the process."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def search(question: Question, launcher: Mapping[str, Any], command: str = "") -> int:
    """Search for the answer to ``question``, print and store it, and return the exit status.

    ``launcher`` holds the plain values of ``hydra.launcher``. With ``dry_run``, only what would be measured is shown.
    """
    check_task(question.base["task"], question.settings)
    subject = Subject.of(question)
    budgets = budgets_of(subject)
    if launcher.get("dry_run"):
        forecast.show(subject, budgets)
        return 0
    run = Run(subject, launcher, command, Store.of(question.base["store"]))
    # Imported here because it loads torch's models, which a dry run does without.
    from mmq_sweeps.execution.executor import models_kept

    try:
        with models_kept():
            found = run.to_the_end(budgets)
    except Halted as halted:
        run.note("halted", reason=str(halted))
        start.tell(str(halted))
        return halted.status
    found.mark_optimistic()
    run.note("done", **found.content)
    answer.show(found, question.base["output"])
    return 0


def budgets_of(subject: Subject) -> list[Budget]:
    """Return the budgets of a question, checked against what its space can weigh; a ``ConfigError`` lists all problems."""
    settings = subject.question.settings
    make = {"max_bpw": Budget.of_bpw, "max_gb": Budget.of_gb}[settings.kind]
    found, problems = [], []
    for value in settings.budgets:
        try:
            found.append(make(value, subject.space))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return found


@dataclass
class Run:
    """A search on its way."""

    subject: Subject
    launcher: Mapping[str, Any]
    command: str
    store: Store
    batches: list[journal.Batch] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = journal.read(self.store.root, self.question.id)
        if self.before and not self.before.done:
            logger.info("search %s: was begun before; it goes on", self.question.id)

    @property
    def question(self) -> Question:
        return self.subject.question

    def to_the_end(self, budgets: Sequence[Budget]) -> answer.Found:
        """Measure batch by batch and return the answers."""
        course = loop.Search(self.subject.space, budgets, self.subject.settings)
        while batch := course.ask():
            course.tell(self.measure(batch))
        batches = journal.joined(self.batches, self.before)
        return answer.Found(self.subject, course.answers(), self.outcomes, batches, self.store)

    def measure(self, batch: Sequence[Measurement]) -> list[Outcome]:
        """Measure a batch by the launcher; its outcomes in the same order. ``Halted`` unless all of its cells are done."""
        sweep, cells = plan_each(map(self.subject.config, batch), self.subject.source)
        ids = {cell.id for cell in cells}
        # Full precision on these items only if the search asks for it.
        sweep = replace(sweep, cells=tuple(cell for cell in sweep.cells if cell.id in ids))
        there = sum(self.store.record_path(cell).exists() for cell in ids)
        logger.info("search %s: %s", self.question.id, journal.told(batch, len(ids), there))
        before = journal.processor_seconds()
        started = time.time()
        outcome = start.measure(sweep, self.launcher, self.command, len(batch))
        spent = journal.processor_seconds() - before
        self._check(outcome, sweep)
        found = [
            outcome_of(one, outcome.records[cell.id], self.store, self.question.scored)
            for one, cell in zip(batch, cells, strict=True)
        ]
        self.outcomes += found
        self.batches.append(journal.Batch.of(batch, found, len(ids), there, spent, time.time() - started))
        self.note("running")
        _check_zero(found, self.question.scored)
        return found

    def note(self, state: str, **more: Any) -> None:
        """Write ``search.json``, from which another process can tell how far the search has come."""
        journal.write(self.store, self.question, self.command, state, self.batches, self.before, more)

    def _check(self, outcome: start.Outcome, sweep: Sweep) -> None:
        """Raise ``Halted`` if cells of a batch are missing or failed."""
        where = sweep_file.command("status", self.store.root, sweep.id)
        if outcome.left:
            raise Halted(
                f"the search waits for {_count(outcome.missing, 'cell')}; {AGAIN} when they have ended: {where}", 0
            )
        if outcome.stopped is not None:
            raise Halted(f"stopped: {outcome.stopped.strerror or outcome.stopped}; {AGAIN}")
        if outcome.missing:
            raise Halted(f"{_count(outcome.missing, 'cell')} of the search are missing; {AGAIN}")
        if failed := outcome.failed:
            start.show_failed(outcome)
            raise Halted(
                f"{len(failed)} of {len(sweep.cells)} cells of this batch failed, and a search compares them all; mend the "
                f"cause and {AGAIN}, or leave out the choice that fails"
            )


def _check_zero(outcomes: Sequence[Outcome], metric: str) -> None:
    """Raise ``Halted`` if every quantized candidate of a race scores zero on every item, which leaves nothing to compare."""
    race = [one for one in outcomes if one.measurement.point is not None and one.measurement.items.split != EVALUATION]
    if len(race) < 2 or any(any(one.result.per_item.values()) for one in race if one.result is not None):
        return
    full = [one for one in outcomes if one.measurement.point is None and one.result is not None]
    if full and full[0].result is not None and not full[0].result.value:
        raise Halted(
            f"{metric} is 0 at full precision, too, on the {full[0].result.count} items of the race, so it tells nothing "
            f"apart; look at the task's prompt, or choose another {HERE}.metric"
        )
    raise Halted(
        f"every one of {len(race)} candidates scores 0 of {metric} on every item of the race, so none is better than another; "
        "give a larger budget or higher bits, or another hydra.sweeper.metric"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
