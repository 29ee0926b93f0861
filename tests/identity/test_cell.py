from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, open_dict

from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell

Composed = Callable[..., DictConfig]


def cell(composed: Composed, *overrides: str) -> Cell:
    return plan([composed(*overrides)]).cells[-1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["method=none", "bits=2"], ["method=none", "bits=8"]),
        (["method=none"], ["method=gptq", "bits=16"]),
        (["method=none", "component=vision"], ["method=rtn", "component=language", "bits=16"]),
        (["component=vision", "bits=3"], ["bits=3", "component.connector.bits=16", "component.language.bits=16"]),
        (["component.vision.bits=3", "bits=4"], ["bits=3", "component.connector.bits=4", "component.language.bits=4"]),
        (["component.vision.blocks=[end,front]"], ["component.vision.blocks=[front,end]"]),
        (["component.vision.layers=[mlp,attention]"], []),
        (["task.metrics=[meteor,cider]"], ["task.metrics=[cider,meteor]"]),
        (["task.batch_size=7"], []),
        (["model.device=cpu"], []),
        (["tracker=none", "retry=all", "store.dir=elsewhere"], []),
        (["method=rtn", "seed=3"], ["method=rtn", "seed=4"]),
        (["method=rtn", "calibration.samples=3"], ["method=rtn"]),
    ],
    ids=str,
)
def test_what_cannot_change_the_result_does_not_change_the_id(
    composed: Composed, one: list[str], other: list[str]
) -> None:
    assert cell(composed, *one).id == cell(composed, *other).id


@pytest.mark.parametrize(
    "overrides",
    [
        ["bits=3"],
        ["method=uniform"],
        ["method=gptq"],
        ["method.group_size=16"],
        ["method.symmetric=true"],
        ["component=vision"],
        ["component.vision.bits=3"],
        ["component.vision.blocks=[front]"],
        ["component.vision.layers=[mlp]"],
        ["task.limit=200"],
        ["task.metrics=[cider,meteor]"],
        ["model.generation.caption.num_beams=2"],
        ["task.data.seed=1"],
        ["model.dtype=bfloat16"],
        ["model.checkpoint=elsewhere"],
    ],
    ids=str,
)
def test_what_can_change_the_result_changes_the_id(composed: Composed, overrides: list[str]) -> None:
    assert cell(composed, *overrides).id != cell(composed).id


def test_calibration_counts_where_a_method_uses_it(composed: Composed) -> None:
    ids = {
        cell(composed, "method=gptq", *more).id
        for more in ([], ["seed=1"], ["calibration.samples=7"], ["method.damping=0.1"])
    }
    assert len(ids) == 4
    assert cell(composed, "method=gptq").calibration == {"samples": 128, "seed": 0}
    assert cell(composed, "method=gptq", "calibration.batch_size=1").id in ids


def test_the_id_is_the_same_in_another_process(composed: Composed) -> None:
    here = cell(composed, "method=gptq", "bits=3")
    program = "import sys, json; from mmq_sweeps.identity.cell import digest; print(digest(json.load(sys.stdin))[:12])"
    other = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(here.effective), capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == here.id


def test_a_plan_is_distinct_and_starts_with_the_baseline(composed: Composed) -> None:
    configs = [composed("method=none", f"bits={bits}") for bits in (2, 3, 4, 8)]
    configs += [composed("method=rtn", f"bits={bits}") for bits in (2, 2, 16)]
    cells = plan(configs).cells
    assert [one.title() for one in cells] == ["full precision", "rtn vision 2 connector 2 language 2"]


def test_the_group_of_a_sweep_does_not_depend_on_the_order(composed: Composed) -> None:
    configs = [composed(f"bits={bits}") for bits in (2, 3)]
    assert plan(configs).id == plan(configs[::-1]).id


def test_titles_name_what_is_narrowed(composed: Composed) -> None:
    title = cell(composed, "component=language", "component.language.blocks=[front]", "bits=3").title()
    assert title == "rtn language 3 (front)"


def test_all_problems_of_all_cells_are_told_at_once(composed: Composed) -> None:
    configs = [
        composed("bits=9"),
        composed("component.vision.blocks=[]", "retry=never"),
        composed("task.metrics=[cidr]", "component.language.layers=[mlp,mlp]"),
    ]
    with pytest.raises(ConfigError) as raised:
        plan(configs)
    told = "\n".join(raised.value.problems)
    for expected in (
        "bits=9: choose 2 to 8, or 16 for full precision.",
        "component.vision.blocks=[]: selects nothing. Choose front, middle or end.",
        "retry=never: Unknown choice 'never'. Choose failed, all or none.",
        "task.metrics: Unknown metric 'cidr'. Did you mean cider?",
        "component.language.layers=[mlp, mlp]: names one twice",
    ):
        assert expected in told


def test_all_leaves_out_a_connector_that_the_model_does_not_have(composed: Composed) -> None:
    def without_connector(*overrides: str) -> DictConfig:
        config = composed(*overrides)
        with open_dict(config):
            del config.model.parts["connector"]
        return config

    assert plan([without_connector("bits=3")]).cells[-1].title() == "rtn vision 3 language 3"
    with pytest.raises(ConfigError, match="component: Unknown part 'connector'") as raised:
        plan([without_connector("bits=3", "component=connector")])
    assert any("selects no part of tiny_blip2" in problem for problem in raised.value.problems)


def test_a_folder_whose_weights_change_is_another_model(composed: Composed, tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    ids = []
    for content in (b"one", b"two", b"one"):
        weights.write_bytes(content)
        ids.append(cell(composed, f"model.checkpoint={tmp_path}").id)
    assert ids[0] == ids[2] != ids[1]


def test_parts_that_are_quantized_alike_have_one_key(composed: Composed) -> None:
    mixed = cell(composed, "method=gptq", "component.vision.bits=3", "component.language.bits=2")
    other = cell(composed, "method=gptq", "component.vision.bits=3", "component.language.bits=8")
    assert mixed.part_key("vision") == other.part_key("vision")
    assert mixed.part_key("language") != other.part_key("language")
    assert mixed.part_key("vision") != cell(composed, "method=rtn", "component.vision.bits=3").part_key("vision")
    full = cell(composed, "method=gptq", "component=language", "bits=3")
    assert full.part_key("vision") == full.baseline().part_key("vision")


def test_what_a_part_gives_depends_on_the_parts_before_it(composed: Composed) -> None:
    one = cell(composed, "component.vision.bits=3", "component.connector.bits=4", "component.language.bits=2")
    metrics = cell(composed, "component.vision.bits=3", "component.connector.bits=4", "task.metrics=[meteor]")
    vision = cell(composed, "component.vision.bits=2", "component.connector.bits=4")
    assert one.output_key("connector") == metrics.output_key("connector")
    assert one.output_key("connector") != vision.output_key("connector")
    assert one.output_key("vision") != one.output_key("connector")
    assert one.output_key("vision") != cell(composed, "component.vision.bits=3", "task.limit=9").output_key("vision")
