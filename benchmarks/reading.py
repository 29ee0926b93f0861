"""Time reading annotation files of the published sizes: ``python benchmarks/reading.py``.

Writes files with as many questions as VQA v2's val2014 and GQA's train_balanced, all fields filled with synthetic
content (0.9 GB in a temporary folder). Reads each in a separate process and prints seconds, core seconds and peak
memory, with the ratios of the latter two to their limits of 30 s and 2 GB.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mmq_sweeps.data.gqa import Gqa
from mmq_sweeps.data.vqav2 import VqaV2

VQA_QUESTIONS, VQA_PER_IMAGE = 214_354, 5
GQA_QUESTIONS, GQA_PER_IMAGE = 943_000, 13
LIMIT_SECONDS, LIMIT_GB = 30, 2
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


def main() -> None:
    if len(sys.argv) > 1:
        measure(*sys.argv[1:])
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("vqav2", write_vqa), ("gqa", write_gqa)):
            writing = multiprocessing.get_context("spawn").Process(target=write, args=(Path(folder),))
            writing.start()
            writing.join()
            subprocess.run([sys.executable, __file__, name, folder], check=True)


if __name__ == "__main__":
    main()
