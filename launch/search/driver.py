"""Drive a search: measure its questions as ordinary cells, batch by batch, until it has its answers.

All that it needs to go on is in the store: a search that is started again asks for the same cells, and those that have ended
are read from their records.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from launch import start, sweep_file
from launch.search import answer, forecast, journal
from launch.search.cells import Question, Subject, check_task, outcome_of
from launch.workers import warm
from mmq_sweeps.config.sweep import Sweep, plan_each
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.reporting.progress import to_stderr
from mmq_sweeps.search import loop
from mmq_sweeps.search.measuring import STAGES, Measurement, Outcome
from mmq_sweeps.search.prediction.sensitivity import read_errors
from mmq_sweeps.search.space import Budget, Point
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

logger = logging.getLogger(__name__)
AGAIN = "run the same command again to go on"
# Stages whose cells are checked before they run: the first, and the one on other items.
CHECKED = (STAGES[0], STAGES[-1])


class Halted(Exception):
    """The search cannot go on; the message gives the reason and the remedy. ``status`` is that of the process."""

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
        with models_kept(), warm.kept_warm():
            found = run.to_the_end(budgets)
    except Halted as halted:
        run.note("halted", reason=str(halted))
        to_stderr(str(halted))
        return halted.status
    except (ConfigError, KeyboardInterrupt) as error:
        run.note("halted", reason=str(error) or "interrupted")
        raise
    found.mark_optimistic()
    run.note("done", **found.content)
    answer.show(found, question.base["output"])
    if run.failed:
        failed = counted(run.failed, "cell failed and was", "cells failed and were")
        to_stderr(f"{failed} left out of the search; the same command tries again")
    return 1 if run.failed else 0


def budgets_of(subject: Subject) -> list[Budget]:
    """Return the budgets of a question, checked against the sizes of its space; a ``ConfigError`` lists all problems."""
    settings, space = subject.question.settings, subject.space
    if space.least_bits == space.full_bits:
        raise ConfigError(
            "hydra/sweeper=budget: every option is full precision; give lower bits, as bits=2,3,4,8, or another method."
        )
    if space.count == 1:
        raise ConfigError(
            f"hydra/sweeper=budget: its axes leave one assignment, {answer.told_point(space, space.smallest)}; give several "
            "values, as bits=2,3,4,8, or run it without hydra/sweeper=budget."
        )
    make = {"max_bpw": Budget.of_bpw, "max_gb": Budget.of_gb, "min_quality": Budget.of_quality}[settings.kind]
    found, problems = [], []
    for value in settings.budgets:
        try:
            found.append(make(value, space))
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
    failed: int = 0
    # Processor seconds that are in ``batches`` already.
    counted: float = 0.0
    # The artifact of each unit, by name, of the points that were measured.
    keys: dict[Point, dict[str, str]] = field(default_factory=dict)
    # Errors of units by axis and option, as ``sensitivity.read_errors`` returns them.
    read: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.before = journal.read(self.store.root, self.question.id)
        if self.before and not self.before.done:
            logger.info("search %s: was begun before; it goes on", self.question.id)

    @property
    def question(self) -> Question:
        return self.subject.question

    def to_the_end(self, budgets: Sequence[Budget]) -> answer.Found:
        """Measure batch by batch and return the answers."""
        course = loop.Search(self.subject.space, budgets, self.subject.settings, self.errors)
        while batch := course.ask():
            course.tell(self.measure(batch))
        batches = journal.joined(self.batches, self.before)
        frontier = answer.frontier_of(course, self.subject.space)
        timed = "seconds of jobs" if self.elsewhere else "processor seconds"
        return answer.Found(self.subject, course.answers(), self.outcomes, batches, self.store, frontier, timed)

    def measure(self, batch: Sequence[Measurement]) -> list[Outcome]:
        """Measure a batch by the launcher; its outcomes in the same order. ``Halted`` if it cannot go on from them."""
        sweep, cells = plan_each(map(self.subject.config, batch), self.subject.source)
        ids = {cell.id for cell in cells}
        # Full precision on these items only if the search asks for it.
        sweep = replace(sweep, cells=tuple(cell for cell in sweep.cells if cell.id in ids))
        known = {cell for cell in ids if self.store.record_path(cell).exists()}
        there = len(known)
        logger.info("search %s: %s", self.question.id, journal.told(batch, len(ids), there))
        started = time.time()
        launcher = dict(self.launcher)
        if batch[0].stage not in CHECKED:
            # The checks of the first batch hold for those between, and each would load torch in a process of its own.
            launcher["check"] = False
        outcome = start.measure(sweep, launcher, self.command, len(batch))
        self._check(outcome, sweep)
        # A search's cost includes planning and choosing since the last batch, and for the first batch its start.
        spent, self.counted = journal.processor_seconds() - self.counted, journal.processor_seconds()
        if self.elsewhere:
            spent = self._seconds_of_jobs(batch, [outcome.records[cell.id] for cell in cells], known)
        for one, cell in zip(batch, cells, strict=True):
            if one.point is not None and one.point not in self.keys:
                self.keys[one.point] = self.subject.unit_keys(cell)
        found = [
            outcome_of(one, outcome.records[cell.id], self.store, self.question.scored)
            for one, cell in zip(batch, cells, strict=True)
        ]
        self.outcomes += found
        self.batches.append(journal.Batch.of(batch, found, len(ids), there, spent, time.time() - started))
        self.note("running")
        return found

    @property
    def elsewhere(self) -> bool:
        """True if cells run on other machines, whose processor time is not known here."""
        return str(self.launcher["_target_"]).endswith("SlurmLauncher")

    def _seconds_of_jobs(
        self, batch: Sequence[Measurement], records: Sequence[Record], known: Collection[str]
    ) -> float:
        """Return the seconds that the new cells of a batch took.

        Each unit is quantized once for all cells, and by every option in the uniform ones.
        """
        uniform = set(self.subject.space.uniform())
        found = 0.0
        for one, record in zip(batch, records, strict=True):
            if record.id not in known:
                first = one.point in uniform and not self.batches
                stages = ("evaluate", "score", *(("calibrate", "quantize") if first else ()))
                found += sum(record.seconds.get(stage, 0.0) for stage in stages)
        return found

    def errors(self) -> Any:
        """Return the errors of the units that were measured.

        What an earlier run read counts first, so that a search takes the same course when the store has evicted units.
        """
        known = self.before.content.get("errors") if self.before else None
        now = read_errors(self.subject.space, self.store, self.keys)
        self.read = [
            [own if old is None else old for own, old in zip(*pair, strict=True)]
            for pair in zip(now, known or [[None] * len(axis) for axis in now], strict=True)
        ]
        return self.read

    def note(self, state: str, **more: Any) -> None:
        """Write ``search.json``, from which another process can tell how far the search has come."""
        errors = self.read or (self.before.content.get("errors") if self.before else None)
        more = {"errors": errors, **more}
        journal.write(self.store, self.question, self.command, state, self.batches, self.before, more)

    def _check(self, outcome: start.Outcome, sweep: Sweep) -> None:
        """Raise ``Halted`` if cells of a batch are missing, or all failed; show those that did."""
        where = sweep_file.command("status", self.store.root, sweep.id)
        if outcome.left:
            raise Halted(
                f"the search waits for {counted(outcome.missing, 'cell')}; {AGAIN} when they have ended: {where}", 0
            )
        if outcome.stopped is not None:
            raise Halted(f"stopped: {outcome.stopped.strerror or outcome.stopped}; {AGAIN}")
        if outcome.missing:
            raise Halted(f"{counted(outcome.missing, 'cell')} of the search did not run; {AGAIN}")
        if failed := outcome.failed:
            start.show_failed(outcome)
            self.failed += len(failed)
            if len(failed) == len(sweep.cells):
                raise Halted(
                    f"every cell of this batch failed; mend the cause and {AGAIN}, or leave out the choice that fails"
                )
