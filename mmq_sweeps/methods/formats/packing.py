"""Codes of 2 to 8 bits as little-endian bit streams without gaps: low bits first, codes that straddle bytes.

Eight codes fill as many bytes as they have bits. They are handled as the bytes of one 64-bit number, which three shifts bring
together: codes to pairs, pairs to fours, fours to eights. So a weight costs a few passes over an eighth as many numbers as it
has codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

BYTE = 8
# Codes are worked on in pieces of this many, a multiple of eight, which stay in a processor's cache. torch does not split
# operations on an eighth as many numbers among threads, which would wait for each other a dozen times a piece.
PIECE = 2**18


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` bits occupy."""
    return (count * bits + 7) // BYTE


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of any shape into a flat uint8 tensor of ``packed_size(codes.numel(), bits)`` bytes.

    Raises ValueError for a code outside ``[0, 2**bits)``.
    """
    flat = codes.reshape(-1)
    check_codes(flat, bits)
    rest = -flat.numel() % BYTE
    octets = pack_eights(pad(flat, (0, rest)) if rest else flat, bits)
    return octets.reshape(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack_codes(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """Unpack ``pack_codes`` output to uint8 codes of ``shape``; ValueError if the number of bytes is wrong."""
    count = math.prod(shape)
    if packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{packed.numel()} bytes hold no {count} codes of {bits} bits ({packed_size(count, bits)} bytes)"
        )
    octets = pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    return unpack_eights(octets, bits)[:count].reshape(shape)


def check_codes(codes: Tensor, bits: int) -> None:
    """Raise a ValueError that names a code outside ``[0, 2**bits)`` if there is one."""
    if codes.numel():
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < 0 or high >= 2**bits:
            raise ValueError(f"a code of {low if low < 0 else high} does not fit into {bits} bits")


def pack_eights(codes: Tensor, bits: int) -> Tensor:
    """Pack flat ``codes``, a multiple of eight integers from 0 to below ``2**bits``, as uint8 ``[N / 8, bits]``."""
    if bits == BYTE:
        return codes.to(torch.uint8, copy=True).reshape(-1, BYTE)
    if codes.storage_offset() % BYTE:
        codes = codes.clone()  # A view may begin inside a 64-bit number.
    octets = torch.empty(codes.numel() // BYTE, bits, dtype=torch.uint8, device=codes.device)
    for piece, own in zip(codes.split(PIECE), octets.split(PIECE // BYTE), strict=True):
        folded = _folded(piece.to(torch.uint8).view(torch.int64), bits).view(torch.uint8).reshape(-1, BYTE)
        for octet, stored in enumerate(own.unbind(1)):
            stored.copy_(folded.select(1, octet))
    return octets


def unpack_eights(octets: Tensor, bits: int) -> Tensor:
    """Undo ``pack_eights``: return the codes in ``octets`` ``[N / 8, bits]``, flat."""
    if bits == BYTE:
        return octets.reshape(-1)
    codes = torch.zeros(len(octets), BYTE, dtype=torch.uint8, device=octets.device)
    for own, piece in zip(octets.split(PIECE // BYTE), codes.split(PIECE // BYTE), strict=True):
        for octet, stored in enumerate(own.unbind(1)):
            piece.select(1, octet).copy_(stored)
        numbers = piece.view(torch.int64)
        numbers.copy_(_unfolded(numbers, bits))
    return codes.reshape(-1)


def _folded(numbers: Tensor, bits: int) -> Tensor:
    """Bring the codes in the eight bytes of each number together in its low ``8 * bits`` bits; the others are undefined."""
    for size in (1, 2, 4):
        low, high, shift = _halves(size, bits)
        moved = numbers >> shift
        if shift >= size * bits:  # One mask serves both: moved bits fall between those that stay.
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
    ones = 2 ** (size * bits) - 1
    low = sum(ones << start for start in range(0, 64, 16 * size))
    return low, low << 8 * size, 8 * size - size * bits
