"""Linears that transformers cannot load packed are found before they are written that way."""

from __future__ import annotations

import pytest
from torch import nn

from mmq_sweeps.models.initializing import loads_packed
from tests.models.toys import toy_model


@pytest.mark.parametrize(
    ("name", "failing"),
    [("paligemma2_3b", "model.vision_tower."), ("llava_1_5_7b", None), ("blip2_opt_2_7b", None)],
)
def test_only_siglips_linears_must_be_dense(name: str, failing: str | None) -> None:
    model = toy_model(name).model
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = {path for path in linears if not loads_packed(model, path)}
    assert found == {path for path in linears if failing and path.startswith(failing)}
