"""Time the reading before any work: ``python benchmarks/reading.py [--only annotations again] [--pairs 3]``.

annotations: writes files with as many questions as VQA v2's val2014 and GQA's train_balanced, all fields filled with synthetic
content (0.9 GB in a temporary folder). Reads each in a separate process and prints seconds, core seconds and peak
memory, with the ratios of the latter two to their limits of 30 s and 2 GB.

again: the command of a sweep that is finished, GPTQ and AWQ at seven bit-widths of each of three parts, 685 cells of 500
items, in processor seconds, with the ratio to an earlier commit and to a limit of 8 s. The records are made up.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.against import BEFORE, CHECKOUT, checkout, compared, line, spent
from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.vqav2 import VqaV2

VQA_QUESTIONS, VQA_PER_IMAGE = 214_354, 5
GQA_QUESTIONS, GQA_PER_IMAGE = 943_000, 13
LIMIT_SECONDS, LIMIT_GB, LIMIT_AGAIN = 30, 2, 8
CELLS = 685
GRID = [
    "-m", "method=gptq,awq", "tracker=none",
    *(f"component.{part}.bits=2,3,4,5,6,8,16" for part in ("vision", "connector", "language")),
]  # fmt: skip
# The sweep of a command line, as far as its cells are known; in place of running them, records are made up.
FILL = """
import sys
import numpy as np
from launch.plugin import launchers
from mmq_sweeps.__main__ import main
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

def fill(sweep, launcher, command="", asked=None):
    store, draw = Store.of(sweep.settings["store"]), np.random.default_rng(0)
    level = draw.gamma(2, 1, 500)
    for cell in sweep.cells:
        scores = level + (draw.normal(-0.1, 0.3, 500) if cell.parts else 0)
        metric = {"value": float(scores.mean()), "interval": [0.0, 9.0], "higher_is_better": True, "count": 500}
        one = {"parameters": 9, "quantized_weights": 9, "bpw_paper": 4.0, "bpw_exact": 4.0, "size_bytes": 9}
        store.save(
            Record(
                cell.id, "done", cell.effective, dict(cell.names), {"cider": metric},
                {"total": one, "parts": {part: one for part in cell.model["parts"]}}, {"evaluate": 1.0}, created="2026-01-01",
            ),
            [
                {"id": f"evaluation-0-{number:06d}", "prediction": "a big bright rose triangle", "scores": {"cider": score}}
                for number, score in enumerate(scores.tolist())
            ],
        )
    return 0

launchers.start = fill
main()
"""
WORDS = ("yes", "no", "2", "red", "on the table", "frisbee", "white and black")


def write_vqa(root: Path) -> None:
    draw = random.Random(0)
    questions, annotations = [], []
    for number in range(VQA_QUESTIONS):
        image, identity = number // VQA_PER_IMAGE + 1, 1000 * (number // VQA_PER_IMAGE + 1) + number % VQA_PER_IMAGE
        questions.append({"image_id": image, "question": f"What is at place {number}?", "question_id": identity})
        answers = [{"answer": draw.choice(WORDS), "answer_confidence": "maybe", "answer_id": at} for at in range(1, 11)]
        annotations.append(
            {
                "question_type": "what is", "multiple_choice_answer": "yes", "answers": answers, "image_id": image,
                "answer_type": "other", "question_id": identity,
            }
        )  # fmt: skip
    for name, content in (
        ("v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions}),
        ("v2_mscoco_val2014_annotations.json", {"annotations": annotations}),
    ):
        (root / name).write_text(json.dumps({"info": {}, "data_subtype": "val2014", **content}))


def write_gqa(root: Path) -> None:
    program = [
        {"operation": "select", "dependencies": [], "argument": "bag (123)"},
        {"operation": "relate", "dependencies": [0], "argument": "to the left of,s (12)"},
        {"operation": "query", "dependencies": [1], "argument": "name"},
    ]
    questions = {
        f"{number:08d}": {
            "semantic": program, "entailed": ["05515938"], "equivalent": ["02930152"],
            "question": "Is the sky dark or light?", "imageId": str(2_300_000 + number // GQA_PER_IMAGE),
            "isBalanced": True, "groups": {"global": None, "local": "06-sky_dark"}, "answer": WORDS[number % len(WORDS)],
            "semanticStr": "select: sky (2486325)->choose color: dark|light [0]",
            "annotations": {"answer": {}, "question": {"2": "2486325"}, "fullAnswer": {"2": "2486325"}},
            "types": {"detailed": "chooseAttr", "semantic": "attr", "structural": "choose"},
            "fullAnswer": "The sky is dark.",
        }
        for number in range(GQA_QUESTIONS)
    }  # fmt: skip
    (root / "train_balanced_questions.json").write_text(json.dumps(questions))


def measure(name: str, root: str) -> None:
    reader = VqaV2(root=root, split="val2014") if name == "vqav2" else Gqa(root=root, split="train_balanced")
    began, worked = time.perf_counter(), time.process_time()
    examples = reader.read()
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    questions = sum(example.texts for example in examples)
    sys.stdout.write(
        f"{name}: {questions:,} questions about {len(examples):,} images in {seconds:.1f} s ({worked:.1f} s of one core) "
        f"with {peak:.1f} GB: {worked / LIMIT_SECONDS:.2f} and {peak / LIMIT_GB:.2f} of the limits\n"
    )


def annotations() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("vqav2", write_vqa), ("gqa", write_gqa)):
            writing = multiprocessing.get_context("spawn").Process(target=write, args=(Path(folder),))
            writing.start()
            writing.join()
            subprocess.run([sys.executable, __file__, name, folder], check=True)


def again(commit: str, pairs: int) -> None:
    with checkout(commit) as before, tempfile.TemporaryDirectory() as folder:
        # Ids of cells may differ between commits.
        asked = {tree: [*GRID, f"store.dir={folder}/{tree.name}"] for tree in (CHECKOUT, before)}
        for tree, overrides in asked.items():
            spent(tree, ["-c", FILL, *overrides])
            if (there := len(list(Path(folder, tree.name, "cells").iterdir()))) != CELLS:
                raise SystemExit(f"{there} of {CELLS} cells have records")
        found = compared(lambda tree: spent(tree, ["-m", "mmq_sweeps", *asked[tree]])[:2], before, pairs)
    ratio = found["processor_seconds"] / LIMIT_AGAIN
    sys.stdout.write(f"{line(f'{CELLS} finished cells again', found)}; {ratio:.2f} of the limit\n")


def main() -> None:
    if len(sys.argv) == 3 and not sys.argv[1].startswith("-"):
        measure(*sys.argv[1:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=("annotations", "again"), default=["annotations", "again"])
    parser.add_argument("--commit", default=BEFORE, help="the commit to compare with")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side")
    options = parser.parse_args()
    if "annotations" in options.only:
        annotations()
    if "again" in options.only:
        again(options.commit, options.pairs)


if __name__ == "__main__":
    main()
