"""Every packed format: tensors of its layout hold their weight and no other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.export.formats.awq import AWQ
from mmq_sweeps.export.formats.base import CheckpointFormat
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors
from mmq_sweeps.export.formats.gptq import GPTQ
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight
from tests.export.formats.weights import SEEDS, assert_layout, quantized, spec

# Of each: bit-widths, group sizes, and numbers of rows and of columns.
TAKEN = {
    AWQ(): ([2, 4, 8], ["channel", 16], [16, 32, 48], [16, 32, 48]),
    CompressedTensors(): ([2, 3, 4, 5, 6, 7, 8], ["tensor", "channel", 4, 12], [1, 3, 7], [12, 24, 60]),
    GPTQ(): ([2, 3, 4, 8], ["channel", 16, 32], [32, 64, 96], [32, 64, 96]),
}


@pytest.mark.parametrize("form", TAKEN, ids=lambda form: form.name)
@settings(deadline=None, max_examples=50)
@given(data=st.data(), symmetric=st.booleans(), seed=SEEDS)
def test_tensors_hold_their_weight_and_no_other(
    form: CheckpointFormat, data: st.DataObject, symmetric: bool, seed: int
) -> None:
    bits, size, rows, columns = (data.draw(st.sampled_from(choices)) for choices in TAKEN[form])
    format = Format(bits, size, symmetric)
    weight = quantized(format, (rows, columns), seed)
    tensors = form.tensors(weight, torch.bfloat16)
    assert_layout(form.layout(spec(format, weight.shape), torch.bfloat16), tensors)
    assert form.holds(tensors, weight)
    codes = weight.codes.clone()
    codes[-1, -1] ^= 1
    assert not form.holds(tensors, QuantizedWeight(codes, weight.grid))
    other = Grid(weight.grid.scale * 2, weight.grid.zero, format)
    assert not form.holds(tensors, QuantizedWeight(weight.codes, other))
