from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from torch import nn

from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, TargetError
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.targets import Part, block_groups, check_format, find_parts

Composed = Callable[..., DictConfig]

ALL = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}


@given(st.integers(0, 100))
def test_thirds_cover_every_block_once(count: int) -> None:
    groups = block_groups(count)
    assert [index for span in groups.values() for index in span] == list(range(count))
    assert max(map(len, groups.values())) - min(map(len, groups.values())) <= 1


def test_every_linear_of_every_block_belongs_to_one_unit(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    for part in (part for part in parts.values() if not part.at_an_end):
        expected = {
            f"{path}.{name}"
            for path in part.blocks
            for name, module in loaded.model.get_submodule(path).named_modules()
            if isinstance(module, nn.Linear)
        }
        units = [name for unit in part.units for name in unit.linears]
        assert sorted(units) == sorted(expected)


def test_selections_are_made_of_blocks_and_layer_kinds(parts: dict[str, Part]) -> None:
    vision = parts["vision"]
    everything = {unit.name for unit in vision.select(ALL)}
    pieces = [
        {unit.name for unit in vision.select({"blocks": [group], "layers": [kind]})}
        for group in ALL["blocks"]
        for kind in ALL["layers"]
    ]
    assert set().union(*pieces) == everything
    assert sum(map(len, pieces)) == len(everything)


def test_a_selection_without_a_linear_names_what_there_is(parts: dict[str, Part]) -> None:
    short = Part("vision", "v", ("v.0",), (), masked=False)
    with pytest.raises(
        TargetError, match=r"component.vision .* selects no linear: of the 1 blocks .* end has 1 blocks"
    ):
        short.select({"blocks": ["front"], "layers": ["mlp"]})
    assert parts["vision"].select(ALL)


def test_a_path_that_does_not_resolve_names_those_tried(loaded: LoadedModel, model_config: dict) -> None:
    config = copy.deepcopy(model_config["parts"])
    config["vision"]["module"] = ["vision_tower", "model.vision"]
    with pytest.raises(TargetError, match=r"model.parts.vision.module: none of vision_tower, model.vision is a module"):
        find_parts(loaded.model, {"parts": config})


def test_a_linear_of_no_kind_and_one_of_two_are_errors(loaded: LoadedModel, model_config: dict) -> None:
    config = copy.deepcopy(model_config["parts"])
    config["language"]["mlp"] = ["fc1"]
    with pytest.raises(TargetError, match="fc2 belongs to no layer kind"):
        find_parts(loaded.model, {"parts": config})
    config["language"]["mlp"] = ["fc1", "fc2", "self_attn"]
    with pytest.raises(TargetError, match="belongs to 2 layer kinds"):
        find_parts(loaded.model, {"parts": config})


def test_a_linear_selected_twice_is_an_error(loaded: LoadedModel, model_config: dict) -> None:
    config = copy.deepcopy(model_config["parts"])
    config["again"] = config["vision"]
    with pytest.raises(TargetError, match=r"a linear is selected twice: vision's .* and again's .* are one weight"):
        find_parts(loaded.model, {"parts": config})


def test_a_part_without_linears_is_an_error() -> None:
    model = nn.Module()
    model.tower = nn.Module()
    model.tower.layers = nn.ModuleList([nn.LayerNorm(4)])
    where = {"module": ["tower"], "blocks": ["layers"], "attention": ["a"], "mlp": ["b"], "masked": False}
    with pytest.raises(TargetError, match=r"no linear lies in the blocks under tower\.layers"):
        find_parts(model, {"parts": {"vision": where}})


def test_a_group_size_that_does_not_divide_names_the_linear(parts: dict[str, Part]) -> None:
    problems = check_format(parts["language"].select(ALL), Format(4, 7))
    widths = {shape[1] for unit in parts["language"].units for shape in unit.linears.values()}
    assert len(problems) == len(widths) > 1
    assert all("group_size=7 does not divide" in problem for problem in problems)
    assert any("fc2" in problem for problem in problems)


def test_a_group_size_is_told_by_the_key_that_it_stands_at(parts: dict[str, Part]) -> None:
    problems = check_format(parts["vision"].select(ALL), Format(4, 7), "component.vision.group_size")
    assert problems
    assert all(problem.startswith("component.vision.group_size: group_size=7") for problem in problems)
    assert all(re.search(r"\d+ linears? of vision, such as vision_model\.", problem) for problem in problems)


def test_what_sees_the_tokens_of_the_mask(loaded: LoadedModel, model_config: dict) -> None:
    config = copy.deepcopy(model_config["parts"])

    def masked(value: object) -> dict[str, bool]:
        config["connector"]["masked"] = value
        return find_parts(loaded.model, {"parts": config})["connector"].masked_linears

    assert masked(False) == {}
    everything = masked(True)
    assert everything
    assert not any(everything.values())
    named = masked(["attention", "output_query"])
    assert all(named.values())
    inside = {name: name.split(".", 4)[-1] for name in everything}
    assert set(named) == {name for name in everything if inside[name].startswith(("attention.", "output_query."))}
    with pytest.raises(
        TargetError, match=r"model.parts.connector.masked: text holds no linear of a block of connector"
    ):
        masked(["attention", "text"])
    with pytest.raises(TargetError, match=r"model.parts.connector.masked=attention: give true, false or a list"):
        masked("attention")


@pytest.mark.parametrize("size", ["0", "-4", "seven", "true", "1.5"])
def test_a_group_size_that_is_none_is_told_before_a_cell_runs(composed: Composed, size: str) -> None:
    with pytest.raises(ConfigError) as raised:
        plan([composed(f"component.vision.group_size={size}")])
    (told,) = raised.value.problems
    assert told.startswith("component.vision.group_size=")
    assert told.endswith("choose tensor, channel or a positive number of input columns.")


@pytest.mark.parametrize(
    ("same", "overrides"),
    [
        (True, ["component.vision.group_size=null"]),
        (True, ["component.vision.group_size=channel"]),  # which is the method's
        (False, ["component.vision.group_size=16"]),
        (False, ["component.vision.group_size=tensor"]),
    ],
)
def test_a_group_size_counts_where_it_is_not_the_methods(composed: Composed, same: bool, overrides: list[str]) -> None:
    plain, own = (plan([composed("method=rtn", *more)]).cells[-1] for more in ([], overrides))
    assert (plain.id == own.id) is same
    assert ("group_size" in own.parts["vision"]) is not same


def test_a_title_names_a_group_size_of_its_own(composed: Composed) -> None:
    overrides = ("bits=3", "component.vision.group_size=64", "component.language.group_size=tensor")
    one = plan([composed(*overrides, "component.language.blocks=[end]")]).cells[-1]
    assert one.title() == "rtn vision 3 g64 connector 3 language 3 tensor (end)"
