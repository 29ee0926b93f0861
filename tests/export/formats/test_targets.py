from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mmq_sweeps.export.formats.targets import targets

PATHS = ("vision_model.encoder.layers", "text.encoder.layers", "qformer.encoder.layer", "model.layers", "layers")
NAMES = st.builds(
    lambda path, number, linear: f"{path}.{number}.{linear}",
    st.sampled_from(PATHS), st.integers(0, 12), st.sampled_from(["attn.q", "mlp.fc1", "fc1", "experts.1.up"]),
) | st.sampled_from(["lm_head", "model.lm_head", "proj.1"])  # fmt: skip


def matches(target: str, name: str) -> bool:
    return bool(re.match(target[3:], name)) if target.startswith("re:") else target == name


@given(st.sets(NAMES, max_size=20), st.sets(NAMES, max_size=20))
def test_targets_match_the_names_and_no_other(names: set[str], others: set[str]) -> None:
    others -= names
    found = targets(sorted(names), sorted(others))
    for name in names:
        assert sum(matches(target, name) for target in found) == 1, name
    for name in others:
        assert not any(matches(target, name) for target in found), name


def test_a_pattern_is_short_enough_for_loaders_that_leave_out_prefixes() -> None:
    names = [f"vision_model.encoder.layers.{block}.{linear}" for block in (0, 1) for linear in ("attn.q", "mlp.fc1")]
    others = [f"language_model.model.decoder.layers.{block}.mlp.fc1" for block in (0, 1)]
    assert targets(names, others) == [r"re:.*\bencoder\.layers\.(?:0|1)\.(?:attn\.q|mlp\.fc1)$"]


def test_a_pattern_is_long_enough_to_leave_out_another_tower() -> None:
    names = [f"vision.encoder.layers.{block}.fc1" for block in (0, 1)]
    others = [f"text.encoder.layers.{block}.fc1" for block in (0, 1)]
    assert targets(names, others) == [r"re:.*\bvision\.encoder\.layers\.(?:0|1)\.fc1$"]


def test_a_single_linear_is_named() -> None:
    assert targets(["model.layers.3.fc1", "proj"], ["model.layers.4.fc1"]) == ["proj", "model.layers.3.fc1"]
