"""Measure the cost of a grid whose cells share work, and of planning, submitting and watching sweeps.

    OMP_NUM_THREADS=2 python benchmarks/sweep.py [--json] [--only SECTION ...] [--sample 12] [--levels 2,3,4,5,6,8,16]

grid      686 cells (gptq and awq x 7 bit-widths each for vision, connector and language) as a single sweep, against a
          random sample of them run as in the study's code: a process for each cell that loads, calibrates, quantizes
          all parts, evaluates and scores without sharing. Reports processor time a cell, Java's tokenizer included.
          Fewer --levels make a smaller grid, which shares less
fixed     overhead of a further cell in a warm process with all of its work shared, besides evaluating and scoring,
          without a tracker and with offline W&B
records   `launch status` and `launch plan` with 10,000 records in the store
submit    1,000 cells as jobs of a SLURM cluster started for it (needs SLURM's programs, and root)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.against import spent  # noqa: E402
from benchmarks.sections import Section, parser_of, report, said  # noqa: E402
from mmq_sweeps.config.sweep import Sweep  # noqa: E402
from mmq_sweeps.identity.cell import Cell  # noqa: E402
from mmq_sweeps.store.store import Store  # noqa: E402

LEVELS = "2,3,4,5,6,8,16"
METHODS = ["-m", "method=gptq,awq", "tracker=none"]
WARM = [*METHODS, "component.vision.bits=3,4", "component.connector.bits=3,4", "component.language.bits=2,3,4,5,6,8"]
RECORDS = 10_000
SUBMITTED = [
    "-m", "method=rtn", "tracker=none", "component.vision.bits=2,3,4,5,6,7,8,16",
    "component.connector.bits=2,3,4,5,6,7,8,16", "component.language.bits=2,3,4,5,6,7,8,16",
    "method.group_size=channel,32", "hydra/launcher=slurm", "hydra.launcher.wait=false", "hydra.launcher.cells_per_job=10",
    "hydra.launcher.sbatch={hold: true}",
]  # fmt: skip


def cells_of(levels: str) -> list[str]:
    """Return the overrides of the grid with these bit-widths."""
    return [*METHODS, *(f"component.{part}.bits={levels}" for part in ("vision", "connector", "language"))]


def run(module: str, arguments: Sequence[str], **environment: str) -> tuple[float, float, str]:
    """Run a command; return processor seconds including child processes, wall seconds, and standard output."""
    return spent(CHECKOUT, ["-m", module, *arguments], **environment)


def grid(options: argparse.Namespace) -> dict[str, Any]:
    asked_for, sample = cells_of(options.levels), options.sample
    with tempfile.TemporaryDirectory() as folder:
        taken, wall, _ = run("mmq_sweeps", [*asked_for, f"store.dir={folder}/shared"])
        store = Store.reading(Path(folder, "shared"))
        (noted,) = Path(folder, "shared", "sweeps").glob("*/sweep.json")
        shared = {record.id: record for record in store.records()}
        asked = [cell for cell in Sweep.from_json(json.loads(noted.read_text())).cells if cell.id in shared]
        chosen = random.Random(0).sample(asked, sample)
        alone = []
        for index, cell in enumerate(chosen):
            said(f"alone {index + 1} of {sample}: {cell.title()}")
            alone.append(_alone(cell, noted, Path(folder, f"alone{index}"), shared[cell.id].metrics))
        again, _, _ = run("mmq_sweeps", [*asked_for, f"store.dir={folder}/shared"])
    each, apart = taken / len(asked), statistics.mean(one["processor_seconds"] for one in alone)
    return {
        "cells": len(asked),
        "sweep_wall_seconds": wall,
        "sweep_processor_seconds": taken,
        "again_processor_seconds": again,
        "processor_seconds_a_cell": each,
        "alone_processor_seconds_a_cell": apart,
        "alone_lowest": min(one["processor_seconds"] for one in alone),
        "alone_highest": max(one["processor_seconds"] for one in alone),
        "sampled": sample,
        "equal_metrics": sum(one["equal"] for one in alone),
        "ratio": apart / each,
    }


# A cell as the study's code ran it, without sharing: a new store, and no baseline for comparison.
ALONE = """
import json, sys
from pathlib import Path
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.store import Store
from mmq_sweeps.config.sweep import Sweep
noted, cell_id, folder = sys.argv[1:]
sweep = Sweep.from_json(json.loads(Path(noted).read_text()))
cell = next(cell for cell in sweep.cells if cell.id == cell_id)
with quiet_libraries(), Progress(1) as progress:
    session = Sessions(Sweep((cell,), sweep.configs, sweep.settings), Store.open(folder)).open(cell)
    session.task.check([cell.calibration] if cell.calibration else [], session.references)
    record, _ = record_cell(cell, session, progress)
print(json.dumps({"metrics": record.metrics, "error": record.error}))
"""


def _alone(cell: Cell, noted: Path, folder: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    arguments = ["-c", ALONE, str(noted), cell.id, str(folder)]
    taken, _, output = spent(CHECKOUT, arguments, OMP_WAIT_POLICY="PASSIVE")
    told = json.loads(output)
    assert told["error"] is None, told["error"]
    return {"processor_seconds": taken, "equal": told["metrics"] == json.loads(json.dumps(expected))}


def grid_lines(found: Mapping[str, Any]) -> Iterable[str]:
    wall, processor = found["sweep_wall_seconds"], found["sweep_processor_seconds"]
    yield f"{found['cells']} cells as one sweep: {wall:.0f} s, processor time {processor:.0f} s"
    yield f"the same command again: processor time {found['again_processor_seconds']:.1f} s"
    each, apart = found["processor_seconds_a_cell"], found["alone_processor_seconds_a_cell"]
    spread = f"{found['alone_lowest']:.2f} to {found['alone_highest']:.2f}, {found['sampled']} cells"
    yield f"processor time a cell: {each:.2f} s; alone {apart:.2f} s ({spread}): {found['ratio']:.1f} times (to be at least 13)"
    yield f"identical metrics: {found['equal_metrics']} of {found['sampled']}"


def fixed(options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    """Time the second run of a small grid in a single process, after its records, but not its artifacts, were deleted."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        run("mmq_sweeps", [*WARM, f"store.dir={folder}"])
        (noted,) = Path(folder, "sweeps").glob("*/sweep.json")
        for tracker in ("none", "wandb"):
            arguments = ["-c", WARM_CELLS, str(noted), folder, tracker]
            _, _, output = spent(CHECKOUT, arguments, OMP_WAIT_POLICY="PASSIVE")
            found[tracker] = json.loads(output.splitlines()[-1])
    return found


WARM_CELLS = """
import json, shutil, statistics, sys, time
from dataclasses import asdict
from pathlib import Path
from omegaconf import OmegaConf
from mmq_sweeps.execution.executor import execute
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.store import Store
from mmq_sweeps.config.sweep import Sweep
noted, folder, tracker = sys.argv[1:]
sweep = Sweep.from_json(json.loads(Path(noted).read_text()))
sweep.settings["tracker"] = OmegaConf.to_container(
    OmegaConf.load(conf_dir() / "tracker" / f"{tracker}.yaml"), resolve=True
)
shutil.rmtree(Path(folder, "cells"))
Path(folder, "cells").mkdir()
ended, records = [], []
def keep(record):
    assert record.done, record.error
    ended.append(time.perf_counter())
    records.append(record)
with Progress(len(sweep.cells)) as progress:
    execute(sweep.cells, sweep, Claims(Store.open(folder)), progress, keep)
drained = time.perf_counter() - ended[-1]
# The first cells load; of the others, those after one with the same vision and connector have all of their work shared.
rest = []
for place in range(4, len(records)):
    record, before = records[place], records[place - 1]
    same = all(record.cell["parts"].get(part) == before.cell["parts"].get(part) for part in ("vision", "connector"))
    if same and record.names["method"] == before.names["method"]:
        seconds = record.seconds
        rest.append((ended[place] - ended[place - 1], seconds["evaluate"], seconds["score"]))
print(json.dumps({
    "cells": len(rest),
    "fixed_seconds": statistics.median(wall - evaluate - score for wall, evaluate, score in rest),
    "evaluate_seconds": statistics.median(evaluate for _, evaluate, _ in rest),
    "score_seconds": statistics.median(score for _, _, score in rest),
    "drained_seconds": drained,
}))
"""


def fixed_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for tracker, limit in (("none", 50), ("wandb", 150)):
        one = found[tracker]
        fixed_ms, evaluate, score = (one[f"{what}_seconds"] * 1000 for what in ("fixed", "evaluate", "score"))
        yield (
            f"tracker={tracker}: {fixed_ms:.0f} ms besides evaluating ({evaluate:.0f} ms) and scoring ({score:.0f} ms), "
            f"median of {one['cells']} cells (to be under {limit} ms); {one['drained_seconds']:.1f} s at the end"
        )


def records(options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    """Time both commands on a store with 10,000 records, copies of a real record, in a sweep of as many cells."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder, "runs"))
        run("mmq_sweeps", ["method=gptq", "bits=3", "task.limit=20", "calibration.samples=16", "tracker=none",
                           f"store.dir={store.root}"])  # fmt: skip
        (noted,) = (store.root / "sweeps").glob("*/sweep.json")
        sweep = Sweep.from_json(json.loads(noted.read_text()))
        real, cell = sweep.cells[-1], store.record(sweep.cells[-1].id)
        assert cell is not None
        items = store.items(cell.id)
        cells = [replace(real, task={**real.task, "limit": 1000 + number}) for number in range(RECORDS)]
        for one in cells:
            store.save(replace(cell, id=one.id, cell=one.effective), items)
        sweep_id = _written(
            store, Sweep(tuple(cells), {one.id: sweep.configs[real.id] for one in cells}, sweep.settings)
        )
        asked = ["--store", str(store.root), "--sweep", sweep_id]
        status = [run("launch", ["status", *asked])[1] for _ in range(3)]
        plan = ["plan", *cells_of(LEVELS)[1:], "hydra.launcher.check=false", f"store.dir={store.root}"]
        planned = [run("launch", plan)[1] for _ in range(3)]
    return {"records": RECORDS, "status_seconds": statistics.median(status), "plan_seconds": statistics.median(planned)}


def _written(store: Store, sweep: Sweep) -> str:
    from launch import sweep_file
    from launch.planning.plan import make_plan

    made = make_plan(sweep, store.summary, store.record_sha, {"_target_": "LocalLauncher"}, len(sweep.cells))
    return sweep_file.write(store, made, "python benchmarks/sweep.py", {"_target_": "LocalLauncher"})


def records_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for what in ("status", "plan"):
        yield f"{what} with {found['records']:,} records: {found[f'{what}_seconds']:.1f} s (to be under 10 s)"


def submit(options: argparse.Namespace) -> dict[str, Any]:  # noqa: ARG001
    """Time planning and submitting only: the jobs are held."""
    cluster_module = importlib.import_module("tests.launch.slurm.cluster")
    if missing := cluster_module.missing_programs():
        raise SystemExit(f"no {', '.join(missing)}: {cluster_module.INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        cluster = cluster_module.Cluster(Path(folder, "slurm"))
        cluster.root.mkdir()
        cluster.up()
        environment = cluster.environment
        try:
            store = [f"store.dir={folder}/runs"]
            _, seconds, _ = run("mmq_sweeps", [*SUBMITTED, *store], **environment)
            queued = subprocess.run(["squeue", "-h", "-r", "-o", "%A"], env={**os.environ, **environment},
                                    capture_output=True, text=True, check=True)  # fmt: skip
            (noted,) = Path(folder, "runs", "sweeps").glob("*/sweep.json")
            cells = len(json.loads(noted.read_text())["cells"])
            run("launch", ["cancel", "--store", f"{folder}/runs"], **environment)
        finally:
            cluster.down()
    return {"cells": cells, "jobs": len(queued.stdout.split()), "seconds": seconds}


def submit_lines(found: Mapping[str, Any]) -> Iterable[str]:
    yield f"{found['cells']:,} cells submitted as {found['jobs']} jobs in {found['seconds']:.1f} s (1,000 to be under 30 s)"


SECTIONS: dict[str, Section] = {
    "fixed": (fixed, fixed_lines),
    "records": (records, records_lines),
    "submit": (submit, submit_lines),
    "grid": (grid, grid_lines),
}


def main() -> None:
    parser = parser_of(SECTIONS, __doc__)
    parser.add_argument("--sample", type=int, default=12, help="cells that are also run alone (default: 12)")
    parser.add_argument("--levels", default=LEVELS, help=f"bit-widths of every part in the grid (default: {LEVELS})")
    report(SECTIONS, parser.parse_args())


if __name__ == "__main__":
    main()
