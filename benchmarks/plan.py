"""Measure the processor time of planning a grid, against another checkout's.

    python benchmarks/plan.py [--tree OTHER] [--cells 1728 10000] [--pairs 3] [--json]

Each plan is `launch plan --json` in a process of its own, into an empty store; its start and imports are counted. With --tree
(a checkout of an earlier commit: `git worktree add OTHER COMMIT`) both sides plan the same grid in turns, and the ratio
is the median of the pairs' ratios of the other side's time to ours. A grid has three methods, six bit-widths of each
of three parts, and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
BITS = "2,3,4,5,6,7"
METHODS = "method=rtn,gptq,awq"
# Cells of all methods at six bit-widths of each of three parts.
CELLS_A_SEED = 3 * 6**3


def grid(cells: int) -> list[str]:
    """Return the overrides of a grid of at least ``cells`` configurations, the smallest whole number of seeds."""
    seeds = -(-cells // CELLS_A_SEED)
    bits = [f"component.{part}.bits={BITS}" for part in ("vision", "connector", "language")]
    return [METHODS, f"seed=range({seeds})", *bits]


def processor_seconds(tree: Path, overrides: list[str]) -> tuple[float, int]:
    """Plan a grid with the code of ``tree``; return processor seconds and the number of configurations planned."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*overrides, "tracker=none", "hydra.launcher.check=false", f"store.dir={folder}/runs", "--json"]
        before = _spent()
        done = subprocess.run(
            [sys.executable, "-m", "launch", "plan", *command],
            cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"launch plan {' '.join(command)}\n{done.stderr}")
    return _spent() - before, json.loads(done.stdout)["configurations"]


def _spent() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(cells: int, tree: Path | None, pairs: int) -> dict[str, Any]:
    overrides = grid(cells)
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(pairs):
        spent, asked = processor_seconds(CHECKOUT, overrides)
        ours.append(spent)
        if tree is not None:
            theirs.append(processor_seconds(tree, overrides)[0])
    seconds = statistics.median(ours)
    found = {"cells": asked, "processor_seconds": seconds, "milliseconds_a_cell": 1000 * seconds / asked}
    if tree is not None:
        found["other_processor_seconds"] = statistics.median(theirs)
        found["ratio"] = statistics.median(other / own for own, other in zip(ours, theirs, strict=True))
    return found


def line(found: dict[str, Any]) -> str:
    text = f"{found['cells']} cells: {found['processor_seconds']:.1f} s, {found['milliseconds_a_cell']:.2f} ms a cell"
    if "ratio" not in found:
        return text
    return f"{text}; the other checkout {found['other_processor_seconds']:.1f} s, {found['ratio']:.1f} times"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, help="another checkout to compare with")
    parser.add_argument("--cells", type=int, nargs="+", default=[1728, 10_000], help="sizes of grids")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tree = None if options.tree is None else options.tree.resolve()
    if tree is not None and not (tree / "launch").is_dir():
        raise SystemExit(f"--tree {options.tree}: is no checkout of mmq-sweeps")
    found = [measure(cells, tree, options.pairs) for cells in options.cells]
    sys.stdout.write((json.dumps(found, indent=1) if options.json else "\n".join(map(line, found))) + "\n")


if __name__ == "__main__":
    main()
