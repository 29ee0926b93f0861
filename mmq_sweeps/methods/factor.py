"""Factorizations of the Gram matrix of a layer's inputs, for GPTQ and what follows its order of columns.

The paper inverts ``H``, the Hessian of the layer's squared output error, and factors the inverse. Here ``H = M^T M`` with ``M``
lower triangular is factored and nothing is inverted, which takes a quarter of the arithmetic of factor-invert-factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mmq_sweeps.methods.products import product

# Damping grows tenfold per retry, from the configured fraction of the mean diagonal up to this multiple of it.
MAX_DAMPING = 10.0
BLOCK = 512
# Rows up to which torch solves a triangular system; larger ones are halved, so that most of the work is products.
LEAF = 64


class NotDefiniteError(ValueError):
    """A Gram matrix is indefinite even with the largest damping."""


@dataclass(frozen=True)
class Factor:
    """Factorization of a damped Gram matrix.

    ``lower`` ``[I, I]`` is ``M`` with its rows divided by its diagonal, in quantization order; entries above its
    diagonal are meaningless. ``order[j]`` is the original index of column ``j``; ``dead`` ``[I]`` marks inputs that are
    always zero, in the original order. ``damping`` is the fraction used.
    """

    lower: Tensor
    order: Tensor
    dead: Tensor
    damping: float


def factorize(gram: Tensor, damping: float = 0.01, act_order: bool = True) -> Factor:
    """Factor the damped ``gram`` ``[I, I]``; serves every bit-width and every linear on the same input.

    Inputs that are always zero are marked ``dead`` and get a unit diagonal. ``act_order`` sorts columns by falling
    diagonal. If the Cholesky factorization fails, damping grows tenfold per retry; ``Factor.damping`` is the value
    used. Raises ValueError if the matrix is not finite, and NotDefiniteError if it fails at the largest damping.
    """
    return _factorize_in_place(gram.clone(), damping, act_order)[0]


@contextmanager
def factorized_in_place(gram: Tensor, damping: float, act_order: bool) -> Iterator[Factor]:
    """Factor ``gram`` in its own memory, like ``factorize``, and restore it on exit.

    ``gram`` must be symmetric to the last bit: the factor overwrites a triangle, which is restored from the other.
    """
    factor, blocks = _factorize_in_place(gram, damping, act_order)
    try:
        yield factor
    finally:
        _restore(gram, blocks)
        _permute(gram, factor.order.argsort())


def _factorize_in_place(H: Tensor, damping: float, act_order: bool) -> tuple[Factor, list[Tensor]]:
    """Factor ``H`` in its lower triangle; also return copies of its original diagonal blocks, in the factor's order.

    An error leaves ``H`` unchanged.
    """
    if not torch.stack(torch.aminmax(H)).isfinite().all():
        raise ValueError("the Gram matrix of the calibration inputs has values that are not finite")
    dead = H.diagonal() <= 0
    order = torch.arange(len(H), device=H.device)
    if act_order:
        order = torch.argsort(H.diagonal(), descending=True, stable=True)
    _permute(H, order)
    blocks = [H[start : start + BLOCK, start : start + BLOCK].clone() for start in range(0, len(H), BLOCK)]
    diagonal = H.diagonal().masked_fill(dead[order], 1.0)
    mean_diagonal = diagonal.mean()
    while damping <= MAX_DAMPING:
        H.diagonal().copy_(diagonal + damping * mean_diagonal)
        if _cholesky_in_place(H):
            return Factor(H, order, dead, damping), blocks
        _restore(H, blocks)
        damping = max(damping * 10, 1e-6)
    _permute(H, order.argsort())
    raise NotDefiniteError(f"Cholesky factorization of the Gram matrix failed even with damping {damping / 10:g}")


def _permute(matrix: Tensor, order: Tensor) -> None:
    """Permute rows and columns of a square matrix by ``order``, in place and blockwise."""
    for rows in matrix.split(BLOCK):
        rows.copy_(rows.index_select(1, order))
    for columns in matrix.split(BLOCK, dim=1):
        columns.copy_(columns.index_select(0, order))


def _restore(H: Tensor, blocks: Sequence[Tensor]) -> None:
    """Restore the lower triangle of ``H`` from the upper triangle and the diagonal ``blocks``."""
    for start, block in zip(range(0, len(H), BLOCK), blocks, strict=True):
        rows = H[start : start + BLOCK]
        # By tiles, because turning long rows takes three times as long.
        for tile in range(0, start, BLOCK):
            rows[:, tile : tile + BLOCK] = H[tile : tile + BLOCK, start : start + BLOCK].T
        rows[:, start : start + BLOCK] = block


def _cholesky_in_place(H: Tensor) -> bool:
    """Write ``M``, rows divided by its diagonal, into the lower triangle of ``H = M^T M``; return False on failure.

    Starts from the last rows, because the last row of ``H`` is the last row of ``M`` times its last element. Above the
    diagonal, only the diagonal blocks are written.
    """
    diagonal = H.new_empty(len(H))
    for start in reversed(range(0, len(H), BLOCK)):
        stop = min(start + BLOCK, len(H))
        left, own = H[start:stop, :start], H[start:stop, start:stop]
        if stop < len(H):
            # Rows of M are those below times the diagonal; both sides of M^T M take one from the smaller factor.
            done = product(H[stop:, start:stop].mul(diagonal[stop:, None].square()).T.contiguous(), H[stop:, :stop])
            left, own = left - done[:, :start], own - done[:, start:]
        else:
            left = left.clone()
        # The block's factor D^T D, D lower, is the usual factor of the block with rows and columns reversed.
        factor, failed = torch.linalg.cholesky_ex(own.flip(0, 1))
        if int(failed):
            return False
        block = factor.T.flip(0, 1)
        _solve_upper(block.T, left)
        diagonal[start:stop] = block.diagonal()
        for part, at in ((left, slice(0, start)), (block, slice(start, stop))):
            part.div_(diagonal[start:stop, None])
            if part.numel() and not torch.stack(torch.aminmax(part)).isfinite().all():
                return False
            H[start:stop, at] = part
    return True


def _solve_upper(T: Tensor, X: Tensor) -> None:
    """Replace ``X`` by the solution ``Y`` of ``T Y = X``, with ``T`` upper triangular."""
    if len(T) <= LEAF or not X.shape[1]:
        X.copy_(torch.linalg.solve_triangular(T, X, upper=True))
        return
    half = len(T) // 2
    _solve_upper(T[half:, half:], X[half:])
    X[:half].sub_(product(T[:half, half:], X[half:]))
    _solve_upper(T[:half, :half], X[:half])
