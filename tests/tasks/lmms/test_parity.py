"""Answers and figures are those of lmms-eval's own evaluator on the same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.identity.checkpoint import checkpoint_path
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.lmms_eval import LmmsEvalTask
from tests.commands import run_forked
from tests.conftest import command_environment
from tests.data.lmms.folders import COUNT, needs_its_evaluator

# The chat format of model.prompts.ask, which lmms-eval's llava_hf takes from the checkpoint.
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{{ '\\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    "{% endfor %}"
)
# The calls of `python -m lmms_eval --model llava_hf --include_path FOLDER --log_samples`, without reading its 1,985 tasks.
THEIRS = """
import json, sys
from argparse import Namespace

from lmms_eval import evaluator, models
from lmms_eval.tasks import TaskManager

folder, checkpoint, out = sys.argv[1:]
settings = f"pretrained={checkpoint},device=cpu,device_map=cpu,dtype=float32"
model = models.get_model("llava_hf").create_from_arg_string(settings, {"batch_size": 1})
generate, asked = model.model.generate, []


def recorded(**given):
    asked.append(given["input_ids"][0].tolist())
    return generate(**given)


model.model.generate = recorded
answer, answers = model.generate_until, []


def told(requests):
    found = answer(requests)
    answers.extend([one.task_name, one.doc_id, text.text] for one, text in zip(requests, found))
    return found


model.generate_until = told
found = evaluator.simple_evaluate(
    model,
    tasks=["mine", "filtered"],
    task_manager=TaskManager(include_path=folder, include_defaults=False, model_name="llava_hf"),
    batch_size=1,
    bootstrap_iters=0,
    cli_args=Namespace(process_with_media=False, reasoning_tags='[["<think>", "</think>"]]', output_path=out),
)
exact = {sample["doc_id"]: sample["exact"] for sample in found["samples"]["mine"]}
with open(out + "/found.json", "w") as file:
    json.dump({"results": found["results"], "exact": exact, "answers": answers, "asked": asked}, file, default=str)
"""


@needs_its_evaluator
def test_answers_and_figures_are_those_of_lmms_eval(
    composed: Callable[..., DictConfig], tasks: Path, llava: LoadedModel, tmp_path: Path
) -> None:
    theirs = run_theirs(tasks, tmp_path)
    asked = []
    for name in ("mine", "filtered"):
        overrides = (f"task.lmms_task={name}", f"task.include_path={tasks}", "task.batch_size=5")
        config = composed("model=tiny_llava", "task=lmms_eval", *overrides)
        one = build("task", next(iter(plan([config]).configs.values()))["task"])
        assert isinstance(one, LmmsEvalTask)
        one.check([{"samples": 4, "seed": 0}], tmp_path)
        answers = one.predict(llava, lambda done, total: None)
        assert dict(answers) == {str(doc): text.strip() for task, doc, text in theirs["answers"] if task == name}
        assert len(answers) == COUNT
        found = one.score(answers, tmp_path)
        expected = {
            metric.partition(",")[0]: value
            for metric, value in theirs["results"][name].items()
            if "stderr" not in metric and "," in metric and isinstance(value, float | int)
        }
        assert {metric: result.value for metric, result in found.items()} == pytest.approx(expected, abs=1e-12)
        if name == "mine":
            assert list(found) == ["exact", "by_kind", "counted"]
            assert found["exact"].per_item == theirs["exact"]
        else:
            assert found["exact_match"].value > 0
        for item in one.items:
            inputs = llava.processor(images=item.example.images, text=item.prompt_for(llava.processor))
            asked.append(list(inputs["input_ids"][0]))
    assert sorted(asked) == sorted(theirs["asked"])


def run_theirs(tasks: Path, folder: Path) -> dict:
    """Run lmms-eval's evaluator on a copy of the embedded LLaVA that has a chat template."""
    checkpoint = shutil.copytree(checkpoint_path("embedded/tiny_llava"), folder / "llava")
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    # A reader of videos, which its module imports and images do not need.
    (folder / "stubs").mkdir()
    (folder / "stubs" / "decord.py").write_text("VideoReader = cpu = None\n")
    environment = command_environment(PYTHONPATH=str(folder / "stubs"))
    done = run_forked("-c", [THEIRS, str(tasks), str(checkpoint), str(folder)], folder, environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())
