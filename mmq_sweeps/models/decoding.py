"""Inputs of an encoder-decoder's decoder during calibration.

The encoder reads the prompt. The decoder reads the right answer behind its start token, as in teacher forcing, or, if
no answer is given, the model's own generated text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Tokens to generate if no answer is given: about a caption.
GENERATED = 32
GIVEN = ("decoder_input_ids", "decoder_inputs_embeds", "labels")


def is_encoder_decoder(model: Any) -> bool:
    """Return whether a model's language part has a decoder that reads a text of its own."""
    config = getattr(model, "config", None)
    return bool(getattr(config, "is_encoder_decoder", False)) or any(
        getattr(getattr(config, name, None), "is_encoder_decoder", False) for name in ("text_config", "decoder")
    )


def decoder_inputs(model: Any, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the decoder's arguments for answers ``tokens`` ``[B, T]``: the start token, then all but the last.

    ``mask`` ``[B, T]`` is 0 on padding, which is on the right. Raises ValueError if the model names no start token.
    """
    start = _start_token(model)
    return {
        "decoder_input_ids": torch.cat([tokens.new_full((len(tokens), 1), start), tokens[:, :-1]], dim=1),
        "decoder_attention_mask": torch.cat([mask.new_ones(len(mask), 1), mask[:, :-1]], dim=1),
    }


def with_decoder_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``inputs``; for an encoder-decoder without decoder inputs, add those that it generates."""
    if not is_encoder_decoder(model) or any(name in inputs for name in GIVEN):
        return dict(inputs)
    tokens = model.generate(**inputs, max_new_tokens=GENERATED, do_sample=False, num_beams=1)
    return {**inputs, "decoder_input_ids": tokens, "decoder_attention_mask": _up_to_the_end(model, tokens)}


def _start_token(model: Any) -> int:
    for config in (model.generation_config, getattr(model.config, "text_config", None), model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            token = getattr(config, name, None)
            if isinstance(token, int):
                return token
    raise ValueError(
        f"{type(model).__name__}: neither its generation settings nor its text_config name a decoder_start_token_id, with "
        "which its decoder begins"
    )


def _up_to_the_end(model: Any, tokens: Tensor) -> Tensor:
    """Return 1 up to the first end token of each row and 0 behind it; the start token may be the end token too."""
    ends = model.generation_config.eos_token_id
    ended = torch.isin(tokens, torch.as_tensor([] if ends is None else ends, device=tokens.device, dtype=tokens.dtype))
    ended[:, 0] = False
    before = ended.long().cumsum(dim=1) - ended.long()
    return (before == 0).long()
