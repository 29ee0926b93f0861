"""Which formats load where, as ``docs/analysis.md`` says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmq_sweeps.identity.loads_in import ExportedLinear, joined, loads_in, parsed, shown
from mmq_sweeps.methods.affine import Format

BOTH, TRANSFORMERS, NONE = ["transformers", "vllm"], ["transformers"], ["dequantized"]
FORMATS = st.builds(
    Format, st.integers(2, 8), st.sampled_from(["tensor", "channel", 32, 128]), st.booleans(), st.just(value=False)
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
        (ExportedLinear("language", Format(4, symmetric=True), expert=True), NONE),
        # Stored dense, in whatever format.
        (ExportedLinear("embeddings", Format(3, "tensor", real_zero=True)), BOTH),
    ],
)
def test_a_format_loads_where_export_says(linear: ExportedLinear, expected: list[str]) -> None:
    assert loads_in([linear]) == expected


def test_full_precision_loads_everywhere() -> None:
    assert loads_in([]) == BOTH


@given(st.lists(LINEARS, max_size=6))
def test_a_loader_takes_a_cell_if_it_takes_each_linear(linears: list[ExportedLinear]) -> None:
    each = [loads_in([linear]) for linear in linears]
    found = loads_in(linears)
    if any(own == NONE for own in each):
        assert found == NONE
    else:
        assert found == [name for name in BOTH if all(name in own for own in each)]
    assert parsed(joined(found)) == found


@given(FORMATS)
def test_one_more_linear_that_loads_nowhere_leaves_nothing(format: Format) -> None:
    linear = ExportedLinear("language", format)
    assert loads_in([linear, replace(linear, input_scaled=True)]) == NONE


def test_names_are_those_of_the_projects() -> None:
    assert [shown(own) for own in (BOTH, TRANSFORMERS, NONE, [])] == [
        "transformers + vLLM", "transformers", "dequantized", "",
    ]  # fmt: skip
