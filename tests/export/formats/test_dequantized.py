from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmq_sweeps.export.formats.dequantized import Dequantized
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight, round_nearest
from tests.export.formats.weights import BITS, DTYPES, assert_layout, spec

FORMAT = Dequantized()
FORMATS = st.builds(Format, BITS, st.sampled_from(["tensor", "channel", 8]), symmetric=st.booleans()) | st.builds(
    Format, BITS, st.sampled_from(["tensor", "channel", 8]), real_zero=st.just(True)
)


@settings(deadline=None)
@given(FORMATS, st.booleans(), DTYPES)
def test_every_weight_is_held(format: Format, scaled: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = round_nearest(torch.randn(6, 16, generator=generator), format)
    input_scale = torch.rand(16, generator=generator).add_(0.5).half() if scaled else None
    weight = QuantizedWeight(weight.codes, weight.grid, input_scale)
    tensors = FORMAT.tensors(weight, dtype)
    assert_layout(FORMAT.layout(spec(format, (6, 16)), dtype), tensors)
    assert torch.equal(tensors["weight"], weight.dequantize().to(dtype))
    assert FORMAT.holds(tensors, weight)
    other = Grid(weight.grid.scale * 2, weight.grid.zero, format)
    assert not FORMAT.holds(tensors, QuantizedWeight(weight.codes, other, input_scale))


def test_nothing_is_refused_but_integers() -> None:
    linears = {"experts": spec(Format(3, "tensor", real_zero=True), input_scaled=True, kind="expert")}
    assert FORMAT.problem(linears, torch.float16) is None
    assert "weights are floats" in str(FORMAT.problem(linears, torch.int8))
    assert FORMAT.settings(linears, ()) is None
