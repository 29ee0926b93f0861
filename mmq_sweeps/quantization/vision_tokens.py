"""Which tokens of a part's input are vision tokens, as ``vision_tokens`` of its yaml says.

It is a field of the model's configuration with the token id that stands for the image in a text (``image_token_id``), or
``query_length``, the argument with which a Q-Former's blocks are told how many query tokens are ahead of a text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmq_sweeps.quantization.targets import Part

# Kinds of tokens; a mask with these values instead of booleans tells them apart.
PADDING, TEXT, VISION = 0, 1, 2
KINDS = torch.uint8
QUERY_LENGTH = "query_length"


def problem(model: nn.Module, part: Part) -> str | None:
    """Return a sentence if ``model`` has no such token id as ``part`` names."""
    named = part.vision_tokens
    if named is None or named == QUERY_LENGTH or isinstance(getattr(model.config, named, None), int):
        return None
    ids = [
        name for name in ("image_token_id", "image_token_index") if isinstance(getattr(model.config, name, None), int)
    ]
    known = (
        f"; it has {' and '.join(ids)}" if ids else "; choose the field of its config.json with the image's token id"
    )
    return f"model.parts.{part.name}.vision_tokens={named}: {type(model).__name__} has no token id of that name{known}"


def in_the_text(model: nn.Module, part: Part, inputs: Mapping[str, Any]) -> Tensor | None:
    """Return booleans ``[B, T]``, true for the tokens of the model's ``input_ids`` that stand for an image.

    None if the input of ``part`` is not that text. Without ``input_ids`` a RuntimeError.
    """
    if part.vision_tokens is None or part.vision_tokens == QUERY_LENGTH:
        return None
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor):
        raise RuntimeError(
            f"model.parts.{part.name}.vision_tokens={part.vision_tokens}: the task calls the model without input_ids, so its "
            "vision tokens are not known; choose method.vision_weight=null"
        )
    return tokens == getattr(model.config, part.vision_tokens)


def leading(shape: torch.Size, count: int, device: torch.device) -> Tensor:
    """Return booleans of ``shape`` ``[B, T]``, true for the first ``count`` tokens of each row."""
    return (torch.arange(shape[1], device=device) < count).expand(shape)


def with_kinds(counts: Tensor | None, vision: Tensor) -> Tensor:
    """Return the kinds ``[B, T]`` of tokens, of which ``counts`` are no padding (None: all) and ``vision`` show an image."""
    kinds = torch.where(vision, VISION, TEXT).to(KINDS)
    return kinds if counts is None else kinds * counts.to(kinds)
