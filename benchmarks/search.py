"""Measure the search's answers and cost, against grids of all cells and against proxies.

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
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

import numpy as np  # noqa: E402

from benchmarks.searches.grids import compared, grid_of  # noqa: E402
from benchmarks.searches.proxies import proxy_tables  # noqa: E402
from benchmarks.searches.replay import replay_of  # noqa: E402
from benchmarks.searches.subjects import SUBJECTS, bits_of  # noqa: E402
from benchmarks.searches.workshop import Workshop  # noqa: E402
from benchmarks.sections import Section, parser_of, report, said  # noqa: E402
from mmq_sweeps.metrics.intervals import paired_difference  # noqa: E402
from mmq_sweeps.metrics.result import MetricResult  # noqa: E402
from mmq_sweeps.search.measuring import Items, Measurement  # noqa: E402
from mmq_sweeps.search.prediction import sensitivity  # noqa: E402
from mmq_sweeps.search.prediction.allocation import ranked  # noqa: E402
from mmq_sweeps.search.settings import Settings  # noqa: E402
from mmq_sweeps.search.space import Budget  # noqa: E402


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
from benchmarks.searches.subjects import SUBJECTS, bits_of
from benchmarks.searches.workshop import Workshop
from mmq_sweeps.search.settings import Settings
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
    """Run a search for each model."""
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


def proxies(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the proxies' allocations by part with the grid's best."""
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
