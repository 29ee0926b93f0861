from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mmq_sweeps.methods.products import LEAST, PANEL, is_large, product


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def layouts(matrix: Tensor) -> dict[str, Tensor]:
    """Return the same matrix side by side, turned, and as a part of a larger one."""
    rows, columns = matrix.shape
    larger = torch.zeros(rows + 5, columns + 7)
    larger[2 : rows + 2, 3 : columns + 3] = matrix
    return {"rows": matrix, "columns": matrix.T.contiguous().T, "part": larger[2 : rows + 2, 3 : columns + 3]}


@pytest.mark.parametrize("first", ["rows", "part", "columns"])
@pytest.mark.parametrize("second", ["rows", "part", "columns"])
def test_a_large_product_is_that_of_double_precision_in_any_layout(first: str, second: str) -> None:
    a, b = random(LEAST, LEAST + 16), random(LEAST + 16, PANEL + 300)
    expected = a.double() @ b.double()
    found = product(layouts(a)[first], layouts(b)[second])
    assert (found.double() - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_small_product_is_torchs_own() -> None:
    a, b = random(4 * LEAST, LEAST - 1), random(LEAST - 1, 2 * LEAST)
    assert not is_large(a, b)
    assert torch.equal(product(a, b), a @ b)


def test_a_caller_may_have_smaller_products_from_onednn() -> None:
    a, b = random(40, LEAST), random(LEAST, 300)
    assert not is_large(a, b, 41)
    expected = a.double() @ b.double()
    assert (product(a, b, 40).double() - expected).abs().max() < 1e-5 * expected.abs().max()


def test_other_dtypes_and_matrices_that_need_a_derivative_are_left_to_torch() -> None:
    a, b = random(LEAST, LEAST), random(LEAST, LEAST)
    for one in (a.double(), a.bfloat16(), a.clone().requires_grad_()):
        other = b.to(one.dtype)
        assert not is_large(one, other)
        assert torch.equal(product(one, other), one @ other)
