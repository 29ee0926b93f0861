from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.export.formats.bitstream import from_awq_order, in_awq_order, pack_rows, unpack_rows, words
from mmq_sweeps.methods.formats import packing
from tests.export.formats.weights import BITS, SEEDS

ROWS, COLUMNS = st.integers(0, 6), st.integers(1, 140)


def random_codes(rows: int, columns: int, bits: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=generator)


def test_three_bit_codes_straddle_words() -> None:
    packed = pack_rows((torch.arange(64, dtype=torch.uint8) % 8).reshape(2, 32), 3)
    assert [hex(int(word) % 2**32) for word in packed[1]] == ["0x88fac688", "0xc688fac6", "0xfac688fa"]


@settings(deadline=None)
@given(ROWS, COLUMNS, BITS, SEEDS)
def test_a_row_is_one_little_endian_number(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    packed = pack_rows(codes, bits)
    assert packed.dtype == torch.int32
    assert packed.shape == (rows, words(columns, bits))
    for row, stored in zip(codes.tolist(), packed, strict=True):
        number = sum(code << (bits * column) for column, code in enumerate(row))
        assert bytes(stored.view(torch.uint8).tolist()) == number.to_bytes(4 * words(columns, bits), "little")


@settings(deadline=None)
@given(ROWS, COLUMNS, BITS, SEEDS)
def test_codes_come_back(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    before = codes.clone()
    assert torch.equal(unpack_rows(pack_rows(codes, bits), columns, bits), before)
    assert torch.equal(codes, before)


@settings(deadline=None)
@given(st.integers(1, 6), COLUMNS, BITS, SEEDS)
def test_compressed_tensors_packs_the_same_words(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    signed = (codes.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)
    packed = pack_rows(codes, bits)
    assert torch.equal(packed, pack_to_int32(signed, bits))
    assert torch.equal(unpack_from_int32(packed, bits, codes.shape), signed)


@pytest.mark.parametrize("bits", range(2, 9))
def test_pieces_of_a_large_weight_are_as_one(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(50, 77, bits, 0)
    whole = pack_rows(codes, bits)
    monkeypatch.setattr(packing, "PIECE", 304)
    assert torch.equal(pack_rows(codes, bits), whole)
    assert torch.equal(unpack_rows(whole, 77, bits), codes)


def test_codes_of_other_types_and_views_are_packed_alike() -> None:
    codes = random_codes(33, 5, 3, 0)
    for other in (codes.to(torch.int64), codes.to(torch.int16), codes.T.contiguous().T):
        assert torch.equal(pack_rows(other, 3), pack_rows(codes, 3))


@pytest.mark.parametrize("wrong", [-1, 8])
def test_a_code_that_does_not_fit_is_an_error(wrong: int) -> None:
    codes = torch.tensor([[0, wrong]], dtype=torch.int16)
    with pytest.raises(ValueError, match=f"a code of {wrong} does not fit into 3 bits"):
        pack_rows(codes, 3)


def test_words_of_another_width_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"40 codes of 3 bits a row are int32 \[rows, 4\], not int32 \[2, 5\]"):
        unpack_rows(pack_rows(random_codes(2, 40, 4, 0), 4), 40, 3)


def test_awq_order_comes_back() -> None:
    columns = torch.arange(16).reshape(1, 16)
    assert in_awq_order(columns)[0, 8:].tolist() == [8, 10, 12, 14, 9, 11, 13, 15]
    assert torch.equal(from_awq_order(in_awq_order(columns)), columns)
