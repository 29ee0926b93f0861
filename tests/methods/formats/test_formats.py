from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.methods.formats import (
    Format,
    QuantizedWeight,
    divided_rows,
    fit_grid,
    pack_codes,
    packed_size,
    round_nearest,
    round_to_grid,
    storable_scale,
    unpack_codes,
)

BITS = st.integers(2, 8)
GROUPS = st.sampled_from(["tensor", "channel", 4, 8])
FORMATS = st.one_of(
    st.builds(Format, BITS, GROUPS, symmetric=st.booleans()),
    st.builds(Format, BITS, GROUPS, real_zero=st.just(True)),
)


def random_weight(seed: int, rows: int = 6, columns: int = 16) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.integers(0, 255), max_size=70), BITS)
def test_packing_is_exact(values: list[int], bits: int) -> None:
    codes = torch.tensor([value % 2**bits for value in values], dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.numel() == packed_size(codes.numel(), bits) == -(-codes.numel() * bits // 8)
    assert torch.equal(unpack_codes(packed, tuple(codes.shape), bits), codes)


SHAPES = st.lists(st.integers(0, 23), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(SHAPES, BITS, st.integers(0, 2**31))
def test_every_shape_and_width_comes_back(shape: tuple[int, ...], bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=generator)
    before = codes.clone()
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(codes.numel(), bits),)
    restored = unpack_codes(packed, shape, bits)
    assert torch.equal(restored, before)
    assert torch.equal(codes, before)
    # Separate from the tensors they were made of: a later change of either must not reach the other.
    packed.zero_()
    assert torch.equal(restored, before)
    assert torch.equal(codes, before)


@given(st.lists(st.integers(0, 255), max_size=40), BITS)
def test_the_packed_bytes_are_one_little_endian_number(values: list[int], bits: int) -> None:
    codes = [value % 2**bits for value in values]
    number = sum(code << (bits * index) for index, code in enumerate(codes))
    expected = number.to_bytes(packed_size(len(codes), bits), "little")
    assert bytes(pack_codes(torch.tensor(codes, dtype=torch.uint8), bits).tolist()) == expected


def test_codes_of_a_view_are_packed_in_its_own_order() -> None:
    codes = torch.arange(15, dtype=torch.uint8).reshape(3, 5)
    assert torch.equal(unpack_codes(pack_codes(codes.T, 4), (5, 3), 4), codes.T)


def test_packing_puts_the_first_code_into_the_low_bits() -> None:
    assert pack_codes(torch.tensor([1, 2, 3, 0], dtype=torch.uint8), 2).tolist() == [0b00111001]
    assert pack_codes(torch.tensor([0b101, 0b011, 0b110], dtype=torch.uint8), 3).tolist() == [0b10011101, 0b1]


def test_a_negative_code_is_an_error() -> None:
    with pytest.raises(ValueError, match="-1 does not fit into 8 bits"):
        pack_codes(torch.tensor([3, -1]), 8)


def test_a_code_too_large_and_a_wrong_byte_count_are_errors() -> None:
    with pytest.raises(ValueError, match="4 does not fit into 2 bits"):
        pack_codes(torch.tensor([4]), 2)
    with pytest.raises(ValueError, match="3 bytes hold no 8 codes of 4 bits"):
        unpack_codes(torch.zeros(3, dtype=torch.uint8), (2, 4), 4)


@settings(deadline=None)
@given(FORMATS, st.integers(0, 50))
def test_stored_bits_are_the_bytes_of_the_packed_tensors(form: Format, seed: int) -> None:
    quantized = round_nearest(random_weight(seed), form)
    stored = quantized.pack()
    assert form.stored_bits((6, 16)) == 8 * sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    scaled = QuantizedWeight(quantized.codes, quantized.grid, torch.ones(16, dtype=torch.float16))
    assert form.stored_bits((6, 16), input_scaled=True) == form.stored_bits((6, 16)) + 16 * 16
    assert torch.equal(QuantizedWeight.unpack(stored, (6, 16), form).dequantize(), quantized.dequantize())
    assert "input_scale" in scaled.pack()


@settings(deadline=None)
@given(FORMATS, st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_stored_bits_of_odd_shapes(form: Format, rows: int, groups: int, scaled: bool) -> None:
    columns = groups * form.group_size if isinstance(form.group_size, int) else groups
    weight = random_weight(rows, rows, columns)
    quantized = round_nearest(weight, form)
    if scaled:
        quantized = QuantizedWeight(quantized.codes, quantized.grid, torch.full((columns,), 2.0, dtype=torch.float16))
    stored = quantized.pack()
    size = 8 * sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    assert form.stored_bits((rows, columns), scaled, quantized.exponents) == size
    restored = QuantizedWeight.unpack(stored, (rows, columns), form)
    assert torch.equal(restored.dequantize(), quantized.dequantize())
    assert torch.equal(restored.codes, quantized.codes)


@settings(deadline=None)
@given(FORMATS, st.integers(0, 50))
def test_rounding_is_nearest_idempotent_and_leaves_its_input_alone(form: Format, seed: int) -> None:
    weight = random_weight(seed)
    before = weight.clone()
    quantized = round_nearest(weight, form)
    assert torch.equal(weight, before)
    scale, _ = quantized.grid.expand(16)
    inside = (quantized.codes > 0) & (quantized.codes < form.max_code)
    error = (weight - quantized.dequantize()).abs()
    assert (error <= scale.expand_as(weight) * 0.5001)[inside].all()
    assert torch.equal(round_to_grid(quantized.dequantize(), quantized.grid), quantized.codes)
    groups = quantized.codes.reshape(*form.groups((6, 16)), -1)
    assert max(len(group.unique()) for row in groups for group in row) <= 2**form.bits


def test_the_real_zero_meets_both_ends_of_the_range() -> None:
    weight = torch.tensor([[0.5, 1.5, 2.0], [0.7, 0.9, 1.1]])
    restored = round_nearest(weight, Format(2, "tensor", real_zero=True)).dequantize()
    assert restored.min().item() == pytest.approx(0.5, abs=1e-6)
    assert restored.max().item() == pytest.approx(2.0, abs=1e-6)


def test_zero_stays_zero_on_an_integer_grid() -> None:
    weight = torch.tensor([[0.0, 1.0, 3.0, -0.1]])
    for form in (Format(3), Format(3, symmetric=True)):
        assert round_nearest(weight, form).dequantize()[0, 0] == 0.0


def test_constant_and_zero_groups_are_kept() -> None:
    weight = torch.zeros(2, 8)
    weight[1] = 0.25
    assert torch.allclose(round_nearest(weight, Format(4)).dequantize(), weight, atol=1e-3)


@pytest.mark.parametrize("size", ["tensor", "channel", 4])
@pytest.mark.parametrize("value", [1000.0, -1000.0, 0.25, 0.0])
def test_a_real_zero_of_a_narrow_range_far_from_zero_stays_finite(size: int | str, value: float) -> None:
    weight = torch.full((2, 8), value)
    weight[0, 0] = value * 1.0001
    restored = round_nearest(weight, Format(8, size, real_zero=True)).dequantize()
    assert torch.allclose(restored, weight, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 1}, "bits=1: a format has 2 to 8 bits"),
        ({"bits": 9}, "bits=9"),
        ({"bits": True}, "bits=True"),
        ({"bits": 4, "group_size": "row"}, "group_size='row': choose tensor, channel or a positive number"),
        ({"bits": 4, "group_size": 0}, "group_size=0"),
        ({"bits": 4, "symmetric": True, "real_zero": True}, "exclude each other"),
    ],
)
def test_a_format_that_cannot_be_says_why(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Format(**arguments)


def test_a_group_that_does_not_divide_names_those_that_do() -> None:
    with pytest.raises(ValueError, match="group_size=48 does not divide 64 input columns; sizes that do: 16, 32, 64"):
        Format(4, 48).groups((8, 64))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_an_error(value: float) -> None:
    weight = torch.ones(2, 4)
    weight[0, 1] = value
    with pytest.raises(ValueError, match="not finite"):
        fit_grid(weight, Format(4))


def test_a_scale_beyond_single_precision_is_an_error() -> None:
    with pytest.raises(ValueError, match="beyond what float32 holds"):
        fit_grid(torch.tensor([[-3e38, 3e38]]), Format(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_scale_has_the_digits_of_a_half(dtype: torch.dtype) -> None:
    numbers = torch.rand(10_000, dtype=dtype, generator=torch.Generator().manual_seed(0)).clamp(min=2**-14)
    numbers = numbers.float().to(dtype)  # torch rounds from double to half by way of single precision.
    assert torch.equal(storable_scale(numbers, Format(4)), numbers.half().to(dtype))
    # Halfway between two halves the even half is taken, as by conversion.
    between = 1 + torch.arange(1, 64, 2, dtype=dtype) / 2**11
    assert torch.equal(storable_scale(between, Format(4)), between.half().to(dtype))
    assert torch.equal(storable_scale(numbers * 2.0**-60, Format(4)), numbers.half().to(dtype) * 2.0**-60)


@pytest.mark.parametrize(
    ("row_exponents", "stored"),
    [((0, -8), 0), ((-30, -35), 1), ((20, 4), 1), ((0, -20), 1), ((10, -40), 2), ((-100, 100), 2)],
)
def test_scales_that_no_half_holds_are_stored_with_powers_of_two_that_count(
    row_exponents: tuple[int, int], stored: int
) -> None:
    weight = random_weight(0, rows=2) * 2.0 ** torch.tensor(row_exponents)[:, None]
    for form in (Format(4), Format(4, symmetric=True), Format(4, real_zero=True)):
        quantized = round_nearest(weight, form)
        packed = quantized.pack()
        assert quantized.exponents == stored
        bits = 8 * sum(tensor.nbytes for tensor in packed.values())
        assert form.stored_bits((2, 16), exponents=stored) == bits == form.stored_bits((2, 16)) + 16 * stored
        assert torch.isfinite(packed["scale"]).all()
        assert torch.equal(QuantizedWeight.unpack(packed, (2, 16), form).dequantize(), quantized.dequantize())


@settings(deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from(["channel", 4]),
    st.booleans(),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.integers(0, 30),
)
def test_a_weight_with_divided_rows_is_rounded_on_divided_grids(
    bits: int, size: int | str, symmetric: bool, dtype: str, seed: int
) -> None:
    form, weight = Format(bits, size, symmetric, dtype=dtype), random_weight(seed)
    quantized = round_nearest(weight, form)
    exact = divided_rows(quantized, weight, 2.0 ** torch.arange(-3, 3))
    assert torch.equal(exact.codes, quantized.codes)
    assert torch.equal(exact.dequantize() * 2.0 ** torch.arange(-3, 3)[:, None], quantized.dequantize())
    divisor = torch.rand(6, generator=torch.Generator().manual_seed(seed)) + 0.5
    solved, whole = divided_rows(quantized, weight, divisor), torch.ones(6)
    assert torch.equal(solved.grid.scale.to(getattr(torch, dtype)).float(), solved.grid.scale)
    inside = (solved.codes > 0) & (solved.codes < form.max_code)
    scale, _ = solved.grid.expand(16)
    assert ((weight / divisor[:, None] - solved.dequantize()).abs() <= 0.5001 * scale)[inside].all()
    assert torch.equal(divided_rows(quantized, weight, whole).codes, quantized.codes)
