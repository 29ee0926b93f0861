"""Faults of a sweep's cells that are found before its first job, in a process that the parent starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.planning import preflight
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import ConfigError
from tests.conftest import SMALL
from tests.launch.multiruns import multirun


def sweep(*arguments: str) -> Sweep:
    with multirun(*SMALL, *arguments) as run:
        return plan(run.configs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["method=rtn,gptq", "method.group_size=channel,7"], "for vision alone: component.vision.group_size=channel"),
        (["bits=3,4", "component.vision.group_size=48"], "component.vision.group_size: group_size=48 does not divide"),
        (["method=gptq", "method.damping=0.01,-2"], "damping=-2.0: choose a fraction from 0 to 10"),
        (["method.symmetric=false,perhaps"], "method.symmetric='perhaps'"),
        (["model.parts.vision.blocks=[layers]"], "model.parts.vision.blocks: none of layers is a module of"),
        (["model.class_name=Blip3"], "model.class_name=Blip3: transformers"),
        (["method=gptq", "task.calibration_split=evaluation"], "calibration samples are also evaluated in task.split"),
        (["task.split=evaluatoin"], "evaluatoin"),
        (
            ["tracker=wandb", "tracker.mode=onlin"],
            "mode='onlin' (tracker.mode, or WANDB_MODE): Choose offline, online or disabled.",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_problems_of_every_kind_are_found(tmp_path: Path, arguments: list[str], message: str) -> None:
    found = preflight.look(sweep(*arguments), tmp_path)
    assert any(message in problem for problem in found["problems"]), found
    assert found["unchecked"] == []


def test_a_selection_without_linears_is_found(tmp_path: Path) -> None:
    found = preflight.look(sweep("component=connector", "component.connector.blocks=[front],[end]"), tmp_path)
    assert [problem[:60] for problem in found["problems"]] == [
        "component.connector with blocks=['front'] layers=['attention"[:60]
    ]


def test_a_sweep_without_problems_passes_in_the_child() -> None:
    assert preflight.check(sweep("method=gptq", "bits=2,3")) == []


@pytest.mark.usefixtures("forked_children")
def test_the_child_tells_the_parent() -> None:
    with pytest.raises(ConfigError) as found:
        preflight.check(sweep("method.group_size=7", "bits=2,3"))
    assert all("group_size=7 does not divide" in problem for problem in found.value.problems)
    parts_and_widths = [problem.partition(" (")[0] for problem in found.value.problems]
    assert len(parts_and_widths) < 10


def test_a_model_whose_shape_is_not_known_is_said_to_be_unchecked(tmp_path: Path) -> None:
    found = preflight.look(sweep("model.checkpoint=someone/something", "model.name=something"), tmp_path)
    assert found["problems"] == []
    assert "something: its shape is not known without" in found["unchecked"][0]


def test_a_child_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(ConfigError, match=r"checking the cells ended with status 1: .*; hydra\.launcher\.check=false"):
        preflight.check(sweep("bits=2"))
