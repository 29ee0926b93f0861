"""Rows of codes as little-endian bit streams in 32-bit words: low bits first, codes that straddle words, no gaps.

Each row begins a new word. Eight codes are handled as the bytes of one 64-bit number, which three shifts by halves bring
together (the fields of 8, 16 and 32 bits), so a weight costs a few passes over an eighth of its codes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WORD = 32
# Rows are worked on in pieces of about this many codes, which stay in a processor's cache.
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
    packed = torch.empty(rows, words(columns, bits), dtype=torch.int32, device=codes.device)
    for piece in _pieces(rows, columns):
        packed[piece] = _packed(codes[piece].to(torch.uint8), bits)[:, : packed.shape[1]]
    return packed


def unpack_rows(packed: Tensor, columns: int, bits: int) -> Tensor:
    """Return the codes uint8 ``[O, columns]`` in ``packed`` int32; ValueError if it has another number of words a row."""
    if packed.dtype is not torch.int32 or packed.ndim != 2 or packed.shape[1] != words(columns, bits):
        raise ValueError(
            f"{columns} codes of {bits} bits a row are int32 [rows, {words(columns, bits)}], not "
            f"{str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )
    codes = torch.empty(len(packed), columns, dtype=torch.uint8, device=packed.device)
    for piece in _pieces(len(packed), columns):
        codes[piece] = _unpacked(packed[piece], bits)[:, :columns]
    return codes


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


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, PIECE // max(columns, 1))
    return (slice(start, start + step) for start in range(0, rows, step))


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Pack rows of uint8 codes, each padded with zeros to a multiple of 32 codes."""
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % WORD))
    if bits == 8:
        return padded.reshape(-1).view(torch.int32).reshape(len(padded), padded.shape[1] // 4)
    eights = padded.reshape(-1).view(torch.int64).reshape(len(padded), padded.shape[1] // 8)
    for size in (1, 2, 4):
        low, high, shift = _halves(size, bits)
        eights = (eights & low).bitwise_or_((eights >> shift).bitwise_and_(high >> shift))
    # Four numbers of 8 * bits bits fill ``bits`` words.
    fours = eights.unflatten(1, (-1, 4))
    packed = torch.empty(*fours.shape[:2], bits, dtype=torch.int32, device=codes.device)
    for word in range(bits):
        value: Tensor | int = 0
        for part, shift in _parts(word, bits):
            value = value | (fours[:, :, part] << shift if shift >= 0 else fours[:, :, part] >> -shift)
        packed[:, :, word] = value  # its low 32 bits
    return packed.flatten(1)


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """Unpack rows of int32 words to uint8 codes, of which those behind the row's last are zeros."""
    if bits == 8:
        return packed.contiguous().view(torch.uint8)
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[1] % bits)).unflatten(1, (-1, bits)).long()
    padded &= 2**WORD - 1
    fours = torch.zeros(*padded.shape[:2], 4, dtype=torch.int64, device=packed.device)
    for word in range(bits):
        for part, shift in _parts(word, bits):
            fours[:, :, part] |= padded[:, :, word] >> shift if shift >= 0 else padded[:, :, word] << -shift
    eights = fours.bitwise_and_(2 ** (8 * bits) - 1).flatten(1)
    for size in (4, 2, 1):
        low, high, shift = _halves(size, bits)
        eights = (eights & low).bitwise_or_((eights << shift).bitwise_and_(high))
    return eights.view(torch.uint8)


def _halves(size: int, bits: int) -> tuple[int, int, int]:
    """Return masks of every first and every second ``size`` codes, and the shift that brings the second to the first.

    Both hold ``size * bits`` bits in fields of ``size`` bytes.
    """
    low = _fields(size * bits, 16 * size)
    return low, low << 8 * size, 8 * size - size * bits


def _fields(ones: int, width: int) -> int:
    """Return a 64-bit mask with the low ``ones`` bits set in each field of ``width`` bits."""
    return sum((2**ones - 1) << start for start in range(0, 64, width))


def _parts(word: int, bits: int) -> list[tuple[int, int]]:
    """List ``(number, left shift)`` for each of four numbers of ``8 * bits`` bits in a row that ``word`` overlaps."""
    shifts = [(part, 8 * bits * part - WORD * word) for part in range(4)]
    return [(part, shift) for part, shift in shifts if -8 * bits < shift < WORD]
