"""The loop over columns, compiled and interpreted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmq_sweeps.methods import gptq_columns
from tests.commands import run_forked
from tests.conftest import command_environment

Given = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]


def block(count: int, rows: int, groups: int = 1, bits: int = 4, dtype: torch.dtype = torch.float64) -> Given:
    """Make arguments of ``round_columns``; values on and above the diagonal of its factors must have no effect."""
    draw = torch.Generator().manual_seed(count + rows)
    W, X = (torch.randn(count, rows, generator=draw, dtype=dtype) for _ in range(2))
    # A corner of a larger matrix, as it comes.
    T = torch.randn(count + 9, count + 5, generator=draw, dtype=dtype)[4:-5, 3:-2] * 0.2
    T = T.tril(-1) + torch.full_like(T, torch.nan).triu()
    scale = torch.rand(groups, rows, generator=draw, dtype=dtype) * 0.3 + 0.05
    zero = torch.randint(0, 2**bits, (groups, rows), generator=draw).to(dtype)
    group = torch.randint(0, groups, (count,), generator=draw)
    return W, X * 0.1, torch.empty(count, rows, dtype=torch.uint8), T, scale, zero, group, 2**bits - 1


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 600), st.integers(1, 3), st.integers(2, 8))
def test_the_compiled_loop_does_what_operators_do(count: int, rows: int, groups: int, bits: int) -> None:
    compiled, eager = (block(count, rows, groups, bits) for _ in range(2))
    gptq_columns._compiled(*compiled)
    gptq_columns._eager(*eager)
    assert torch.equal(compiled[2], eager[2])
    assert torch.allclose(compiled[1], eager[1], rtol=0, atol=1e-12)


def test_single_precision_differs_at_ties_only() -> None:
    compiled, eager = (block(32, 4000, dtype=torch.float32) for _ in range(2))
    gptq_columns._compiled(*compiled)
    gptq_columns._eager(*eager)
    assert (compiled[2] == eager[2]).float().mean() > 0.999


@pytest.mark.parametrize("way", [gptq_columns._compiled, gptq_columns._eager])
def test_a_column_is_rounded_after_the_errors_before_it(way: object) -> None:
    W, X, Q, T, scale, zero, group, max_code = given = block(20, 30, groups=2)
    before = X.clone()
    way(*given)  # type: ignore[operator]
    for k in range(20):
        corrected = W[k] + before[k] + T[k, :k] @ X[:k]
        s, z = scale[group[k]], zero[group[k]]
        codes = (torch.round(corrected / s) + z).clamp(0, max_code)
        assert torch.equal(Q[k], codes.to(torch.uint8))
        assert torch.allclose(X[k], W[k] - (codes - z) * s)


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    whole, part = block(32, 600, dtype=torch.float32), block(32, 600, dtype=torch.float32)
    gptq_columns._compiled(*whole)
    W, X, Q, T, scale, zero, group, max_code = part
    cut = [one[:, 100:350].contiguous() for one in (W, X, Q, scale, zero)]
    gptq_columns._compiled(cut[0], cut[1], cut[2], T, cut[3], cut[4], group, max_code)
    assert torch.equal(whole[1][:, 100:350], cut[1])


def test_it_is_compiled_where_nothing_can_be_kept(tmp_path: Path) -> None:
    """Stands for a cluster with the environment and the home folder mounted read-only."""
    program = (
        "import sys, numba.core.caching as caching\n"
        "assert 'mmq_sweeps.methods.gptq_columns' not in sys.modules\n"
        "implementation = getattr(caching, 'CacheImpl', None) or caching._CacheImpl\n"
        "implementation._locator_classes = []\n"
        "from tests.methods.test_gptq_columns import block\n"
        "from mmq_sweeps.methods import gptq_columns\n"
        "given = block(4, 8)\n"
        "gptq_columns.round_columns(*given)\n"
        "print(int(given[2].max()) <= 15)\n"
    )
    done = run_forked("-c", [program], tmp_path, command_environment())
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
