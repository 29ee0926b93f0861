from __future__ import annotations

import warnings

import pytest
import torch

from mmq_sweeps.export.formats.awq import AWQ
from mmq_sweeps.methods.formats import Format
from tests.export.formats.weights import assert_refused, quantized, spec, specs

FORMAT = AWQ()


@pytest.mark.parametrize("group_size", ["channel", 32])
def test_autoawq_packs_the_same_words(group_size: int | str) -> None:
    with warnings.catch_warnings(record=True):  # the library says that it is deprecated
        gemm = pytest.importorskip(
            "awq.modules.linear.gemm", reason="pip install -e '.[autoawq]'", exc_type=ImportError
        )
    weight = quantized(Format(4, group_size), (64, 96), 1, torch.float16)
    linear = torch.nn.Linear(96, 64, bias=False)
    linear.weight.data = weight.dequantize()
    size = 96 if group_size == "channel" else int(group_size)
    theirs = gemm.WQLinear_GEMM.from_linear(linear, 4, size, scales=weight.grid.scale.T, zeros=weight.grid.zero.T)
    ours = FORMAT.tensors(weight, torch.float16)
    for name in ("qweight", "qzeros", "scales"):
        assert torch.equal(ours[name], getattr(theirs, name)), name


def test_four_bit_codes_are_in_the_order_of_the_kernel() -> None:
    weight = quantized(Format(4, "channel", True), (8, 1))
    weight.codes[:, 0] = torch.arange(8)
    assert hex(int(FORMAT.tensors(weight, torch.float16)["qweight"])) == "0x75316420"


def test_settings_name_all_that_stays_dense() -> None:
    found = FORMAT.settings(specs({"model.layers.0.fc": Format(4, 32)}), ("vision.layers.0.fc", "lm_head"))
    assert found == {
        "quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True, "backend": "torch_awq",
        "modules_to_not_convert": ["vision.layers.0.fc", "lm_head"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("odd", "dense", "reason"),
    [
        ({"model.fc": spec(Format(3, 32))}, (), "has 3 bits, and loaders take 2, 4, 8"),
        ({"model.fc": spec(Format(8, 32))}, (), "has 8 bits, group_size=32, symmetric=false where model.q has 4 bits"),
        ({"model.fc": spec(Format(4, 8))}, (), "group_size=8"),
        ({"model.fc": spec(Format(4, 32), (12, 64))}, (), "has 12 outputs, and words hold 8"),
        ({"model.fc": spec(Format(4, 32), input_scaled=True)}, (), "input scales"),
        ({"qformer.fc": spec(Format(4, 32))}, (), "kept in float32"),
        ({"model.proj": spec(Format(4, 32))}, ("proj",), "ends as the dense proj does"),
        ({"model.layers.1.fc": spec(Format(4, 32))}, ("model.layers.1",), "the dense model.layers.1"),
    ],
)
def test_a_linear_that_cannot_be_held_is_named(odd: dict, dense: tuple[str, ...], reason: str) -> None:
    fits = {"model.q": spec(Format(4, 32))}
    assert FORMAT.problem(fits, torch.bfloat16, dense) is None
    found = FORMAT.problem({**fits, **odd}, torch.bfloat16, dense)
    assert_refused(found, next(iter(odd)), reason)
