"""Measure the search: what it finds and what it costs, against grids of all cells and against proxies.

    OMP_NUM_THREADS=1 python benchmarks/search.py [--json] [--only SECTION ...] [--stores DIR] [--seeds 10]

parts     one axis a part. The grid of an embedded model is run once, on its evaluation items and on a pool of the calibration
          split's; searches of several seeds are then replayed from the predictions of the pool, for all budgets at once, each
          on items of its own. Reports how often the found cell is within the paired 95 % interval of the best cell of the
          grid, and the evaluated items against the grid's. CIDEr is computed anew on each set of items
real      one search a model of the same budgets, run for real in a process and store of its own: its processor time, from
          the start of the interpreter, against the grid's
proxies   the cell that each proxy allocates at the same budgets: output error, gradient x error, divergence
units     a real search with one axis a unit, against the best cell by part within the budget and against the proxies by unit

``--stores`` keeps the grids (ten minutes of a processor for the captioner's), so that they are run once.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import numpy as np  # noqa: E402

from benchmarks.sections import Section, parser_of, report, said  # noqa: E402
from mmq_sweeps.metrics.intervals import paired_difference, result_of  # noqa: E402
from mmq_sweeps.metrics.result import MetricResult  # noqa: E402
from mmq_sweeps.search import sensitivity  # noqa: E402
from mmq_sweeps.search.allocation import ranked  # noqa: E402
from mmq_sweeps.search.loop import Measurement, Outcome, Search, Settings  # noqa: E402
from mmq_sweeps.search.space import Budget, Option, Point, Space  # noqa: E402
from mmq_sweeps.store.store import Store  # noqa: E402

WIDTHS = (2, 3, 4, 5, 6, 8, 16)
# Of the drawn order of the pool: the calibration samples have the reader's own seed 0.
POOL_SEED = 7


@dataclass(frozen=True)
class Subject:
    """An embedded model with its task: the overrides, the searched parts, the pool's items, budgets by part and by unit."""

    name: str
    overrides: tuple[str, ...]
    parts: tuple[str, ...]
    metric: str
    pool: int
    budgets: tuple[float, ...]
    finer: tuple[float, ...]

    @property
    def axes(self) -> list[str]:
        widths = ",".join(map(str, WIDTHS))
        return [f"component.{part}.bits={widths}" for part in self.parts]


SUBJECTS = {
    "captioner": Subject(
        "captioner", (), ("vision", "connector", "language"), "cider", 600, (3, 3.5, 4, 5), (3.1, 3.3, 3.6, 4.0, 4.5)
    ),
    # The least that these weigh is 4.01 and 3.83 bits: the same distances from the least as the captioner's 2.99.
    "llava": Subject(
        "llava", ("model=tiny_llava", "task=scenes_vqa", "component=vision_language"), ("vision", "language"),
        "gqa_accuracy", 1500, (4.02, 4.52, 5.02, 6.02), (4.12, 4.32, 4.62, 5.02, 5.52),
    ),
    "retriever": Subject(
        "retriever", ("model=tiny_blip2_itm", "task=scenes_retrieval", "component=vision_connector"),
        ("vision", "connector"), "text_recall_at_1", 300, (3.84, 4.34, 4.84, 5.84), (3.94, 4.14, 4.44, 4.84, 5.34),
    ),
}  # fmt: skip


# Grids


@dataclass(frozen=True)
class Grid:
    """The cells of a grid by bits of its parts: results, sizes, predictions; and the processor seconds that it took."""

    results: dict[tuple[int, ...], MetricResult]
    bits: dict[tuple[int, ...], int]
    predictions: dict[tuple[int, ...], dict[str, str]]
    seconds: float

    def best(self, bits: int) -> tuple[int, ...]:
        """Return the cell of best value within ``bits``."""
        return max((key for key in self.results if self.bits[key] <= bits), key=lambda key: self.results[key].value)


def grid_of(subject: Subject, folder: Path, pool: bool) -> Grid:
    """Run a grid unless ``folder`` has it, and read it."""
    store = folder / f"{subject.name}{'_pool' if pool else ''}"
    timed = store.with_suffix(".time")
    if not timed.is_file():
        extra = (
            [f"task.split=calibration task.data.seed={POOL_SEED} task.limit={subject.pool}".split()] if pool else [[]]
        )
        said(f"{store.name}: {len(WIDTHS) ** len(subject.parts)} cells")
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "mmq_sweeps", "-m", "method=gptq", "tracker=none", f"store.dir={store}",
             *subject.overrides, *subject.axes, *extra[0]],
            cwd=CHECKOUT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        after = os.times()
        timed.write_text(
            f"{after.children_user - before.children_user} {after.children_system - before.children_system}"
        )
    return _read(store, subject, sum(map(float, timed.read_text().split()[:2])))


def _read(folder: Path, subject: Subject, seconds: float) -> Grid:
    from mmq_sweeps.reporting.compare import results_of

    store = Store.reading(folder)
    found = Grid({}, {}, {}, seconds)
    for record in store.summaries():
        key = tuple(record.cell["parts"].get(part, {}).get("bits", 16) for part in subject.parts)
        items, total = store.items(record.id), record.size["total"]
        found.results[key] = results_of(record, items)[subject.metric]
        found.bits[key] = round(total["bpw_exact"] * total["parameters"])
        found.predictions[key] = {item["id"]: item["prediction"] for item in items}
    assert len(found.results) == len(WIDTHS) ** len(subject.parts), f"{folder} has {len(found.results)} cells"
    return found


# Cells in this process


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
        """Measure as ``mmq_sweeps`` does, and save the record; one that the store has is read."""
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
        """Return what the units' descriptions say."""
        return sensitivity.read_errors(space, self.store, self._keys)

    def run(self, space: Space, budgets: Iterable[float], settings: Settings) -> Search:
        """Run a search to its end."""
        search = Search(space, [Budget.of_bpw(own, space) for own in budgets], settings, lambda: self.errors(space))
        while batch := search.ask():
            search.tell([self.measure(space, settings.seed, one) for one in batch])
        return search


def bits_of(space: Space, point: Point | None, parts: Sequence[str]) -> tuple[int, ...]:
    """Return the bits of every part of a point of a space by part."""
    if point is None:
        return (16,) * len(parts)
    return tuple(axis.options[place].bits for axis, place in zip(space.axes, point, strict=True))


# Replays


@dataclass
class Replay:
    """Answers measurements of a search by part from the predictions of two grids."""

    subject: Subject
    space: Space
    errors: Any
    grid: Grid
    pool: Grid
    _scores: dict[Any, MetricResult] = field(default_factory=dict)

    @cached_property
    def references(self) -> dict[str, tuple[str, ...]]:
        from mmq_sweeps.data.scenes import Scenes

        examples = Scenes(split="calibration", count=self.subject.pool, seed=POOL_SEED)
        return {example.id: tuple(example.references) for example in examples}

    def run(self, seed: int) -> tuple[Search, list[dict[str, Any]]]:
        """Run a search; return it, and for every budget how its answer compares with the grid's best cell."""
        budgets = [Budget.of_bpw(own, self.space) for own in self.subject.budgets]
        settings = Settings(self.subject.metric, seed).within(len(next(iter(self.pool.results.values())).per_item))
        search = Search(self.space, budgets, settings, lambda: self.errors)
        while batch := search.ask():
            search.tell([self._outcome(seed, one) for one in batch])
        return search, [self._compared(answer) for answer in search.answers()]

    def _compared(self, answer: Any) -> dict[str, Any]:
        return compared(self.grid, bits_of(self.space, answer.point, self.subject.parts), answer.budget)

    def _outcome(self, seed: int, one: Measurement) -> Outcome:
        key = bits_of(self.space, one.point, self.subject.parts)
        if one.items.split != "search":
            return Outcome(one, self.grid.results[key], self.grid.bits[key])
        ids = list(self.pool.results[key].per_item)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ids))
        chosen = tuple(ids[place] for place in order[one.items.start : one.items.stop])
        return Outcome(one, self._result(key, chosen), self.grid.bits[key])

    def _result(self, key: tuple[int, ...], chosen: tuple[str, ...]) -> MetricResult:
        if self.subject.metric == "cider":
            return self._captioned(key, chosen)
        from mmq_sweeps.metrics.base import Scores
        from mmq_sweeps.metrics.names import load_metric

        scores = np.array([self.pool.results[key].per_item[item] for item in chosen])
        return result_of(load_metric(self.subject.metric), chosen, Scores.mean(scores))

    def _captioned(self, key: tuple[int, ...], chosen: tuple[str, ...]) -> MetricResult:
        """Score anew: what an n-gram weighs depends on the references of all items."""
        from mmq_sweeps.metrics import CaptionScorer

        if chosen not in self._scores:
            self._scores[chosen] = CaptionScorer({item: list(self.references[item]) for item in chosen})  # type: ignore
        scorer: Any = self._scores[chosen]
        return scorer.score({item: self.pool.predictions[key][item] for item in chosen})["cider"]  # type: ignore


def compared(grid: Grid, key: tuple[int, ...], budget: Budget) -> dict[str, Any]:
    """Compare a cell with the best of the grid within a budget; ``within`` is False if it is significantly worse."""
    best = grid.best(budget.bits)
    difference = paired_difference(grid.results[best], grid.results[key])
    return {
        "budget": budget.text, "found": key, "best": best, "value": grid.results[key].value,
        "best_value": grid.results[best].value, "difference": difference.value, "interval": difference.interval,
        "within": difference.interval[1] >= 0,
    }  # fmt: skip


def replay_of(subject: Subject, folder: Path) -> Replay:
    """Read the grids, and the space and errors of units, which are solved once."""
    kept = folder / f"{subject.name}_space.pickle"
    if not kept.is_file():
        workshop = Workshop(subject, folder / f"errors_{subject.name}")
        space = workshop.space("part")
        for point in space.uniform():
            if bits_of(space, point, subject.parts) != (16,) * len(subject.parts):
                content = space.content(point)
                cell, session, needed = workshop.requests(content)
                session.quantize(cell, _Silent())
                workshop._keys[point] = {request.unit.name: request.key for request in needed}
        kept.write_bytes(pickle.dumps((space, workshop.errors(space))))
    space, errors = pickle.loads(kept.read_bytes())  # noqa: S301 - our own file
    return Replay(subject, space, errors, grid_of(subject, folder, False), grid_of(subject, folder, True))


class _Silent:
    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: None


# Sections


def parts(options: argparse.Namespace) -> dict[str, Any]:
    """Replay searches of several seeds."""
    found = {}
    for name in options.models:
        replay = replay_of(SUBJECTS[name], options.stores)
        runs = []
        for seed in range(options.seeds):
            said(f"{name}: seed {seed}")
            search, answers = replay.run(seed)
            runs.append({"seed": seed, "answers": answers, "costs": search.costs()})
        cells = len(replay.grid.results)
        grid_items = sum(result.count for result in replay.grid.results.values())
        found[name] = {"cells": cells, "grid_items": grid_items, "grid_seconds": replay.grid.seconds, "runs": runs}
    return found


def parts_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for name, own in found.items():
        yield f"{name}: {own['cells']} cells, {own['grid_items']:,} items, {own['grid_seconds']:.0f} processor seconds"
        for place, first in enumerate(own["runs"][0]["answers"]):
            answers = [run["answers"][place] for run in own["runs"]]
            within = sum(answer["within"] for answer in answers)
            same = sum(answer["found"] == answer["best"] for answer in answers)
            worst = min(answer["difference"] for answer in answers)
            yield (
                f"  {first['budget']}: within the interval of the best {tuple(first['best'])} ({first['best_value']:.4f}) "
                f"{within} of {len(answers)}, the best itself {same}, lowest difference {worst:+.4f}"
            )
        items = [run["costs"]["items"] for run in own["runs"]]
        finals = [run["costs"]["stages"]["final"]["items"] for run in own["runs"]]
        yield (
            f"  evaluated items, all budgets together: {np.mean(items):,.0f} (at most {max(items):,}), of which final "
            f"{np.mean(finals):,.0f}: a {own['grid_items'] / np.mean(items):.0f}th of the grid's (to be a 40th)"
        )


REAL = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from benchmarks.search import SUBJECTS, Settings, Workshop, bits_of
subject = SUBJECTS[sys.argv[2]]
workshop = Workshop(subject, Path(sys.argv[3]))
space = workshop.space("part")
search = workshop.run(space, subject.budgets, Settings(subject.metric, int(sys.argv[4])))
used = resource.getrusage(resource.RUSAGE_SELF)
children = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "seconds": used.ru_utime + used.ru_stime + children.ru_utime + children.ru_stime, "costs": search.costs(),
    "found": {answer.budget.text: bits_of(space, answer.point, subject.parts) for answer in search.answers()},
}))
"""


def real(options: argparse.Namespace) -> dict[str, Any]:
    """Run one search a model."""
    found = {}
    for name in options.models:
        said(name)
        grid = grid_of(SUBJECTS[name], options.stores, False)
        space = replay_of(SUBJECTS[name], options.stores).space
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-c", REAL, str(CHECKOUT), name, folder, str(options.seed)], cwd=CHECKOUT,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}, stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        told = json.loads(done.stdout.splitlines()[-1])
        budgets = {own.text: own for own in (Budget.of_bpw(value, space) for value in SUBJECTS[name].budgets)}
        answers = [compared(grid, tuple(key), budgets[text]) for text, key in told["found"].items()]
        found[name] = {**told, "answers": answers, "grid_seconds": grid.seconds}
    return found


def real_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for name, own in found.items():
        within = sum(answer["within"] for answer in own["answers"])
        yield (
            f"{name}: {own['seconds']:.1f} processor seconds against {own['grid_seconds']:.1f}: a "
            f"{own['grid_seconds'] / own['seconds']:.1f}th (to be a 12th); {own['costs']['cells']} cells, "
            f"{own['costs']['items']:,} items; within the interval at {within} of {len(own['answers'])} budgets"
        )


# Proxies


def proxy_tables(workshop: Workshop, space: Space) -> dict[str, list[np.ndarray]]:
    """Return the tables of every proxy by axis and option: sums over units of output error, gradient x error, divergence."""
    by_unit = _unit_figures(workshop)
    found = {}
    for proxy in ("output error", "gradient x error", "divergence"):
        found[proxy] = [
            np.array(
                [
                    0.0 if one.full else sum(by_unit[proxy][unit, one.bits] for unit in axis.units)
                    for one in axis.options
                ]
            )
            for axis in space.axes
        ]
    return found


def _unit_figures(workshop: Workshop) -> dict[str, dict[tuple[str, int], float]]:
    """Return every proxy of every unit and width, from 64 samples of the calibration split apart from the calibration's."""
    import torch

    from mmq_sweeps.quantization.stored_units import Dequantized, read_unit
    from mmq_sweeps.store.kinds import ArtifactKind

    found: dict[str, dict[tuple[str, int], float]] = {"output error": {}, "gradient x error": {}, "divergence": {}}
    loaded = workshop.session.loaded
    workshop.session.weights.restore()
    batches = list(workshop.session.task.calibration_batches(loaded, {"samples": 64, "seed": 99, "batch_size": 16}))
    full = _log_probabilities(loaded, batches)
    gradients = _gradients(workshop, batches)
    for bits in WIDTHS[:-1]:
        cell, session, needed = workshop.requests({"parts": dict.fromkeys(workshop.subject.parts, bits)})
        session.quantize(cell, _Silent())
        session.weights.restore()
        for request in needed:
            unit = read_unit(request, workshop.store)
            described = workshop.store.description(ArtifactKind.QUANTIZED, request.key)
            assert unit is not None
            assert described is not None
            key, weights = (request.unit.name, bits), unit[0]
            count = sum(rows * columns for rows, columns in request.unit.linears.values())
            found["output error"][key] = described["output_error"] * count
            found["gradient x error"][key] = sum(
                float((gradients[name] * (loaded.weight(name) - own.dequantize())).abs().sum())
                for name, own in weights.items()
            )
            with torch.no_grad(), loaded.weights_replaced(Dequantized(weights)):
                other = _log_probabilities(loaded, batches)
            found["divergence"][key] = float((full.exp() * (full - other)).sum(-1).mean())
    return found


def _log_probabilities(loaded: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
    import torch

    found = []
    with torch.no_grad():
        for batch in batches:
            moved = loaded.to_device(dict(batch))
            mask = moved["attention_mask"].bool()
            found.append(loaded.model(**moved).logits[:, -mask.shape[1] :].float().log_softmax(-1)[mask])
    return torch.cat(found)


def _gradients(workshop: Workshop, batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the gradient of the right texts' loss by the weight of every linear."""
    import torch

    loaded, model = workshop.session.loaded, workshop.session.loaded.model
    names = [
        name for part in workshop.subject.parts for unit in workshop.session.parts[part].units for name in unit.linears
    ]
    weights = {name: model.get_submodule(name).weight for name in names}
    model.requires_grad_(False)
    for weight in weights.values():
        weight.requires_grad_(True)
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with torch.enable_grad():
        for batch in batches:
            moved = loaded.to_device(dict(batch))
            mask, tokens = moved["attention_mask"].bool(), moved["input_ids"]
            logits = model(**moved).logits[:, -mask.shape[1] :].float()
            losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
            own = torch.autograd.grad((losses * mask[:, 1:]).sum() / mask[:, 1:].sum(), list(weights.values()))
            for name, gradient in zip(names, own, strict=True):
                found[name] += gradient / len(batches)
    model.requires_grad_(False)
    return found


def proxies(options: argparse.Namespace) -> dict[str, Any]:
    """Compare what proxies allocate by part with the grid's best."""
    found = {}
    for name in [own for own in options.models if own != "retriever"]:
        said(name)
        replay = replay_of(SUBJECTS[name], options.stores)
        workshop = Workshop(replay.subject, options.stores / f"errors_{name}")
        tables = proxy_tables(workshop, replay.space)
        found[name] = []
        for value in replay.subject.budgets:
            budget = Budget.of_bpw(value, replay.space)
            for proxy, table in tables.items():
                ((point, _),) = ranked(table, replay.space.sizes, budget.bits - replay.space.base_bits, 1)
                key = bits_of(replay.space, point, replay.subject.parts)
                found[name].append({"proxy": proxy, **compared(replay.grid, key, budget)})
    return found


def proxies_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for name, rows in found.items():
        for row in rows:
            mark = "" if row["within"] else ", significantly worse"
            yield (
                f"{name} {row['budget']}: {row['proxy']} {tuple(row['found'])} {row['value']:.4f} against "
                f"{tuple(row['best'])} {row['best_value']:.4f}: {row['difference']:+.4f}{mark}"
            )


def units(options: argparse.Namespace) -> dict[str, Any]:
    """Search by unit, and measure the proxies' allocations by unit on the evaluation items."""
    from mmq_sweeps.search.loop import Items

    found = {}
    for name in options.models:
        subject = SUBJECTS[name]
        grid = grid_of(subject, options.stores, False)
        workshop = Workshop(subject, options.stores / f"units_{name}")
        space = workshop.space(options.granularity)
        said(f"{name}: {len(space.axes)} axes")
        started = time.process_time()
        settings = Settings(subject.metric, options.seed, forced=0 if name == "retriever" else 64).finer()
        search = workshop.run(space, subject.finer, settings.within(_limit(workshop)))
        seconds = time.process_time() - started
        tables = {} if name == "retriever" else proxy_tables(workshop, space)
        if name == "retriever":
            tables = {"output error": sensitivity.error_table(space, workshop.errors(space))}
        rows = []
        for answer in search.answers():
            best = grid.best(answer.budget.bits)
            rivals = {"best by part": grid.results[best]}
            for proxy, table in tables.items():
                ((point, _),) = ranked(table, space.sizes, answer.budget.bits - space.base_bits, 1)
                outcome = workshop.measure(space, options.seed, Measurement(point, Items(), "final"))
                assert outcome.result is not None
                rivals[proxy] = outcome.result
            rows.append({
                "budget": answer.budget.text, "value": answer.quality.value, "bpw": answer.bpw, "best": best,
                "point": [axis.options[place].bits for axis, place in zip(space.axes, answer.point, strict=True)],
                "rivals": {rival: _against(result, answer.quality) for rival, result in rivals.items()},
            })  # fmt: skip
            said(f"{rows[-1]}")
        found[name] = {"rows": rows, "costs": search.costs(), "seconds": seconds, "axes": len(space.axes)}
    return found


def _limit(workshop: Workshop) -> int:
    return int(workshop.base["task"]["limit"])


def _against(rival: MetricResult, quality: MetricResult) -> dict[str, Any]:
    difference = paired_difference(rival, quality)
    return {"value": rival.value, "difference": difference.value, "interval": difference.interval}


def units_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for name, own in found.items():
        yield (
            f"{name}: {own['axes']} axes, {own['costs']['cells']} cells, {own['costs']['items']:,} items, "
            f"{own['seconds']:.0f} processor seconds for all budgets"
        )
        for row in own["rows"]:
            told = []
            for rival, one in row["rivals"].items():
                low, high = one["interval"]
                told.append(
                    f"{rival} {one['value']:.4f} ({one['difference']:+.4f}{'*' if low > 0 or high < 0 else ''})"
                )
            yield f"  {row['budget']}: {row['value']:.4f} at {row['bpw']:.4f} bits; {', '.join(told)}"


SECTIONS: dict[str, Section] = {
    "parts": (parts, parts_lines),
    "real": (real, real_lines),
    "proxies": (proxies, proxies_lines),
    "units": (units, units_lines),
}


def main() -> None:
    parser = parser_of(SECTIONS, __doc__)
    parser.add_argument("--stores", type=Path, help="folder of the grids' stores; default: a temporary one")
    parser.add_argument("--models", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=10, help="searches replayed a model (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the real searches")
    parser.add_argument("--granularity", choices=["kind", "group", "unit"], default="unit", help="of the section units")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options.stores = options.stores or Path(folder)
        options.stores.mkdir(parents=True, exist_ok=True)
        report(SECTIONS, options)


if __name__ == "__main__":
    main()
