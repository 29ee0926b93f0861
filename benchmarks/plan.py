"""Measure the processor time of planning grids, against that of an earlier commit.

    python benchmarks/plan.py [--commit 0670394 | --tree OTHER] [--cells 1728 10000] [--pairs 3] [--only bits] [--json]

Each plan is `launch plan --json` in a process of its own, into an empty store; its start and imports are counted. Both sides
plan the same grid in turns, and the ratio is the median of the pairs' ratios of the other side's time to ours.

bits      three methods, six bit-widths of each of three parts, and seeds: at least as many configurations as asked for
kinds     the bit-widths of attention and of MLP of each of three parts by themselves: 1,728 configurations
mappings  bit-widths and mappings over layer kinds and block groups: 1,728 configurations
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.against import BEFORE, checkout, compared, line, spent

PARTS = ("vision", "connector", "language")
BITS = "2,3,4,5,6,7"
METHODS = "method=rtn,gptq,awq"
# Cells of all methods at six bit-widths of each of three parts.
CELLS_A_SEED = 3 * 6**3
MAPPINGS = "2,3,4,5,6,7,8,16,{attention:4,mlp:3},{attention:3,mlp:4},{front:4,middle:3,end:2},{attention:4,mlp:2}"
GRIDS = ("bits", "kinds", "mappings")


def grids(only: list[str], cells: list[int]) -> Iterator[tuple[str, list[str]]]:
    """Yield the overrides of each grid, with its name."""
    if "bits" in only:
        bits = [f"component.{part}.bits={BITS}" for part in PARTS]
        for count in cells:
            seeds = -(-count // CELLS_A_SEED)
            yield f"bits, {seeds * CELLS_A_SEED}", [METHODS, f"seed=range({seeds})", *bits]
    if "kinds" in only:
        kinds = [f"component.{part}.bits.{kind}" for part in PARTS for kind in ("attention=2,3,4,5", "mlp=2,3,4")]
        yield "kinds, 1728", ["method=rtn", *kinds]
    if "mappings" in only:
        yield "mappings, 1728", ["method=rtn", *(f"component.{part}.bits={MAPPINGS}" for part in PARTS)]


def planned(tree: Path, overrides: list[str]) -> tuple[float, float]:
    """Plan a grid with the code of ``tree``; return processor seconds and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["tracker=none", "hydra.launcher.check=false", f"store.dir={folder}/runs", "--json"]
        processor, seconds, output = spent(tree, ["-m", "launch", "plan", *overrides, *settings])
    if not json.loads(output)["pending"]:
        raise SystemExit(f"{overrides}: nothing was planned")
    return processor, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default=BEFORE, help="the commit to compare with; none: compare with none")
    parser.add_argument("--tree", type=Path, help="a checkout to compare with, in place of a commit")
    parser.add_argument("--cells", type=int, nargs="+", default=[1728, 10_000], help="sizes of the grids of bits")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    parser.add_argument("--only", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    tree = None if options.tree is None else options.tree.resolve()
    if tree is not None and not (tree / "launch").is_dir():
        raise SystemExit(f"--tree {options.tree}: is no checkout of mmq-sweeps")
    alone = tree is not None or options.commit == "none"
    found: dict[str, Any] = {}
    with nullcontext(tree) if alone else checkout(options.commit) as other:
        for name, overrides in grids(options.only, options.cells):
            found[name] = compared(lambda tree, grid=overrides: planned(tree, grid), other, options.pairs)  # type: ignore[misc]
            if not options.json:
                sys.stdout.write(line(name, found[name]) + "\n")
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
