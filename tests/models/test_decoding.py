"""Inputs of the decoder in an encoder-decoder model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmq_sweeps.models.decoding import decoder_inputs, is_encoder_decoder, with_decoder_inputs


def model_of(generates: list[list[int]] | None = None, **tokens: Any) -> Any:
    settings = SimpleNamespace(decoder_start_token_id=None, bos_token_id=None, eos_token_id=None)
    vars(settings).update(tokens)
    config = SimpleNamespace(is_encoder_decoder=True)
    return SimpleNamespace(
        config=config, generation_config=settings, generate=lambda **_: torch.tensor(generates)
    )  # fmt: skip


def test_an_answer_stands_behind_the_start_token_without_its_last() -> None:
    tokens, mask = torch.tensor([[5, 6, 7], [8, 1, 1]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    found = decoder_inputs(model_of(decoder_start_token_id=3, bos_token_id=4), tokens, mask)
    assert found["decoder_input_ids"].tolist() == [[3, 5, 6], [3, 8, 1]]
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert decoder_inputs(model_of(bos_token_id=4), tokens, mask)["decoder_input_ids"][0, 0] == 4
    with pytest.raises(ValueError, match="decoder_start_token_id, with which its decoder begins"):
        decoder_inputs(model_of(), tokens, mask)


def test_generated_tokens_count_up_to_the_first_end() -> None:
    """A decoder may start with the token that also ends."""
    model = model_of([[2, 5, 2, 1, 2], [2, 5, 6, 7, 8]], eos_token_id=2)
    found = with_decoder_inputs(model, {"input_ids": torch.ones(2, 3)})
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]


def test_inputs_that_have_a_text_for_the_decoder_are_left_as_they_are() -> None:
    given = {"decoder_input_ids": torch.ones(1, 2)}
    assert with_decoder_inputs(model_of(), given) == given
    assert not is_encoder_decoder(torch.nn.Linear(1, 1))
    assert not is_encoder_decoder(None)
