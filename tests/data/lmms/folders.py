"""Tasks of lmms-eval that tests write: yaml, code and a data set of scenes in Parquet."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from mmq_sweeps.data.lmms import installed
from mmq_sweeps.data.scenes import Scenes

needs_lmms_eval = pytest.mark.skipif(find_spec("lmms_eval") is None, reason=f"needs lmms-eval: {installed.INSTALL}")
# The imports of its evaluator beside those of its tasks.
needs_its_evaluator = pytest.mark.skipif(
    find_spec("lmms_eval") is None or find_spec("aiohttp") is None,
    reason=f"needs lmms-eval and its evaluator: {installed.INSTALL} && pip install aiohttp",
)
COUNT = 12
MINE = """\
dataset_path: DATA
training_split: train
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answers
process_results: !function utils.results
lmms_eval_specific_kwargs:
  default: {post_prompt: "\\nAnswer the question using a single word or phrase."}
generation_kwargs: {max_new_tokens: 10}
metric_list:
  - {metric: exact, aggregation: mean, higher_is_better: true}
  - {metric: by_kind, aggregation: !function utils.mean_of_kinds, higher_is_better: true}
  - {metric: counted, aggregation: !function utils.counted, higher_is_better: false}
  - {metric: submission, aggregation: !function utils.submission, higher_is_better: true}
"""
# Scored by a metric of the library, after filters; the first letter alone.
FILTERED = """\
include: _mine
process_results: null
doc_to_target: first
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
filter_list:
  - name: letter
    filter:
      - {function: regex, regex_pattern: "([A-Za-z])"}
      - {function: take_first}
"""
UTILS = """\
import json
import os

RIGHT = {"count": 0}


def visual(doc):
    return [doc["image"].convert("RGB")]


def text(doc, lmms_eval_specific_kwargs):
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]


def results(doc, found):
    right = float(found[0].lower() in doc["answers"])
    entry = {"kind": doc["kind"], "score": right}
    return {"exact": right, "by_kind": entry, "counted": entry, "submission": found[0]}


def mean_of_kinds(entries):
    kinds = {}
    for entry in entries:
        kinds.setdefault(entry["kind"], []).append(entry["score"])
    return sum(sum(own) / len(own) for own in kinds.values()) / len(kinds)


def counted(entries):
    for entry in entries:
        RIGHT["count"] += entry["score"]
    return RIGHT["count"] / 7


def submission(answers, args):
    print("a line on standard output")
    with open(os.path.join(args.output_path, "answers.json"), "w") as file:
        json.dump(answers, file)
"""


def write_tasks(folder: Path, **more: str) -> Path:
    """Write the tasks ``mine``, ``filtered`` and ``more``, each ``_mine`` with other lines; return the folder of their yaml."""
    tasks = folder / "tasks"
    tasks.mkdir(parents=True)
    write_data(folder / "data")
    (tasks / "_mine").write_text(MINE.replace("DATA", str(folder / "data")))
    (tasks / "utils.py").write_text(UTILS)
    (tasks / "mine.yaml").write_text("task: mine\ninclude: _mine\n")
    (tasks / "filtered.yaml").write_text(f"task: filtered\n{FILTERED}")
    for name, lines in more.items():
        (tasks / f"{name}.yaml").write_text(f"task: {name}\ninclude: _mine\n{lines}")
    return tasks


def write_data(folder: Path) -> None:
    """Write scenes with a question each, in Parquet: splits ``train`` and ``test``."""
    import datasets

    folder.mkdir()
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "answers": datasets.Sequence(datasets.Value("string")),
            **{name: datasets.Value("string") for name in ("question", "kind", "first")},
        }
    )
    for split, drawn in (("train", "train"), ("test", "evaluation")):
        rows = []
        for place, scene in enumerate(Scenes(drawn, COUNT)):
            asked = scene.questions[place % len(scene.questions)]
            answers = [*asked.answers, *(answer.upper() for answer in asked.answers)]
            rows.append(
                {"image": scene.image, "answers": answers, "question": asked.question, "kind": asked.kind}
                | {"first": asked.answers[0][0]}
            )
        datasets.Dataset.from_list(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
