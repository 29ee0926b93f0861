"""Rows of codes as little-endian bit streams in 32-bit words; each row begins a new word."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmq_sweeps.methods.formats.packing import check_codes, pack_eights, unpack_eights

WORD = 32
# Position in an AWQ word of four-bit codes -> column among its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(columns: int, bits: int) -> int:
    """Return the number of words of a row of ``columns`` codes."""
    return -(-columns * bits // WORD)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack ``codes`` ``[O, I]``, integers from 0 to below ``2**bits``, as int32 ``[O, words(I, bits)]``.

    Raises ValueError for a code outside that range.
    """
    check_codes(codes, bits)
    rows, columns = codes.shape
    # So many codes fill whole words at every width.
    padded = pad(codes, (0, -columns % WORD)) if columns % WORD else codes
    packed = pack_eights(padded.reshape(-1), bits).reshape(-1).view(torch.int32)
    return packed.reshape(rows, words(padded.shape[1], bits))[:, : words(columns, bits)].contiguous()


def unpack_rows(packed: Tensor, columns: int, bits: int) -> Tensor:
    """Return the codes uint8 ``[O, columns]`` in ``packed`` int32; ValueError if it has another number of words a row."""
    if packed.dtype is not torch.int32 or packed.ndim != 2 or packed.shape[1] != words(columns, bits):
        raise ValueError(
            f"{columns} codes of {bits} bits a row are int32 [rows, {words(columns, bits)}], not "
            f"{str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )
    whole = columns + -columns % WORD
    octets = pad(packed, (0, words(whole, bits) - packed.shape[1])).reshape(-1).view(torch.uint8)
    codes = unpack_eights(octets.reshape(-1, bits), bits)
    return codes.reshape(len(packed), whole)[:, :columns].contiguous()


def in_awq_order(codes: Tensor) -> Tensor:
    """Reorder every eight columns as AWQ packs them; their number must be a multiple of 8."""
    return codes.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)


def from_awq_order(codes: Tensor) -> Tensor:
    """Undo ``in_awq_order``."""
    natural = sorted(range(8), key=AWQ_ORDER.__getitem__)
    return codes.unflatten(1, (-1, 8))[:, :, natural].flatten(1)
