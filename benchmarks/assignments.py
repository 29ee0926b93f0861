"""Measure the cost of assignments by unit beside assignments by part: a cell of a sweep, and planning.

    OMP_NUM_THREADS=2 python benchmarks/assignments.py [--json] [--only SECTION ...] [--cells 200] [--planned 10000]

cells     processor time a cell of random assignments by unit of the embedded captioner, at widths whose units are known,
          against random assignments by part at the same widths, in stores that hold the same units. By part, cells share the
          outputs of vision and connector; by unit, no two visions are alike. So cells by kind are measured as well, of whom
          no two have the same vision
plan      processor time to plan random assignments by unit, each a file
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))

from benchmarks.against import spent  # noqa: E402
from benchmarks.sections import Section, parser_of, report, said  # noqa: E402

# At fewer bits captions are longer, and more so the more units have them.
WIDTHS = (4, 5, 6, 7, 8)
BLOCKS = {"vision": 6, "connector": 2, "language": 6}
KINDS = ("attention", "mlp")
METHOD = ["method=gptq", "tracker=none"]


def run(folder: Path, module: str, *arguments: str) -> float:
    """Run a command in ``folder``; return its processor seconds, those of its child processes included."""
    return spent(CHECKOUT, ["-m", module, *arguments], folder)[0]


def write_experiment(folder: Path, axes: Mapping[str, str], grids: Sequence[Mapping[str, str]] = ()) -> list[str]:
    """Write an experiment with ``axes``, which a command line may be too short for; return the overrides that choose it."""
    path = folder / "conf" / "experiment" / "measured.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    sweeper: dict[str, Any] = {"params": dict(axes)} | ({"grids": [dict(grid) for grid in grids]} if grids else {})
    path.write_text("# @package _global_\n" + json.dumps({"hydra": {"sweeper": sweeper}}) + "\n")
    return [f"hydra.searchpath=['file://{folder / 'conf'}']", "experiment=measured"]


def by_unit(folder: Path, count: int, chosen: random.Random) -> str:
    """Write ``count`` random assignments; return their names as an axis."""
    names = []
    for index in range(count):
        units = {
            f"{part}.{block}.{kind}": chosen.choice(WIDTHS)
            for part, blocks in BLOCKS.items()
            for block, kind in product(range(blocks), KINDS)
        }
        names.append(f"a{index}.json")
        (folder / names[-1]).write_text(json.dumps({"units": units}))
    return ",".join(names)


def by_part(count: int, chosen: random.Random) -> list[dict[str, str]]:
    """Return ``count`` random assignments by part, none uniform."""
    every = [combination for combination in product(WIDTHS, repeat=len(BLOCKS)) if len(set(combination)) > 1]
    drawn = chosen.sample(every, min(count, len(every)))
    return [{f"component.{part}.bits": str(width) for part, width in zip(BLOCKS, own, strict=True)} for own in drawn]


def by_kind(chosen: random.Random) -> list[dict[str, str]]:
    """Return assignments by part and layer kind whose visions all differ."""
    visions = [pair for pair in product(WIDTHS, repeat=len(KINDS)) if len(set(pair)) > 1]
    return [
        {
            "component.vision.bits": f"{{attention: {attention}, mlp: {mlp}}}",
            **{f"component.{part}.bits": str(chosen.choice(WIDTHS)) for part in BLOCKS if part != "vision"},
        }
        for attention, mlp in visions
    ]


def cells(options: argparse.Namespace) -> dict[str, Any]:
    chosen = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Every unit at every width, and full precision.
        run(folder, "mmq_sweeps", "-m", *METHOD, f"bits={','.join(map(str, WIDTHS))}", "store.dir=known")
        seconds: dict[str, float] = {}
        counts = {"by part": options.cells, "by kind": 0, "by unit": options.cells}
        for kind in counts:
            store = kind.replace(" ", "_")
            shutil.copytree(folder / "known", folder / store)
            if kind == "by unit":
                axes = write_experiment(folder, {"assignment": by_unit(folder, options.cells, chosen)})
            else:
                grids = by_kind(chosen) if kind == "by kind" else by_part(options.cells, chosen)
                axes, counts[kind] = write_experiment(folder, {}, grids), len(grids)
            said(kind)
            seconds[kind] = run(folder, "mmq_sweeps", "-m", *axes, *METHOD, f"store.dir={store}")
            # A sweep of one cell has the costs that do not grow with the cells: start, loading, the check of the model, units.
            one = by_unit(folder, 1, random.Random(1)) if kind == "by unit" else "null"
            alone = [f"assignment={one}", "bits=4", "component.connector.bits=16"]
            seconds[f"{kind}, start"] = run(folder, "mmq_sweeps", *METHOD, *alone, f"store.dir={store}")
    each = {kind: (seconds[kind] - seconds[f"{kind}, start"]) / (count - 1) for kind, count in counts.items()}
    return {"cells": counts, "seconds": seconds, "each": each}


def cells_lines(found: Mapping[str, Any]) -> Iterable[str]:
    for kind, each in found["each"].items():
        yield f"{found['cells'][kind]} random assignments {kind}: processor time {each * 1000:.0f} ms a cell"
    for kind in ("by part", "by kind"):
        yield f"by unit / {kind}: {found['each']['by unit'] / found['each'][kind]:.2f}"


def plan(options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        axes = write_experiment(folder, {"assignment": by_unit(folder, options.planned, random.Random(0))})
        said(f"plan of {options.planned}")
        taken = run(folder, "launch", "plan", *axes, *METHOD, "hydra.launcher.check=false")
    return {"planned": options.planned, "seconds": taken}


def plan_lines(found: Mapping[str, Any]) -> Iterable[str]:
    each = found["seconds"] / found["planned"] * 1000
    yield f"plan of {found['planned']:,} assignments by unit: processor time {found['seconds']:.1f} s, {each:.1f} ms a cell"


SECTIONS: dict[str, Section] = {"cells": (cells, cells_lines), "plan": (plan, plan_lines)}


def main() -> None:
    parser = parser_of(SECTIONS, __doc__)
    parser.add_argument("--cells", type=int, default=200, help="cells of each kind (default: 200)")
    parser.add_argument("--planned", type=int, default=10_000, help="cells that are planned (default: 10000)")
    report(SECTIONS, parser.parse_args())


if __name__ == "__main__":
    main()
