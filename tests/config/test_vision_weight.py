"""Weights of vision tokens in a configuration: their meaning, and the values that are refused before work starts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig

from mmq_sweeps.config.sweep import plan, resolved
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell

# ``configured("model=tiny_llava", weight=0.5)``: a plain configuration, composed once for the same overrides.
Configured = Callable[..., dict[str, Any]]
KNOWN: dict[tuple[str, ...], dict[str, Any]] = {}


@pytest.fixture
def configured(composed: Callable[..., DictConfig]) -> Configured:
    def made(
        *overrides: str, weight: Any = None, select: str = "", tokens: str | None = "image_token_id"
    ) -> dict[str, Any]:
        if overrides not in KNOWN:
            small = ("tracker=none", "calibration.samples=16", "task.limit=24", "bits=3")
            KNOWN[overrides] = resolved(composed(*small, *(overrides or ("method=gptq",))))
        config = copy.deepcopy(KNOWN[overrides])
        config["method"]["vision_weight"] = weight
        config["model"]["parts"]["language"]["vision_tokens"] = tokens
        if select:
            for part, own in config["component"].items():
                own["bits"] = 3 if part == select else 16
        return config

    return made


def cell(config: dict[str, Any]) -> Cell:
    return plan([config]).cells[-1]


def unit_key(one: Cell, part: str) -> str:
    (rule,) = one.rules(part)
    return one.unit_key(f"{part}.0.mlp", rule, {"bits": 3})


# As they were before methods had the field.
WITHOUT_THE_FIELD = {
    ("tiny_blip2", "gptq"): "17a803a12e75",
    ("tiny_llava", "awq"): "864ed3c8e54b",
    ("tiny_llava", "coordinate_descent"): "e56a36ce151c",
    ("tiny_llava", "gptq"): "954d3f876b85",
}


@pytest.mark.parametrize(("model", "method"), WITHOUT_THE_FIELD)
def test_null_counts_for_no_id_and_no_key(configured: Configured, model: str, method: str) -> None:
    one = cell(configured(f"model={model}", f"method={method}"))
    assert one.id == WITHOUT_THE_FIELD[model, method]
    if (model, method) == ("tiny_llava", "gptq"):
        assert one.statistics_key("language.3.mlp") == "fa7c5c3fa42111119f1d5009"
        assert one.pass_key("language") == "68fd7f79a13eb2746f6d1258"


def test_a_weight_counts_where_both_kinds_are_seen(configured: Configured) -> None:
    axis = (None, 0, 0.5, 1)
    whole = [cell(configured(weight=weight)) for weight in axis]
    assert len({one.id for one in whole}) == len(axis)
    for part in ("vision", "connector"):
        for key in (Cell.part_key, Cell.output_key, unit_key):
            assert len({key(one, part) for one in whole}) == 1
    assert len({unit_key(one, "language") for one in whole}) == len(axis)
    assert len({one.statistics_key("language.0.mlp") for one in whole}) == 1
    assert len({one.kinds_key("language.0.mlp", "language") for one in whole[1:]}) == 1
    assert len({cell(configured(weight=weight, select="vision")).id for weight in axis}) == 1
    assert len({cell(configured(weight=weight, select="head")).id for weight in axis}) == len(axis)
    assert cell(configured(weight=1.0)).id == whole[3].id


def test_which_tokens_are_of_the_image_counts_for_weighted_cells_only(configured: Configured) -> None:
    for weight, distinct in ((None, 1), (0.5, 2)):
        cells = [cell(configured(weight=weight, tokens=name)) for name in ("image_token_id", "image_token_index")]
        assert len({one.id for one in cells}) == distinct
        assert len({unit_key(one, "language") for one in cells}) == distinct


def test_a_part_may_have_a_weight_of_its_own(configured: Configured) -> None:
    config, plain = configured(), cell(configured())
    config["component"]["language"]["method_fields"] = {"vision_weight": 0.5}
    own = cell(config)
    assert unit_key(own, "language") == unit_key(cell(configured(weight=0.5)), "language")
    for part in ("vision", "connector"):
        assert unit_key(own, part) == unit_key(plain, part)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan"), "much", True, [0.5]])
def test_what_is_no_weight_is_refused(configured: Configured, weight: Any) -> None:
    with pytest.raises(ConfigError, match=r"method\.vision_weight=.*choose a number from 0 .* to 1 .*, or null"):
        cell(configured(weight=weight))


def test_the_weight_of_one_part_is_refused_by_its_own_key(configured: Configured) -> None:
    config = configured()
    config["component"]["language"]["method_fields"] = {"vision_weight": 2}
    with pytest.raises(ConfigError, match=r"^component\.language\.method\.vision_weight=2: choose"):
        cell(config)


def test_a_model_that_names_no_vision_tokens_is_refused_with_what_to_add(configured: Configured) -> None:
    with pytest.raises(ConfigError) as refused:
        plan([configured(weight=weight, tokens=None) for weight in (0.5, 0.5)])
    (told,) = refused.value.problems
    assert "tiny_blip2 does not say which tokens of component.language are vision tokens" in told
    assert "model.parts.language.vision_tokens=image_token_id" in told
    with pytest.raises(ConfigError, match=r"component\.head are vision tokens.*model\.parts\.language\.vision_tokens"):
        cell(configured(weight=0.5, tokens=None, select="head"))
    assert cell(configured(weight=0.5, tokens=None, select="vision"))


def test_parts_without_effect_are_told_once(configured: Configured, said: list[str]) -> None:
    plan([configured(weight=weight) for weight in (None, 0.1, 0.9)])
    assert len(said) == 1
    assert "method.vision_weight has no effect on vision, connector of tiny_blip2" in said[0]
