"""The choices that a search reads from a command line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launch.search.cells import Question
from mmq_sweeps.errors import ConfigError
from tests.launch.search.asking import question


def settings(asked: Question) -> dict[str, list[tuple[int, str | None, object]]]:
    """Return bits, class of the method and group size of every option, by part."""
    return {
        part: [(one.bits, one.method and one.method["_target_"].rpartition(".")[2], one.group_size) for one in options]
        for part, options in asked.options.items()
    }


def test_every_part_may_take_every_width_and_method() -> None:
    found = settings(question("method=gptq,awq", "bits=2,3,16"))
    every = [(2, "GPTQ", None), (2, "AWQ", None), (3, "GPTQ", None), (3, "AWQ", None), (16, None, None)]
    assert set(found) == {"vision", "connector", "language"}
    assert all(sorted(map(str, own)) == sorted(map(str, every)) for own in found.values())


def test_a_part_may_have_choices_of_its_own_or_none() -> None:
    asked = question(
        "method=rtn", "bits=2,3", "component.language.bits=4,8", "component.vision.bits=8",
        "component.connector.group_size=16,null",
    )  # fmt: skip
    assert settings(asked) == {
        "vision": [(8, "RoundToNearest", None)],
        "connector": [(bits, "RoundToNearest", size) for bits in (2, 3) for size in (16, None)],
        "language": [(4, "RoundToNearest", None), (8, "RoundToNearest", None)],
    }


def test_embeddings_are_searched_if_they_are_named() -> None:
    asked = question("method=rtn", "bits=3,4", "component.embeddings.bits=8,4")
    assert settings(asked)["embeddings"] == [(8, "RoundToNearest", None), (4, "RoundToNearest", None)]


def test_fields_of_a_method_are_choices() -> None:
    asked = question("method=gptq", "bits=3", "method.group_size=channel,16")
    assert [one.method and one.method["group_size"] for one in asked.options["vision"]] == ["channel", 16]


def test_axes_of_the_yaml_are_choices_and_the_command_line_wins() -> None:
    asked = question("bits=3,4", '++hydra.sweeper.params={bits: "2,8", method: "rtn,gptq"}')
    found = settings(asked)["vision"]
    assert sorted(found) == sorted((bits, own, None) for bits in (3, 4) for own in ("RoundToNearest", "GPTQ"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["bits=2,3", "task=scenes_caption,scenes_vqa"], r"task=scenes_caption,scenes_vqa: a search has no axis task"),
        (["bits=2,3", "seed=0,1"], r"seed=0,1: a search has no axis seed; its axes are bits, method, method\.FIELD"),
        (["bits=2,3", "component.language.bits.mlp=2,3"], r"component\.language\.bits\.mlp=2,3: a search has no axis"),
        (["bits=2"], r"has nothing to choose from; give bits=2,3,4,8"),
        (["bits=2,3", "bits=4,8"], r"bits: is swept twice"),
        (["bits=2,33"], r"bits=33: choose 2 to 8, or 16"),
        (["bits=2,3", "component.language.blocks=[front]"], r"language\.blocks=\[front\]: a search assigns whole parts"),
        (["bits=2,3", "component.vision.bits={attention: 2, mlp: 3}"], r"vision\.bits=.*granularity=kind, group or unit"),
        (["bits=2,3", "assignment=some.yaml"], r"assignment=some\.yaml"),
        (["bits=2,3", "hydra.launcher.workers=0"], r"hydra\.launcher\.workers=0: choose a whole number above 0"),
    ],
)  # fmt: skip
def test_what_a_search_cannot_use_is_told(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        question(*arguments)


def test_without_m_it_is_told_that_a_search_needs_it(command: Callable) -> None:
    done = command("hydra/sweeper=budget", "hydra.sweeper.max_bpw=4", "bits=3")
    assert done.returncode == 2
    assert "needs -m: python -m mmq_sweeps -m hydra/sweeper=budget hydra.sweeper.max_bpw=4 bits=3" in done.stderr


def test_budgets_given_as_a_sweep_are_told_to_be_a_list(command: Callable) -> None:
    done = command("-m", "hydra/sweeper=budget", "hydra.sweeper.max_bpw=3,4", "bits=2,3")
    assert done.returncode == 2
    assert "hydra.sweeper.max_bpw=3,4: a setting of Hydra has one value for all cells" in done.stderr
    assert "give hydra.sweeper.max_bpw=[3,4]" in done.stderr
