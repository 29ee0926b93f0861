"""The loaders of each format, as in ``docs/analysis.md``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmq_sweeps.export.formats.base import LinearSpec
from mmq_sweeps.export.formats.compressed_tensors import CompressedTensors, Scheme
from mmq_sweeps.identity.loads_in import ExportedLinear, joined, loads_in, parsed, shown
from mmq_sweeps.methods.formats import Format

BOTH, TRANSFORMERS, NONE = ["transformers", "vllm"], ["transformers"], ["dequantized"]
SIZES = st.sampled_from(["tensor", "channel", 32, 128])
FORMATS = st.one_of(
    st.builds(Format, st.integers(2, 8), SIZES, st.booleans()),
    st.builds(Format, st.integers(2, 8), SIZES, st.just(value=False), st.just(value=True)),
)
PARTS = ("vision", "connector", "embeddings", "language", "head")
LINEARS = st.builds(ExportedLinear, st.sampled_from(PARTS), FORMATS, st.booleans(), st.booleans())


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        (ExportedLinear("language", Format(4, 128, symmetric=True)), BOTH),
        (ExportedLinear("vision", Format(4, "channel", symmetric=True)), BOTH),
        # Three bits and the zero's are four on disk.
        (ExportedLinear("language", Format(3, 128)), BOTH),
        (ExportedLinear("language", Format(4, 128)), TRANSFORMERS),
        (ExportedLinear("language", Format(3, 128, symmetric=True)), TRANSFORMERS),
        (ExportedLinear("language", Format(8)), TRANSFORMERS),
        (ExportedLinear("language", Format(4, "tensor", symmetric=True)), TRANSFORMERS),
        (ExportedLinear("connector", Format(4, symmetric=True)), TRANSFORMERS),
        (ExportedLinear("head", Format(4, symmetric=True)), TRANSFORMERS),
        (ExportedLinear("language", Format(4, "tensor", real_zero=True)), NONE),
        (ExportedLinear("language", Format(4, symmetric=True), input_scaled=True), NONE),
        (ExportedLinear("language", Format(4, symmetric=True), dense_only=True), NONE),
        # Stored dense in any format, so nothing is quantized any more.
        (ExportedLinear("embeddings", Format(3, "tensor", real_zero=True)), NONE),
        (ExportedLinear("embeddings", Format(4, symmetric=True)), NONE),
    ],
)
def test_a_format_loads_where_export_says(linear: ExportedLinear, expected: list[str]) -> None:
    assert loads_in([linear]) == expected


def test_embeddings_beside_others_keep_no_loader_away() -> None:
    others = ExportedLinear("language", Format(4, symmetric=True))
    assert loads_in([ExportedLinear("embeddings", Format(3, "tensor", real_zero=True)), others]) == BOTH


def test_full_precision_loads_everywhere() -> None:
    assert loads_in([]) == BOTH


@given(st.lists(LINEARS, max_size=6))
def test_a_loader_takes_a_cell_if_it_takes_each_linear(linears: list[ExportedLinear]) -> None:
    packed = [linear for linear in linears if linear.part != "embeddings"]
    each = [loads_in([linear]) for linear in packed]
    found = loads_in(linears)
    if linears and not packed:
        each = [NONE]
    if any(own == NONE for own in each):
        assert found == NONE
    else:
        assert found == [name for name in BOTH if all(name in own for own in each)]
    assert parsed(joined(found)) == found


@given(FORMATS)
def test_one_more_linear_that_loads_nowhere_leaves_nothing(format: Format) -> None:
    linear = ExportedLinear("language", format)
    assert loads_in([linear, replace(linear, input_scaled=True)]) == NONE


@given(FORMATS, st.booleans(), st.sampled_from(["linear", "expert"]))
def test_transformers_takes_what_compressed_tensors_holds(format: Format, input_scaled: bool, kind: str) -> None:
    spec = LinearSpec(format, (256, 256), input_scaled, kind)
    found = loads_in([ExportedLinear("language", format, input_scaled, kind == "expert")])
    held = CompressedTensors().problem({"a": spec}, torch.float32) is None
    assert held == ("transformers" in found)
    if held:
        scheme = Scheme.of(format)
        packed = scheme.symmetric and scheme.bits == 4 and scheme.strategy in ("channel", "group")
        assert packed == ("vllm" in found)


def test_names_are_those_of_the_projects() -> None:
    assert [shown(own) for own in (BOTH, TRANSFORMERS, NONE, [])] == [
        "transformers + vLLM", "transformers", "dequantized", "",
    ]  # fmt: skip
