"""Tasks are found and read as lmms-eval does, without importing it; tasks that cannot be run are refused by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig

from mmq_sweeps.config.sweep import plan
from mmq_sweeps.data.lmms import catalog, installed
from mmq_sweeps.data.lmms.catalog import Function, find_task
from mmq_sweeps.data.lmms.network import asking
from mmq_sweeps.errors import ConfigError
from tests.data.lmms.folders import needs_lmms_eval
from tests.metrics.lmms import lmms

pytestmark = needs_lmms_eval
PUBLISHED = [
    "docvqa_val",
    "chartqa",
    "textvqa_val",
    "ocrbench",
    "mmbench_en_dev",
    "mmmu_val",
    "scienceqa_img",
    "pope",
    "mme",
]


def test_names_stand_for_what_they_do_in_lmms_eval(tasks: Path, tmp_path: Path) -> None:
    written = {
        "one": '"task": one  # a comment\ntag:\n  - few\n  - many # another\n',
        "two": "\ufefftask: 'two'\ntag: few\ngroup: old\n",
        "both": "group: both\ntask:\n- one\n- two\n",
        "inline": "group: inline\ntask: [one, two]\n",
        "python": f"task: python\nclass: !function {tasks}/utils.text\n",
        "late": "include: _template\n",
        "named": "task: other_name\ninclude: _template\n",
    }
    (tmp_path / "_template").write_text("task: of_the_template\noutput_type: generate_until\n")
    for name, text in written.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    index = lmms("tasks").TaskManager(include_path=str(tmp_path), include_defaults=False).task_index
    own = catalog._index(tmp_path)
    assert {name: entry["type"] for name, entry in index.items()} == {name: entry.kind for name, entry in own.items()}
    assert {name: entry["task"] for name, entry in index.items() if entry["type"] == "tag"} == {
        name: list(entry.members) for name, entry in own.items() if entry.kind == "tag"
    }


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_task_is_read_as_lmms_eval_reads_it(name: str) -> None:
    load_yaml_config = lmms("utils").load_yaml_config

    def named(value: Any) -> Any:
        """Replace functions in a value by their names in the yaml."""
        if isinstance(value, Function | yaml.ScalarNode):
            return value.path if isinstance(value, Function) else value.value
        if isinstance(value, dict):
            return {key: named(one) for key, one in value.items()}
        return [named(one) for one in value] if isinstance(value, list) else value

    task = find_task(name)
    assert named(dict(task.config)) == named(load_yaml_config(str(task.files[0]), mode="simple"))
    for function in task.functions():
        assert function.file is not None
        assert f"def {function.name}(" in function.file.read_text()


def test_nothing_heavy_is_imported_to_read_a_task() -> None:
    heavy = {"torch", "transformers", "datasets"}
    before = heavy & sys.modules.keys()
    find_task("docvqa_val")
    assert heavy & sys.modules.keys() == before


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            "docvqa_vall",
            "has no task of this name; one of your own needs task.include_path=FOLDER; did you mean docvqa_val",
        ),
        ("docvqa", "is a group of tasks; choose one of them: docvqa_val, docvqa_test"),
        ("public_eval_gpt5_family", "is a tag of tasks; choose one of them: mmmu_val"),
        ("videomme", r"its documents have videos or sound \(dataset_kwargs.video\)"),
        ("seedbench_ppl", "its output_type is multiple_choice; only tasks with generate_until can be run"),
        (
            "mmvet",
            r"may ask a server, such as a judge: every metric \(lmms_eval.llm_judge\); set task.allow_network=true",
        ),
        ("docvqa_val", r"is not in .*; get it first: python -c .*load_dataset\('lmms-lab-encoder/DocVQA', 'DocVQA'\)"),
    ],
)
def test_what_cannot_be_run_is_refused_while_planning(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, said: str
) -> None:
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=f"^task.data: lmms_task={task}: .*{said}"):
        plan([composed("model=tiny_llava", "task=lmms_eval", f"task.lmms_task={task}")])


def test_a_library_that_is_absent_or_another_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(installed, "version", lambda: "0.9.0")
    installed.warn_if_untested.cache_clear()
    installed.warn_if_untested()
    assert "lmms-eval 0.9.0 is installed; that results equal its own is tested with 0.7.3 only" in caplog.text
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"pip install 'mmq-sweeps\[lmms-eval\]' && pip install --no-deps lmms-eval==0.7.3"
    ):
        find_task("docvqa_val")


def test_a_task_of_ones_own_may_not_have_the_name_of_another(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: mme\n")
    with pytest.raises(ValueError, match=r"lmms_task=mme: is a task of .* and of lmms-eval, which would take its own"):
        find_task("mme", str(tmp_path))
    with pytest.raises(ValueError, match="include_path=/nowhere: there is no such folder"):
        find_task("mme", "/nowhere")


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("docvqa_val", {}),
        ("mme", {}),
        ("ocrbench", {}),
        ("mmbench_en_dev", {"gpt_eval_score": ["requests"]}),
        ("llava_in_the_wild", {"every metric": ["lmms_eval.verifiers"]}),
        ("hallusion_bench_image", {key: ["requests"] for key in ("aAcc", "qAcc", "fAcc")}),
    ],
)
def test_metrics_that_may_ask_a_server_are_known_from_their_code(task: str, metrics: dict[str, list[str]]) -> None:
    found = find_task(task)
    assert asking(found, found.metrics) == metrics
