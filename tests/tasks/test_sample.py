"""A sample of a task's items is drawn by a seed, apart from calibration, and makes cells of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.requests import requests
from mmq_sweeps.quantization.targets import Part

Composed = Callable[..., DictConfig]
SMALL = ("task.limit=24", "calibration.samples=4", "tracker=none", "method=gptq")
SAMPLE = "task.sample={seed: 3, start: 0, stop: 8}"
APART = ("task.split=calibration", "task.sample={seed: 3, start: 0, stop: 20, apart_from: {samples: 4, seed: 0}}")


def cell(composed: Composed, *overrides: str) -> Cell:
    return plan([composed(*SMALL, *overrides)]).cells[-1]


def task(composed: Composed, *overrides: str) -> Any:
    (config,) = {id(one): one for one in plan([composed(*SMALL, *overrides)]).configs.values()}.values()
    return build("task", config["task"])


def ids(one: Any) -> list[str]:
    return [item.id for item in one.items]


@pytest.mark.parametrize("name", ["scenes_caption", "scenes_vqa"])
def test_ranges_of_an_order_are_disjoint_and_cover_all(composed: Composed, name: str) -> None:
    every = ids(task(composed, f"task={name}"))
    ranges = [
        ids(task(composed, f"task={name}", f"task.sample={{seed: 3, start: {start}, stop: {start + 8}}}"))
        for start in (0, 8, 16)
    ]
    together = [item for own in ranges for item in own]
    assert sorted(together) == sorted(every)
    assert together != every
    other = ids(task(composed, f"task={name}", "task.sample={seed: 4, start: 0, stop: 8}"))
    assert set(other) != set(ranges[0])


def test_calibration_samples_are_left_out(composed: Composed, tmp_path: Path) -> None:
    one = task(composed, *APART)
    calibration = {"samples": 4, "seed": 0}
    one.check([calibration], tmp_path)
    samples = {example.id for example in one.examples.drawn(calibration)}
    assert len(ids(one)) == 20
    assert not samples & set(ids(one))
    plain = task(composed, "task.split=calibration")
    with pytest.raises(ValueError, match="calibration samples are also evaluated"):
        plain.check([calibration], tmp_path)


def test_a_sample_is_another_cell_that_shares_quantized_units(composed: Composed, parts: dict[str, Part]) -> None:
    whole, some = cell(composed), cell(composed, SAMPLE)
    assert whole.id != some.id
    assert len({cell(composed, f"task.sample={{seed: 3, start: {start}, stop: 16}}").id for start in (0, 1, 8)}) == 3
    keys = [[request.key for request in requests(one, build, parts)] for one in (whole, some, cell(composed, *APART))]
    assert keys[0] == keys[1] == keys[2]
    assert whole.output_key("vision") != some.output_key("vision")


def test_no_sample_is_no_other_cell_than_none(composed: Composed) -> None:
    config = composed(*SMALL)
    assert config.task.sample is None
    OmegaConf.set_struct(config, False)
    del config.task["sample"], config.task["teacher_forced"]
    assert plan([config]).cells[-1].id == cell(composed).id
    assert "sample" not in cell(composed).task
    assert cell(composed, SAMPLE).id == cell(composed, "task.sample={seed: 3, stop: 8, apart_from: null}").id


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("3", "give a mapping"),
        ("{seed: 0, start: 0, end: 4}", "Unknown key 'end'"),
        ("{start: 0, stop: 4}", r"task\.sample\.seed=None: choose a whole number"),
        ("{seed: 0, start: 4, stop: 4}", r"choose a number above task\.sample\.start=4"),
        ("{seed: 0, stop: 4, apart_from: {samples: 4, seed: 0}}", "is not the split that they are drawn from"),
        ("{seed: 0, stop: 4, apart_from: 128}", "give the calibration's own"),
    ],
)
def test_a_sample_that_means_nothing_is_told(composed: Composed, given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        cell(composed, f"task.sample={given}")


def test_a_sample_beyond_the_items_is_told(composed: Composed) -> None:
    with pytest.raises(ValueError, match=r"task\.sample\.stop=30: evaluation has 24 items"):
        ids(task(composed, "task.sample={seed: 0, start: 0, stop: 30}"))


def test_the_sampled_items_score_as_they_do_among_all(composed: Composed, tmp_path: Path) -> None:
    """Questions are scored separately; a picture's rank is among all pictures and texts, asked or not."""
    from mmq_sweeps.execution.executor import quiet_libraries
    from mmq_sweeps.models.loading import load_model

    overrides = (
        "model=tiny_blip2_itm",
        "task=scenes_retrieval",
        "component=vision",
        "task.limit=16",
        "task.shortlist=2",
    )
    config = next(iter(plan([composed(*SMALL, *overrides)]).configs.values()))
    with quiet_libraries():
        loaded: LoadedModel = load_model(config["model"])
    every, some = task(composed, *overrides), task(composed, *overrides, "task.sample={seed: 3, start: 0, stop: 2}")
    found = [one.predict(loaded, lambda done, total: None) for one in (every, some)]
    queries = [example.id for example in some.queries]
    assert len(queries) == 2
    assert len(found[1]) == 2 * 6
    assert {item: found[0][item] for item in found[1]} == dict(found[1])
    scores = [
        one.score(own, tmp_path)["text_recall_at_1"].per_item for one, own in zip((every, some), found, strict=True)
    ]
    assert scores[1] == {item: scores[0][item] for item in queries}
