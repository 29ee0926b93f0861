from __future__ import annotations

import pytest

from mmq_sweeps.export.formats.names import FORMATS, format_named


def test_formats_have_their_names() -> None:
    assert list(FORMATS) == ["compressed-tensors", "dequantized", "gptq", "awq"]
    assert all(format_named(name).name == name for name in FORMATS)


def test_an_unknown_format_is_an_error_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"--format gguf is unknown. Choose compressed-tensors, dequantized, gptq or awq\."
    ):
        format_named("gguf")
