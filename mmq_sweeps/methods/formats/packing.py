"""Pack codes of 2 to 8 bits into bytes without gaps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` bits occupy."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of any shape into a flat uint8 tensor of ``packed_size(codes.numel(), bits)`` bytes.

    Eight codes fill ``bits`` whole bytes, little-endian, for every width from 2 to 8. Raises ValueError for a code
    outside ``[0, 2**bits)``.
    """
    flat = codes.reshape(-1)
    if flat.numel() and (int(flat.max()) >= 2**bits or int(flat.min()) < 0):
        wrong = int(flat.max()) if int(flat.max()) >= 2**bits else int(flat.min())
        raise ValueError(f"a code of {wrong} does not fit into {bits} bits")
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    eights = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).reshape(-1, 8)
    octets = torch.zeros(len(eights), bits, dtype=torch.uint8, device=codes.device)
    # Work in bytes: 64-bit words would take eight times the memory of the codes.
    for code, octet, shift in _overlaps(bits):
        part = eights[:, code]
        octets[:, octet] |= part << shift if shift >= 0 else part >> -shift
    return octets.reshape(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack_codes(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """Unpack ``pack_codes`` output to uint8 codes of ``shape``; ValueError if the number of bytes is wrong."""
    count = math.prod(shape)
    if packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{packed.numel()} bytes hold no {count} codes of {bits} bits ({packed_size(count, bits)} bytes)"
        )
    if bits == 8:
        return packed.reshape(shape).clone()
    octets = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    eights = torch.zeros(len(octets), 8, dtype=torch.uint8, device=packed.device)
    for code, octet, shift in _overlaps(bits):
        part = octets[:, octet]
        eights[:, code] |= part >> shift if shift >= 0 else part << -shift
    return eights.bitwise_and_(2**bits - 1).reshape(-1)[:count].reshape(shape)


def _overlaps(bits: int) -> list[tuple[int, int, int]]:
    """List ``(code, byte, left shift)`` for each overlap of eight codes with the ``bits`` bytes that store them."""
    return [
        (code, octet, bits * code - 8 * octet)
        for code in range(8)
        for octet in range(bits)
        if -bits < bits * code - 8 * octet < 8
    ]
