"""Time reading results back.

    python benchmarks/analysis.py [--json] [--only NAME ...] [--published FOLDER] [--commit 0670394] [--cells 200 4000]

| name | timed | limit |
|---|---|---|
| table | a store of 100,000 records, from the cached table | 2 s |
| frontier | its frontier | 1 s |
| importance | 448 cells, with intervals and checks: the study's GPTQ captions, else synthetic cells of that size | 60 s |
| figures | the whole set for the study's published files | 120 s |
| report | opening a page of 2,000 cells in Chromium | 3 s |
| report_mb | size of that page | 8 MB |
| made | making the report of 200 cells of four methods with 500 items each | 20 s |
| made | making that of 4,000 | a tenth of the processor time of ``--commit``, and 1,500,000 bytes |
| page_scroll, page_filter, page_sort, page_budget, page_pin | the longest pause, as the page measures it, while a page of |
|  | 4,000 cells scrolls through them, filters, sorts, moves the budget and pins a cell | 100 ms |

Each is timed once in a process that has imported its modules, and printed with its ratio to the limit; ``made`` is a command
of its own, on both sides in turns. The stores and the page are created in a temporary folder. ``figures`` needs the
study's files, ``report`` needs chromium and chromium-driver, ``made`` some ten minutes for the earlier commit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.against import BEFORE, CHECKOUT, checkout, compared, line, seconds, spent

LIMITS = {"table": 2.0, "frontier": 1.0, "importance": 60.0, "figures": 120.0, "report": 3.0, "report_mb": 8.0}
PAUSES = ("page_scroll", "page_filter", "page_sort", "page_budget", "page_pin")
LIMITS |= dict.fromkeys(PAUSES, 0.1)
RECORDS, CELLS, MOST = 100_000, 2_000, 4_000
PARTS = ("vision", "connector", "language")
METHODS, ITEMS = ("rtn", "gptq", "awq", "hqq"), 500
# Seconds that the report of as many cells may take, and ratios that it must have to the earlier commit.
MOST_SECONDS, LEAST_RATIO = {200: 20.0}, {4000: 10.0}
# Bytes that a page may have: 1.5 MB, of 10**6 bytes.
MOST_BYTES = 1_500_000


def made_up_store(
    folder: Path, count: int, widths: Iterable[int] = range(2, 49), methods: Iterable[str] = ("gptq",), items: int = 0
) -> None:
    """Write ``count`` records: full precision, then for each method combinations of ``widths`` for three parts.

    Each part has a quarter of the weights. With ``items``, every cell has as many, whose mean is its score.
    """
    import numpy as np

    from mmq_sweeps.store.record import Record
    from mmq_sweeps.store.store import Store

    store, draw = Store.open(folder), np.random.default_rng(0)
    level = draw.gamma(2, 0.5, items)
    whole = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
    assignments = itertools.islice(itertools.product(methods, itertools.product(widths, repeat=3)), count - 1)
    for number, (method, chosen) in enumerate([("none", (16, 16, 16)), *assignments]):
        bits = dict(zip(PARTS, chosen, strict=True)) if number else {}
        value = 1 - sum(1 / width**2 for width in bits.values())
        scores = level * value + draw.normal(0, 0.1, items) * bool(bits)
        value = float(scores.mean()) if items else value
        low = sum(16 - width for width in bits.values()) / 4
        one = Record(
            id=f"{number:012x}",
            status="done",
            cell={
                "model": {"checkpoint": "m", "parts": {part: {} for part in PARTS}},
                "task": {},
                "parts": {part: {"bits": width, **whole} for part, width in bits.items()},
                "method": {"_target_": method, "group_size": 128} if bits else None,
                "calibration": {"samples": 128} if bits else None,
            },
            names={"model": "m", "task": "t", "method": method},
            metrics={
                "cider": {"value": value, "interval": [value - 0.1, value + 0.1], "higher_is_better": True, "count": 9}
            },
            size={
                "total": {"bpw_paper": 16 - low, "bpw_exact": 16.1 - low, "size_bytes": 100},
                "parts": {part: {"quantized_weights": 100 if part in bits else 0} for part in PARTS},
            },
            seconds={"evaluate": 1.0},
            created=f"2026-01-01T00:00:00.{number:06d}+00:00",
        )
        if items:
            store.save(one, [_item(place, score) for place, score in enumerate(scores.tolist())])
            continue
        place = folder / "cells" / one.id
        place.mkdir(parents=True)
        (place / "record.json").write_text(one.to_json())


def _item(place: int, score: float) -> dict[str, Any]:
    said = f"a big bright rose triangle left of a tiny dark square above ring {place} with {score:.2f} dots"
    return {"id": f"evaluation-0-{place:06d}", "prediction": said, "scores": {"cider": score}}


def table_and_frontier(folder: Path) -> dict[str, float]:
    from analysis.load import load
    from analysis.measures.frontier import frontiers

    made_up_store(folder / "many", RECORDS)
    source = [str(folder / "many")]
    load(source)
    taken = seconds(lambda: load(source))
    cells = load(source)
    if len(cells.frame) != RECORDS:
        raise SystemExit(f"{len(cells.frame)} of {RECORDS} records were read")
    return {"table": taken, "frontier": seconds(lambda: frontiers(cells))}


def importance(published: Path | None, folder: Path) -> dict[str, float]:
    from analysis.load import load
    from analysis.measures.importance import importances

    if published is None:
        made_up_store(folder / "few", 448)
        cells = load([str(folder / "few")])
    else:
        read = load([f"published:{published}"])
        cells = read.of(read.frame[read.frame["source"].str.contains("gptq")])
    return {"importance": seconds(lambda: importances(cells))}


def figures(published: Path, folder: Path) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "analysis",
        "figures",
        "--experiment",
        "paper",
        "--source",
        f"published:{published}",
    ]
    return {
        "figures": seconds(
            lambda: subprocess.run([*command, "--out", str(folder / "figures")], check=True, cwd=CHECKOUT)
        )
    }


# Gaps between frames and long tasks while a reader does something; the longest counts.
PAUSES_OF = """
const done = arguments[0], found = {};
const table = document.querySelector('[aria-label="All cells"].table'), scroll = table.querySelector(".scroll");
const filter = table.querySelector("input"), budget = document.querySelector(".overview input[type=number]");
let longest = 0, last = performance.now();
const longer = (list) => { for (const one of list.getEntries()) longest = Math.max(longest, one.duration); };
new PerformanceObserver(longer).observe({ type: "longtask" });
const watch = (now) => { longest = Math.max(longest, now - last); last = now; requestAnimationFrame(watch); };
requestAnimationFrame(watch);
const frames = (count) => new Promise((then) => {
  const next = () => (count-- ? requestAnimationFrame(next) : then());
  next();
});
const enter = (input, value) => { input.value = value; input.dispatchEvent(new Event("input", { bubbles: true })); };
const measure = async (name, where, steps, step) => {
  where.scrollIntoView();
  await frames(20);
  longest = 0;
  for (let i = 0; i < steps; i += 1) { step(i); await frames(2); }
  found[name] = longest / 1000;
};
(async () => {
  await measure("page_scroll", table, 60, (i) => { scroll.scrollTop = (i / 59) * scroll.scrollHeight; });
  await measure("page_filter", table, 5, (i) => enter(filter, ["v", "vision 3", "vision 3 lang", "vision", ""][i]));
  await measure("page_sort", table, 4, (i) => table.querySelectorAll("th button")[[0, 0, 5, 5][i]].click());
  await measure("page_budget", document.querySelector(".overview"), 40, (i) => enter(budget, 5 + i / 10));
  await measure("page_pin", document.querySelector(".overview"), 1, () => document.querySelector(".scroll tbody tr").click());
  done(found);
})();
"""


def pauses(folder: Path) -> dict[str, float]:
    """Measure in the page how long it does not react, with thousands of cells."""
    from tests.analysis.browser import chromium, show

    shown_page = _written(folder / "pauses", MOST, range(2, 18))
    with chromium(folder / "profile-pauses") as driver:
        driver.set_script_timeout(300)
        show(driver, shown_page)
        found: dict[str, float] = driver.execute_async_script(PAUSES_OF)
    return {name: found[name] for name in PAUSES}


def _written(folder: Path, count: int, widths: Iterable[int]) -> Path:
    """Write a page of a made-up store, without the statistics that take long: drawing does not depend on them."""
    from analysis.load import load
    from analysis.measures import family
    from analysis.report import content, page

    def refused(*_arguments: object) -> None:
        raise ValueError("not asked for")

    made_up_store(folder, count, widths)
    family.importances = family.sensitivities = refused
    content.auditing.audit = lambda *_: []
    shown_page = folder / "report.html"
    shown_page.write_text(page.render(content.page(load([str(folder)]), None, "python -m analysis report")))
    return shown_page


def report(folder: Path) -> dict[str, float]:
    """Time the page until its charts and tables are drawn: Chromium fires ``load`` after the page's script has run."""
    from tests.analysis.browser import chromium, show

    shown_page = _written(folder / "page", CELLS, range(2, 15))
    with chromium(folder / "profile") as driver:
        taken = seconds(lambda: show(driver, shown_page))
        shown = driver.find_element("css selector", "[aria-label='All cells'].table [role=status]").text
        if not shown.endswith(f"of {CELLS:,}"):
            raise SystemExit(f"the page shows {shown} cells")
    return {"report": taken, "report_mb": shown_page.stat().st_size / 1e6}


def made(folder: Path, sizes: Iterable[int], commit: str, pairs: int) -> dict[str, Any]:
    """Make reports of each size with this code and that of ``commit``, in processes of their own."""
    found = {}
    with checkout(commit) as before:
        for size in sizes:
            store = folder / f"of {size}"
            made_up_store(store, size, range(2, 12) if size > 1000 else (3, 4, 5, 8), METHODS, ITEMS)

            def run(tree: Path, store: Path = store) -> tuple[float, float]:
                command = ["-m", "analysis", "report", "--source", str(store), "--out", f"{store} {tree.name}.html"]
                return spent(tree, command)[:2]

            told: dict[str, Any] = compared(run, before, pairs)
            written = Path(f"{store} {CHECKOUT.name}.html").stat().st_size
            found[f"made {size}"] = {**told, "bytes": written, "most_bytes": MOST_BYTES}
    return found


def _made_line(name: str, found: dict[str, Any]) -> str:
    size = int(name.split()[1])
    told = [line(name, found)]
    if size in MOST_SECONDS:
        told.append(f"{found['seconds'] / MOST_SECONDS[size]:.2f} of the limit of {MOST_SECONDS[size]:g} s")
    if size in LEAST_RATIO:
        told.append(f"to be at least {LEAST_RATIO[size]:g} times")
    told.append(f"{found['bytes']:,} bytes, {found['bytes'] / MOST_BYTES:.2f} of the limit of {MOST_BYTES:,}")
    return "; ".join(told)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true")
    options.add_argument(
        "--only", nargs="+", choices=("table", "importance", "figures", "report", "page", "made"), default=[]
    )
    there = Path(os.environ.get("MMQ_PUBLISHED", CHECKOUT.parent / "shared" / "published"))
    options.add_argument("--published", type=Path, default=there if there.is_dir() else None)
    options.add_argument("--commit", default=BEFORE, help="the commit to compare ``made`` with")
    options.add_argument("--cells", type=int, nargs="+", default=[200, 4000], help="sizes of the reports ``made``")
    options.add_argument("--pairs", type=int, default=1, help="runs of each side of ``made``")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "table": lambda: table_and_frontier(folder),
            "importance": lambda: importance(asked.published, folder),
            "report": lambda: report(folder),
            "page": lambda: pauses(folder),
        }
        if asked.published is not None:
            parts["figures"] = lambda: figures(asked.published, folder)
        elif "figures" in asked.only:
            raise SystemExit(
                "figures: the study's files are not here; clone gautomdas/mmq and name it with --published"
            )
        found: dict[str, float] = {}
        for part, measure in parts.items():
            if not asked.only or part in asked.only:
                found |= measure()
        reports = {}
        if not asked.only or "made" in asked.only:
            reports = made(folder, asked.cells, asked.commit, asked.pairs)
    ratios: dict[str, Any] = {
        key: {"value": value, "limit": LIMITS[key], "ratio": value / LIMITS[key]} for key, value in found.items()
    }
    if asked.json:
        sys.stdout.write(json.dumps(ratios | reports, indent=1) + "\n")
        return
    sys.stdout.writelines(f"{_made_line(name, told)}\n" for name, told in reports.items())
    for key, told in ratios.items():
        unit = "MB" if key.endswith("_mb") else "s"
        sys.stdout.write(
            f"{key}: {told['value']:.2f} {unit}, {told['ratio']:.2f} of the limit of {told['limit']:g} {unit}\n"
        )


if __name__ == "__main__":
    main()
