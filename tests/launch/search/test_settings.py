"""Settings of a search that are refused, and the messages."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.search.settings import OTHERS, Settings, metric_of
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.errors import ConfigError


def test_the_yaml_has_the_defaults_and_every_key() -> None:
    given: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "sweeper" / "budget.yaml"))  # type: ignore[assignment]
    found = Settings.of({**given, "max_bpw": 4})
    assert found == Settings("max_bpw", (4.0,))
    assert set(OTHERS) < set(given)


def test_budgets_are_sorted_and_each_is_one() -> None:
    assert Settings.of({"max_gb": [2, 1.5, 2]}).budgets == (1.5, 2.0)
    assert Settings.of({"max_bpw": 3.5}).budgets == (3.5,)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, r"hydra\.sweeper: names no budget; give hydra\.sweeper\.max_bpw=NUMBER or"),
        ({"max_bpw": 3, "max_gb": 1}, r"hydra\.sweeper\.max_bpw and hydra\.sweeper\.max_gb: are two kinds of budget"),
        ({"max_bpw": []}, r"hydra\.sweeper\.max_bpw=\[\]: names no budget"),
        (
            {"max_bpw": "4bit"},
            r"hydra\.sweeper\.max_bpw=4bit: give a number, or several as hydra\.sweeper\.max_bpw=\[3,4\]",
        ),
        ({"max_gb": [1, -2]}, r"hydra\.sweeper\.max_gb=-2: choose a number above 0"),
        ({"min_quality": 98}, r"hydra\.sweeper\.min_quality=98: choose a share of full precision between 0 and 1"),
        ({"max_bpw": 3, "granularity": "units"}, r"granularity=units: Unknown choice 'units'\. Did you mean unit\?"),
        ({"max_bpw": 3, "split": "test"}, r"split=test: Unknown choice 'test'\. Choose calibration or evaluation"),
        ({"max_bpw": 3, "seed": -1}, r"seed=-1: choose a whole number from 0"),
        ({"max_bpw": 3, "items": 1}, r"items=1: choose a whole number from 8"),
        ({"max_bpw": 3, "error": 1}, r"error=1: choose a probability between 0 and 1"),
        ({"max_bpw": 3, "max_bits": 3}, r"hydra\.sweeper\.max_bits: Unknown key 'max_bits'\. Did you mean"),
    ],
)
def test_what_is_wrong_is_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Settings.of(given)


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Settings.of({"max_bpw": 0, "split": "all", "candidates": 0})
    assert len(error.value.problems) == 3


class Length:
    """A metric whose best value is the least."""

    name = "length"
    needs = "captions"
    higher_is_better = False
    prepare = score = aggregate = None


def test_the_metric_is_the_first_of_the_task_unless_it_is_named() -> None:
    task = {"metrics": ["cider", "rouge_l"]}
    assert metric_of(Settings("max_bpw", (3.0,)), task) == "cider"
    assert metric_of(Settings("max_bpw", (3.0,), metric="rouge_l"), task) == "rouge_l"
    with pytest.raises(ConfigError, match=r"metric=meteor: is none of task\.metrics\. Choose cider or rouge_l"):
        metric_of(Settings("max_bpw", (3.0,), metric="meteor"), task)


def test_a_metric_of_which_less_is_better_is_refused() -> None:
    own = f"{__name__}:Length"
    with pytest.raises(ConfigError, match=r"less of it is better, .*; choose hydra\.sweeper\.metric=cider"):
        metric_of(Settings("max_bpw", (3.0,)), {"metrics": [own, "cider"]})
    with pytest.raises(ConfigError, match=r"add one to task\.metrics"):
        metric_of(Settings("max_bpw", (3.0,)), {"metrics": [own]})


def test_a_task_with_metrics_of_its_own_is_refused() -> None:
    task = OmegaConf.load(conf_dir() / "task" / "lmms_eval.yaml")
    task.lmms_task = "mme"
    with pytest.raises(ConfigError, match="tasks bring their own; search with another task"):
        metric_of(Settings("max_bpw", (3.0,)), {"name": "mme", "_target_": task["_target_"], "metrics": []})
