"""Measure cells in this process, each in turn."""

from __future__ import annotations

import atexit
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.searches.subjects import WIDTHS, Subject
from mmq_sweeps.search.loop import Search
from mmq_sweeps.search.measuring import Measurement, Outcome
from mmq_sweeps.search.prediction import sensitivity
from mmq_sweeps.search.settings import Settings
from mmq_sweeps.search.space import Budget, Option, Point, Space
from mmq_sweeps.store.store import Store


class Workshop:
    """Measures points of a subject in this process, each as a cell of the store at ``folder``."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        from hydra import compose, initialize_config_dir

        from launch.plugin import launchers
        from mmq_sweeps.config import schema
        from mmq_sweeps.config.paths import conf_dir
        from mmq_sweeps.config.sweep import plan, resolved
        from mmq_sweeps.execution.session import Sessions

        schema.register()
        launchers.register()
        overrides = ["method=gptq", "tracker=none", f"store.dir={folder}", *subject.overrides]
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            self.base = resolved(compose("config", overrides=overrides))
        self.subject, self.store = subject, Store.open(folder)
        sweep = plan([self.base])
        self.sessions = Sessions(sweep, self.store)
        self.session = self.sessions.open(sweep.cells[-1])
        self._structures = {name: part.structure for name, part in self.session.parts.items()}
        self._keys: dict[Point, dict[str, str]] = {}
        # Quantized weights are in place within a context of torch, which cannot be left when torch is gone.
        atexit.register(self.session.weights.restore)

    def space(self, granularity: str) -> Space:
        """Return the space of the subject's parts."""
        from mmq_sweeps.config.instantiate import build
        from mmq_sweeps.search.sizing import Candidate, space_of

        node = {key: value for key, value in self.base["method"].items() if key != "calibration"}
        method = build("method", node)
        candidates = [Candidate(Option(bits, label=str(bits)), None if bits == 16 else method) for bits in WIDTHS]
        name = self.base["model"]["name"]
        return space_of(
            name, self.session.loaded.model, self.session.parts, self.subject.parts, candidates, granularity
        )

    def requests(self, content: Mapping[str, Any], task: Mapping[str, Any] | None = None) -> tuple[Any, Any, list[Any]]:
        """Return the cell of an assignment's content, its session, and the units that it needs."""
        from mmq_sweeps.config.assignment import Source
        from mmq_sweeps.config.sweep import plan

        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(content, file)
            file.flush()
            config = {**self.base, "assignment": file.name, "task": {**self.base["task"], **(task or {})}}
            sweep = plan([config], Source(structures=lambda _: self._structures))
        cell = sweep.cells[-1]
        self.sessions.sweep.configs.update(sweep.configs)
        session = self.sessions.open(cell)
        return cell, session, session.requests(cell)

    def measure(self, space: Space, seed: int, one: Measurement) -> Outcome:
        """Measure as ``mmq_sweeps`` does and save the record, or read the record that the store has."""
        from mmq_sweeps.execution.executor import quiet_libraries
        from mmq_sweeps.execution.run_cell import run_cell
        from mmq_sweeps.reporting.compare import results_of
        from mmq_sweeps.reporting.progress import Progress

        started = time.process_time()
        content = {"parts": dict.fromkeys(self.subject.parts, 16)} if one.point is None else space.content(one.point)
        cell, session, needed = self.requests(content, self._task(seed, one))
        if one.point is not None:
            self._keys[one.point] = {request.unit.name: request.key for request in needed}
        record = self.store.record(cell.id)
        if record is None:
            with quiet_libraries(), Progress(1) as progress:
                record, items = run_cell(cell, session, progress)
            record = self.store.save(record, items)
        items = self.store.items(cell.id)
        total = record.size["total"]
        forced = one.items.teacher_forced
        return Outcome(
            one,
            results_of(record, items)["log_likelihood" if forced else self.subject.metric],
            round(total["bpw_exact"] * total["parameters"]),
            time.process_time() - started,
            cell.id,
            {item["id"]: item["prediction"] for item in items} if forced else {},
        )

    def _task(self, seed: int, one: Measurement) -> dict[str, Any]:
        if one.items.split != "search":
            return {}
        apart = {"samples": self.base["calibration"]["samples"], "seed": self.base["calibration"]["seed"]}
        sample = {"seed": seed, "start": one.items.start, "stop": one.items.stop, "apart_from": apart}
        found = {"split": self.base["task"]["calibration_split"], "sample": sample}
        return found | ({"teacher_forced": True, "metrics": ["log_likelihood"]} if one.items.teacher_forced else {})

    def errors(self, space: Space) -> Any:
        """Return the errors that the units' descriptions record."""
        return sensitivity.read_errors(space, self.store, self._keys)

    def run(self, space: Space, budgets: Iterable[float], settings: Settings) -> Search:
        """Run a search to its end."""
        search = Search(space, [Budget.of_bpw(own, space) for own in budgets], settings, lambda: self.errors(space))
        while batch := search.ask():
            search.tell([self.measure(space, settings.seed, one) for one in batch])
        return search


class Silent:
    """A reporter that says nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: None
