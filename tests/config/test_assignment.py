"""Bit-widths inside a part, methods of parts and files of units: their meaning, and the same id for every spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from launch.planning.structures import cached_structures
from mmq_sweeps.config.assignment import Source, matches
from mmq_sweeps.config.overrides import as_written, kept_apart, swept_with_group
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.cell import Cell

Composed = Callable[..., DictConfig]
STRUCTURES = cached_structures()
LANGUAGE = "component=language"


def cell(composed: Composed, *overrides: str) -> Cell:
    return plan([composed(*kept_apart(overrides))], Source(structures=STRUCTURES)).cells[-1]


def problems(composed: Composed, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        cell(composed, *overrides)
    return raised.value.problems


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Any], str]:
    def write(content: Any) -> str:
        path = tmp_path / "assignment.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return f"assignment={path}"

    return write


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["component.language.bits={attention: 3, mlp: 3}"], ["component.language.bits=3"]),
        (["component.language.bits={front: 3, middle: 3, end: {mlp: 3, attention: 3}}"], ["component.language.bits=3"]),
        (
            ["component.language.bits={mlp: 3, attention: 16}"],
            ["component.language.bits=3", "component.language.layers=[mlp]"],
        ),
        (
            ["component.language.bits={attention: {front: 3, middle: 2, end: 2}, mlp: 3}"],
            ["component.language.bits={front: 3, middle: {attention: 2, mlp: 3}, end: {attention: 2, mlp: 3}}"],
        ),
        (["component.language.bits.mlp=3"], ["component.language.bits={attention: 4, mlp: 3}"]),
        (
            ["component.language.bits.end.mlp=3", "component.language.bits={attention: 5, mlp: 4}"],
            ["component.language.bits={attention: 5, mlp: {front: 4, middle: 4, end: 3}}"],
        ),
        (["component.language.method=gptq"], ["method=gptq"]),
        (["component.language.method=none"], ["method=none"]),
        (["component.language.method={name: rtn, group_size: 16}"], ["method.group_size=16"]),
        (["component.language.method.group_size=16"], ["component.language.group_size=16"]),
        (["component.language.group_size=16"], ["method.group_size=16"]),
        (
            ["component.language.method=gptq", "component.language.method.damping=0.5"],
            ["method=gptq", "method.damping=0.5"],
        ),
        (["method=gptq", "component.language.method=rtn", "calibration.samples=5"], []),
    ],
    ids=str,
)
def test_one_assignment_has_one_id(composed: Composed, one: list[str], other: list[str]) -> None:
    assert cell(composed, LANGUAGE, *one).id == cell(composed, LANGUAGE, *other).id


@pytest.mark.parametrize(
    "other", [["method=gptq"], ["component.vision.method=gptq"], ["component.language.bits.mlp=3"]]
)
def test_another_assignment_has_another_id(composed: Composed, other: list[str]) -> None:
    assert cell(composed, *other).id != cell(composed).id


def test_methods_are_named_with_their_parts(composed: Composed) -> None:
    one = cell(composed, "method=gptq", "component.vision.method=rtn", "bits=3")
    assert one.names["method"] == "rtn (vision), gptq (connector, language)"
    assert one.title() == "rtn (vision), gptq (connector, language) vision 3 connector 3 language 3"
    assert one.calibration == {"samples": 128, "seed": 0}
    assert one.uncalibrated == ["rtn"]


def test_a_part_shares_its_units_with_cells_of_another_method(composed: Composed) -> None:
    mixed = cell(composed, "method=gptq", "component.vision.method=rtn")
    rtn, gptq = cell(composed, "method=rtn"), cell(composed, "method=gptq")
    for part, own, foreign in (("vision", rtn, gptq), ("connector", gptq, rtn), ("language", gptq, rtn)):
        assert mixed.part_key(part) == own.part_key(part) != foreign.part_key(part)
        keys = [one.unit_key("u", one.rules(part)[0], {"bits": 4}) for one in (mixed, own, foreign)]
        assert keys[0] == keys[1] != keys[2]
    assert mixed.output_key("vision") == rtn.output_key("vision")


def test_units_of_a_mapping_are_those_of_a_number(composed: Composed) -> None:
    mixed = cell(composed, "method=gptq", "component.language.bits={attention: 4, mlp: 3}")
    for rule in mixed.rules("language"):
        plain = cell(composed, "method=gptq", f"bits={rule.bits}")
        assert mixed.unit_key("u", rule, {}) == plain.unit_key("u", plain.rules("language")[0], {})
        assert mixed.part_key("language") != plain.part_key("language")


def test_a_file_that_names_every_unit_alike_is_the_number(composed: Composed, write: Callable[[Any], str]) -> None:
    assert cell(composed, write({"units": {"*": 3}})).id == cell(composed, "bits=3").id
    model: Any = OmegaConf.to_container(composed().model, resolve=True)
    every = {f"language.{block}.{kind}": 2 for block, kind in STRUCTURES(model)["language"].units}
    assert cell(composed, write({"units": every})).id == cell(composed, "component.language.bits=2").id


def test_a_file_gives_units_bits_groups_and_methods(composed: Composed, write: Callable[[Any], str]) -> None:
    units = {"language.*.mlp": {"bits": 3, "method": "gptq", "group_size": 16}, "language.0.mlp": 2, "vision.0-1.*": 8}
    one = cell(composed, write({"units": units}), "bits=4")
    by_unit = {
        unit: (rule.bits, rule.method["_target_"], rule.method["group_size"])
        for rule in one.rules("language")
        for unit in rule.rule.get("units", [])
    }
    assert by_unit["0.mlp"] == (2, "rtn", "channel")
    assert {setting for unit, setting in by_unit.items() if unit != "0.mlp"} <= {(3, "gptq", 16)}
    assert {rule.bits for rule in one.rules("vision")} == {4, 8}
    assert one.names["method"] == "rtn (vision, connector, language), gptq (language)"


def test_the_parts_of_a_file_stand_for_those_of_the_component(composed: Composed, write: Callable[[Any], str]) -> None:
    one = cell(composed, write({"method": "gptq", "parts": {"language": {"attention": 4, "mlp": 3}}}))
    other = cell(composed, "method=gptq", LANGUAGE, "component.language.bits={attention: 4, mlp: 3}")
    assert one.id == other.id
    rules = [{"bits": 4, "layers": ["attention"]}, {"bits": 3, "layers": ["mlp"]}]
    assert cell(composed, write({"method": "gptq", "parts": {"language": rules}})).id == other.id


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["bits={mlp: 3}"], "component.language.bits={mlp: 3}: leaves attention undefined; give a width to each"),
        (["bits={front: 3, middle: 4, end: {mlp: 3}}"], "leaves end attention undefined"),
        (["bits={mlp: 3, end: 4, attention: 3}"], "names end attention twice"),
        (["bits={mlp: 9, attention: 4}"], "component.language.bits.mlp=9: choose 2 to 8"),
        (["bits={mpl: 3}"], "component.language.bits.mpl: Unknown block group or layer kind 'mpl'. Did you mean mlp?"),
        (["bits={mlp: {attention: 3}}"], "component.language.bits.mlp.attention: Unknown block group or layer kind"),
        (["bits.mlp=1"], "component.language.bits.mlp=1: choose 2 to 8"),
        (["bits={mlp: 3, attention: 4}", "layers=[mlp]"], "component.language.layers=[mlp] leaves attention out"),
        (["bits=word"], "component.language.bits=word: choose 2 to 8, or 16 for full precision, or a mapping such as"),
        (["method=gtpq"], "component.language.method=gtpq: Unknown method 'gtpq'. Did you mean gptq?"),
        (
            ["method=gptq", "method.dumping=1"],
            "method.dumping=1: Unknown field 'dumping'. Did you mean damping?",
        ),
        (["method=3"], "component.language.method=3: give the name of a method. Choose auto_gptq"),
    ],
    ids=str,
)
def test_a_wrong_part_is_told_with_key_value_and_choices(
    composed: Composed, overrides: list[str], expected: str
) -> None:
    told = problems(composed, LANGUAGE, *(f"component.language.{override}" for override in overrides))
    assert any(expected in problem for problem in told), told


def test_one_wrong_width_is_told_once(composed: Composed) -> None:
    assert problems(composed, "bits=1") == ["bits=1: choose 2 to 8, or 16 for full precision."]


def test_a_head_that_the_model_lacks_is_refused(composed: Composed) -> None:
    told = problems(composed, "model=tiny_blip2_itm", "task=scenes_retrieval", "component.head.bits=3")
    assert told == [
        "component.head.bits=3: Unknown part 'head'. Choose vision, connector or embeddings, the parts of tiny_blip2_itm."
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"units": {"langauge.0.mlp": 3}}, "langauge.0.mlp names no unit of the model. Near it: language.0.mlp"),
        ({"units": {"language.99.mlp": 3}}, "language.99.mlp names no unit of the model. Near it: language."),
        ({"units": {"language.*.mlp": 3, "language.0.*": 4}}, "both name language.0.mlp; give each unit one setting"),
        ({"units": {"language.0.mlp": 9}}, "units.language.0.mlp: bits=9: choose 2 to 8"),
        ({"units": {"language.0.mlp": {"bit": 3}}}, "units.language.0.mlp: Unknown key 'bit'. Did you mean bits?"),
        ({"unit": {}}, "Unknown section 'unit'. Did you mean units?"),
        ({"model": "tiny_llava"}, "is of the model tiny_llava, and model=tiny_blip2"),
        ({"parts": {"visoin": 4}}, "Unknown part 'visoin'. Did you mean vision?"),
        ({"parts": {"vision": {"mlp": 4}}}, "component.vision.bits={mlp: 4}: leaves attention undefined"),
        ({"parts": {"vision": [{"bits": 4}, {"bits": 3, "layers": ["mlp"]}]}}, "names front mlp twice"),
        (
            {"units": {"language.0.mlp": {"bits": 3, "group_size": -3}}},
            "units.language.0.mlp: group_size=-3: choose tensor",
        ),
        ({"parts": {"vision": [{"bits": 4, "group_size": "big"}]}}, "parts.vision: group_size=big: choose tensor"),
        ({"parts": {"vision": [{"bits": 9}]}}, "parts.vision: bits=9: choose 2 to 8"),
        ({"parts": {"vision": [{"bits": 4, "blocks": ["fornt"]}]}}, "Unknown block 'fornt'. Did you mean front?"),
        ({"parts": {"head": [{"bits": 4}]}}, "parts.head: is one tensor, so it has no list of rules"),
        ({"parts": {}}, "parts: names none, so nothing would be quantized"),
        ('{"units": {"language.0.mlp": 3, "language.0.mlp": 4}}', "names language.0.mlp twice"),
        ([1], "is [1]; give a mapping"),
        ("{", "is no JSON"),
    ],
    ids=str,
)
def test_a_wrong_file_is_told_by_name(
    composed: Composed, write: Callable[[Any], str], content: Any, expected: str
) -> None:
    (told,) = problems(composed, given := write(content))
    assert told.startswith(given)
    assert expected in told


def test_a_file_that_is_not_there_is_told(composed: Composed) -> None:
    assert problems(composed, "assignment=nowhere.yaml") == ["assignment=nowhere.yaml: No such file or directory."]


def test_patterns_name_units_as_in_a_shell_and_by_range() -> None:
    assert matches("language.*.mlp", "language.12.mlp")
    assert matches("language.2-12.*", "language.12.mlp")
    assert not matches("language.2-12.*", "language.13.mlp")
    assert not matches("vision.*", "language.0.mlp")


def test_overrides_below_bits_and_method_are_kept_apart_and_shown_as_written() -> None:
    typed = [
        "component.language.bits.end.mlp=2,3",
        "component.vision.method.group_size=64",
        "bits=3",
        "component.vision.method=rtn",
    ]
    apart = kept_apart(typed)
    assert apart[:2] == ["++component.language.bits_at.end.mlp=2,3", "++component.vision.method_fields.group_size=64"]
    assert apart[2:] == typed[2:]
    assert as_written(apart) == typed


def test_fields_of_a_swept_group_are_swept_with_it_and_shown_as_written() -> None:
    typed = ["-m", "method=gptq,awq", "method.vision_weight=0.5", "method.damping=0.1,0.2", "task.limit=4", "bits=3"]
    swept = swept_with_group(typed)
    assert swept == [*typed[:2], "method.vision_weight=choice(0.5)", *typed[3:]]
    assert as_written(swept) == typed
    # The last value of a key counts.
    last = [*typed[:2], *typed[3:], "method.vision_weight=1"]
    assert as_written(swept_with_group([*typed, "method.vision_weight=1"])) == last
    assert swept_with_group(["-m", "method=gptq", *typed[2:]]) == ["-m", "method=gptq", *typed[2:]]


@pytest.mark.parametrize("place", range(3))
def test_the_files_in_the_documentation_are_cells(composed: Composed, tmp_path: Path, place: int) -> None:
    page = Path(__file__).parents[2] / "docs" / "assignments.md"
    files = re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(files) == 3
    (tmp_path / "file.yaml").write_text(files[place])
    one = cell(composed, f"assignment={tmp_path / 'file.yaml'}")
    assert {rule.bits for rule in one.rules("language")} >= {2, 4}


@pytest.mark.parametrize("text", ["units:\n  vision.0.mlp: 3\n  vision.0.mlp: 4\n", "parts: {vision: 4, vision: 3}\n"])
def test_a_name_that_stands_twice_in_a_yaml_is_told(composed: Composed, tmp_path: Path, text: str) -> None:
    (tmp_path / "twice.yaml").write_text(text)
    (told,) = problems(composed, f"assignment={tmp_path / 'twice.yaml'}")
    assert re.search(r"names vision(\.0\.mlp)? twice; give each name one value", told)


def test_a_cell_has_one_calibration(composed: Composed) -> None:
    other = "component.language.method={name: gptq, calibration: {samples: 4, seed: 0, batch_size: 2}}"
    (told,) = problems(composed, "method=gptq", other)
    assert told.startswith("method.calibration: differs between the methods of one cell; give calibration.samples=N")
    assert cell(composed, "method=rtn", "component.language.method=gptq", "calibration.samples=4").calibration == {
        "samples": 4,
        "seed": 0,
    }


def test_outputs_behind_texts_depend_on_embeddings_and_head(composed: Composed) -> None:
    plain = cell(composed, "bits=4")
    for part in ("embeddings", "head"):
        other = cell(composed, "bits=4", f"component.{part}.bits=8")
        assert other.output_key("vision") == plain.output_key("vision")
        assert other.output_key("connector") != plain.output_key("connector")


def test_a_class_takes_calibration_data_as_its_option_does(composed: Composed) -> None:
    own = "component.language.method={_target_: mmq_sweeps.methods.gptq.GPTQ, calibration: '${calibration}'"
    fields = composed("method=gptq").method
    given = ", ".join(
        f"{name}: {'null' if fields[name] is None else str(fields[name]).lower()}"
        for name in fields
        if name not in ("_target_", "calibration")
    )
    assert cell(composed, LANGUAGE, f"{own}, {given}}}").id == cell(composed, LANGUAGE, "method=gptq").id
