"""Ask a model how likely it finds the right texts, token by token, instead of letting it write: one forward pass a batch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.teaching import teacher_forced

# Tokens kept at each place, and the digits of their log-probabilities.
LIKELIEST, DIGITS = 16, 4


@torch.no_grad()
def likelihoods(
    loaded: LoadedModel, images: Sequence[Sequence[Any]], prompts: Sequence[str], answers: Sequence[str]
) -> tuple[list[str], list[bool]]:
    """Return the likelihood of each answer as JSON, for ``metrics/probability/likelihood.py``, and if it is not finite."""
    texts: list[str] = []
    wrong: list[bool] = []
    lengths = [_length(loaded, answer) for answer in answers]
    for inputs in teacher_forced(loaded, images, prompts, answers):
        moved = loaded.to_device(inputs)
        logits = loaded.model(**moved).logits
        read, mask = _text(moved)
        for row in range(len(read)):
            places = mask[row].nonzero()[:, 0]
            # The first token has nothing before it.
            own = places[1:][-lengths[len(texts)] :]
            found = logits[row, own - 1 - read.shape[1]].float()
            texts.append(_json(found.log_softmax(-1), read[row, own]))
            wrong.append(not bool(found.isfinite().all()))
    return texts, wrong


def _length(loaded: LoadedModel, answer: str) -> int:
    tokenizer = loaded.processor.tokenizer
    return max(1, len(tokenizer(answer, add_special_tokens=False)["input_ids"]))


def _text(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the tokens that the right text ends, ``[B, T]``, and their mask."""
    kind = "decoder_" if "decoder_input_ids" in inputs else ""
    tokens = inputs[f"{kind}input_ids"]
    mask = inputs.get(f"{kind}attention_mask")
    return tokens, torch.ones_like(tokens) if mask is None else mask


def _json(logs: Tensor, right: Tensor) -> str:
    own = logs.gather(-1, right[:, None])[:, 0]
    best = logs.topk(min(LIKELIEST, logs.shape[-1]))
    likeliest = [
        {str(token): round(value, DIGITS) for token, value in zip(tokens, values, strict=True)}
        for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    return json.dumps({"log_likelihood": float(own.double().mean()), "likeliest": likeliest})
