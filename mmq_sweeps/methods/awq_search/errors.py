"""The error of rounding scaled weights, and the error of a linear's output that follows from it.

Weights are processed in chunks of rows, so that nothing of their size is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmq_sweeps.methods.formats import Format, Grid
from mmq_sweeps.methods.products import LEAST, product

# Weights per chunk: few enough for a processor's cache, but enough rows for a matrix product.
CHUNK, CHUNK_ROWS = 2**20, 256
# A product has a tile of the Gram matrix: GRAM_BLOCK of its rows, GRAM_COLUMNS of its columns (a multiple). Tiles above the
# diagonal are multiplied once and counted twice. All are copied once if they take no more than CACHED_BYTES.
GRAM_BLOCK, GRAM_COLUMNS, CACHED_BYTES = 256, 1024, 2**26
# Rows of a product on a wide Gram matrix: a multiple of ROWS up to MOST_ROWS, since oneDNN compiles a program of half a
# megabyte for each shape and keeps it.
ROWS, MOST_ROWS = 64, 512


class OutputError:
    """The mean squared output error ``[O]`` of weight errors ``[O, I]`` on inputs with the Gram matrix ``gram`` ``[I, I]``."""

    def __init__(self, gram: Tensor) -> None:
        self._gram = gram
        half = gram.numel() * gram.element_size() / 2
        self._cached = list(self._copied()) if len(gram) > GRAM_BLOCK and half <= CACHED_BYTES else None

    def __call__(self, error: Tensor) -> Tensor:
        if len(self._gram) <= GRAM_BLOCK:
            return product(error, self._gram).mul_(error).sum(dim=1)
        return torch.cat([self._of(rows) for rows in error.split(MOST_ROWS)])

    def _of(self, error: Tensor) -> Tensor:
        count, least = len(error), LEAST
        if len(self._gram) >= LEAST and error.device.type == "cpu":
            error, least = torch.nn.functional.pad(error, (0, 0, 0, -count % ROWS)), ROWS
        loss = torch.zeros(len(error), dtype=error.dtype, device=error.device)
        at, part = -1, error
        for start, first, tile in self._copied() if self._cached is None else self._cached:
            if first != at:
                at, part = first, error[:, first : first + GRAM_COLUMNS].contiguous()
            found = product(part[:, : tile.shape[1]], tile.T, least)
            loss += found.mul_(error[:, start : start + len(tile)]).sum(dim=1)
        return loss[:count].mul_(2)

    def _copied(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield first row, first column and weights of each tile up to the diagonal, half of the values on it."""
        for first in range(0, len(self._gram), GRAM_COLUMNS):
            last = first + GRAM_COLUMNS
            for start in range(first, len(self._gram), GRAM_BLOCK):
                stop = start + GRAM_BLOCK
                # A copy, because oneDNN is slow on a matrix with gaps between its rows.
                tile = self._gram[start:stop, first : min(last, stop)].clone(memory_format=torch.contiguous_format)
                if start < last:
                    tile[:, start - first :].mul_(0.5)
                yield start, first, tile


def output_error(error: Tensor, gram: Tensor) -> Tensor:
    """Return the mean squared output error of each row ``[O]`` of the weight error ``[O, I]``, on inputs with ``gram``."""
    return OutputError(gram)(error)


def rounding_error(scaled: Tensor, grid: Grid, out: Tensor | None = None) -> Tensor:
    """Return the error that rounding ``scaled`` ``[O, I]`` to ``grid`` adds to it, in the memory of ``out`` if given."""
    scale, zero = grid.scale[:, :, None], grid.zero[:, :, None]
    grouped = scaled.reshape(*grid.scale.shape, -1)
    steps = torch.div(grouped, scale, out=None if out is None else out.view(grouped.shape))
    error = steps.add_(zero).round_().clamp_(0, grid.format.max_code).sub_(zero).mul_(scale).sub_(grouped)
    return error.reshape(scaled.shape)


def ranges(scaled: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Return the least and the largest weight of each group, both ``[O, G]``."""
    rows = grouped(scaled, format)
    return rows.amin(dim=2), rows.amax(dim=2)


def tensor_ranges(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of all weights for each of ``scales`` ``[C, I]``, both ``[C]``."""
    # Scales are positive, so a column's largest scaled weight is its scale times its largest weight.
    low, high = weight.amin(dim=0).float(), weight.amax(dim=0).float()
    return (low * scales).amin(dim=1), (high * scales).amax(dim=1)


def grouped(rows: Tensor, format: Format) -> Tensor:
    """Reshape ``rows`` ``[O, I]`` to ``[O, G, I/G]``."""
    return rows.reshape(len(rows), group_count(rows.shape[1], format), -1)


def group_count(columns: int, format: Format) -> int:
    return format.groups((1, columns))[1]


def chunks(weight: Tensor) -> Iterator[slice]:
    """Yield slices of rows to process at a time."""
    step = max(CHUNK_ROWS, CHUNK // weight.shape[1])
    for start in range(0, len(weight), step):
        yield slice(start, min(start + step, len(weight)))
