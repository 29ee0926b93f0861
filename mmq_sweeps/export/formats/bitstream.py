"""Rows of codes as little-endian bit streams in 32-bit words: low bits first, codes that straddle words, no gaps.

Each row begins a new word. Eight codes are handled as the bytes of one 64-bit number, which three shifts bring together: codes
to pairs, pairs to fours, fours to eights. So a weight costs a few passes over an eighth as many numbers as it has codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

WORD, BYTE = 32, 8
# Rows are worked on in pieces of about this many codes, which stay in a processor's cache. torch does not split operations
# on an eighth as many numbers among threads, which would wait for each other a dozen times a piece.
PIECE = 2**18
# Position in an AWQ word of four-bit codes -> column among its eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(columns: int, bits: int) -> int:
    """Return the number of words of a row of ``columns`` codes."""
    return -(-columns * bits // WORD)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Pack ``codes`` ``[O, I]``, integers from 0 to below ``2**bits``, as int32 ``[O, words(I, bits)]``.

    Raises ValueError for a code outside that range.
    """
    _check(codes, bits)
    rows, columns = codes.shape
    eights = _eights(columns)
    if bits == BYTE:
        return _narrowed(pad(codes.to(torch.uint8), (0, BYTE * eights - columns)), words(columns, bits))
    octets = torch.empty(rows, eights, bits, dtype=torch.uint8, device=codes.device)
    for piece in _pieces(rows, columns):
        padded = codes[piece].to(torch.uint8)
        if columns < BYTE * eights:
            padded = pad(padded, (0, BYTE * eights - columns))
        folded = _folded(padded.reshape(-1).view(torch.int64), bits).view(torch.uint8).reshape(-1, eights, BYTE)
        for octet, stored in enumerate(octets[piece].unbind(2)):
            stored.copy_(folded.select(2, octet))
    return _narrowed(octets, words(columns, bits))


def unpack_rows(packed: Tensor, columns: int, bits: int) -> Tensor:
    """Return the codes uint8 ``[O, columns]`` in ``packed`` int32; ValueError if it has another number of words a row."""
    if packed.dtype is not torch.int32 or packed.ndim != 2 or packed.shape[1] != words(columns, bits):
        raise ValueError(
            f"{columns} codes of {bits} bits a row are int32 [rows, {words(columns, bits)}], not "
            f"{str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )
    rows, eights = len(packed), _eights(columns)
    padded = pad(packed, (0, eights * bits // 4 - packed.shape[1])).reshape(-1).view(torch.uint8)
    if bits == BYTE:
        return padded.reshape(rows, BYTE * eights)[:, :columns].contiguous()
    octets = padded.reshape(rows, eights, bits)
    codes = torch.zeros(rows, eights, BYTE, dtype=torch.uint8, device=packed.device)
    for piece in _pieces(rows, columns):
        for octet in range(bits):
            codes[piece, :, octet] = octets[piece, :, octet]
        numbers = codes[piece].view(torch.int64)
        numbers.copy_(_unfolded(numbers, bits))
    return codes.reshape(rows, BYTE * eights)[:, :columns].contiguous()


def in_awq_order(codes: Tensor) -> Tensor:
    """Reorder every eight columns as AWQ packs them; their number must be a multiple of 8."""
    return codes.unflatten(1, (-1, 8))[:, :, list(AWQ_ORDER)].flatten(1)


def from_awq_order(codes: Tensor) -> Tensor:
    """Undo ``in_awq_order``."""
    natural = sorted(range(8), key=AWQ_ORDER.__getitem__)
    return codes.unflatten(1, (-1, 8))[:, :, natural].flatten(1)


def _check(codes: Tensor, bits: int) -> None:
    if codes.numel():
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < 0 or high >= 2**bits:
            raise ValueError(f"a code of {low if low < 0 else high} does not fit into {bits} bits")


def _eights(columns: int) -> int:
    """Return the groups of eight codes of a row that is padded to a multiple of 32, which fill whole words."""
    return 4 * -(-columns // WORD)


def _narrowed(octets: Tensor, count: int) -> Tensor:
    """Return the first ``count`` words of each row of bytes."""
    rows, *others = octets.shape
    return octets.reshape(-1).view(torch.int32).reshape(rows, math.prod(others) // 4)[:, :count].contiguous()


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, PIECE // max(columns, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def _folded(numbers: Tensor, bits: int) -> Tensor:
    """Bring the codes in the eight bytes of each number together in its low ``8 * bits`` bits; the others are undefined."""
    for size in (1, 2, 4):
        low, high, shift = _halves(size, bits)
        moved = numbers >> shift
        if shift >= size * bits:  # One mask serves both: what is moved falls between what is not.
            numbers = moved.bitwise_or_(numbers)
            numbers = numbers.bitwise_and_(low | high >> shift) if size < 4 else numbers
        else:
            numbers = moved.bitwise_and_(high >> shift).bitwise_or_(numbers & low)
    return numbers


def _unfolded(numbers: Tensor, bits: int) -> Tensor:
    """Undo ``_folded``."""
    for size in (4, 2, 1):
        low, high, shift = _halves(size, bits)
        moved = numbers << shift
        if shift >= size * bits:
            numbers = moved.bitwise_or_(numbers).bitwise_and_(low | high)
        else:
            numbers = moved.bitwise_and_(high).bitwise_or_(numbers & low)
    return numbers


def _halves(size: int, bits: int) -> tuple[int, int, int]:
    """Return masks of every first and every second ``size`` codes, and the shift that brings the second to the first.

    Both hold ``size * bits`` bits in fields of ``size`` bytes.
    """
    low = _fields(size * bits, 16 * size)
    return low, low << 8 * size, 8 * size - size * bits


def _fields(ones: int, width: int) -> int:
    """Return a 64-bit mask with the low ``ones`` bits set in each field of ``width`` bits."""
    return sum((2**ones - 1) << start for start in range(0, 64, width))
