"""A solved unit says how much of its weights and outputs quantization changed."""

from __future__ import annotations

import pytest
import torch

from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization.folding import FoldedScales
from mmq_sweeps.quantization.solve import PackedUnit, _share, _square


def relative_error(restored: torch.Tensor, weight: torch.Tensor, gram: torch.Tensor | None = None) -> float:
    return _share(_square(restored - weight, gram), _square(weight, gram))


def test_the_output_error_is_that_of_the_outputs() -> None:
    torch.manual_seed(0)
    weight, inputs = torch.randn(6, 8), torch.randn(50, 8) @ torch.randn(8, 8)
    restored = weight + 0.1 * torch.randn(6, 8)
    gram = inputs.T @ inputs / len(inputs)
    changed = ((restored - weight) @ inputs.T).square().sum()
    whole = (weight @ inputs.T).square().sum()
    assert relative_error(restored, weight, gram) == pytest.approx(float(changed / whole), rel=1e-5)
    assert relative_error(restored, weight) == pytest.approx(
        float((restored - weight).square().sum() / weight.square().sum())
    )


def test_an_error_of_nothing_is_none_and_of_no_weight_nothing() -> None:
    weight = torch.randn(3, 4)
    assert relative_error(weight, weight, torch.eye(4)) == 0.0
    assert relative_error(torch.ones(3, 4), torch.zeros(3, 4)) == 0.0


def test_a_unit_averages_over_its_weights(loaded: LoadedModel) -> None:
    scales = FoldedScales(loaded)
    unit = PackedUnit(scales, errors=[(10, 0.1, 0.2), (30, 0.3, 0.4)])
    assert unit.error == {"weight_error": pytest.approx(0.25), "output_error": pytest.approx(0.35)}
    assert PackedUnit(scales, errors=[(10, 0.1, None), (30, 0.3, 0.4)]).error["output_error"] is None
