"""Generate answers together with their log-probability, from the logits that generation has computed anyway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Generated:
    """Generated ``tokens``, in front of which may be the prompt, and the log-probability of each row.

    ``log_probabilities`` holds a row's sum over its tokens, up to and with the end token, and their number.
    """

    tokens: Tensor
    log_probabilities: list[tuple[float, int]]


def generate_with_confidence(model: Any, inputs: Mapping[str, Any], generation: Mapping[str, Any]) -> Generated:
    """Generate with the settings ``generation`` and say how probable the model found its answers.

    The probability is the model's own, before anything that generation does to the logits (penalties, temperature).
    """
    found = model.generate(**inputs, **generation, output_logits=True, return_dict_in_generate=True)
    beams = getattr(found, "beam_indices", None)
    logits = list(found.logits)
    if beams is None:
        written = found.sequences[:, found.sequences.shape[1] - len(logits) :]
        alive = _up_to_the_end(written, model, generation)
        rows = torch.arange(len(written), device=written.device)[:, None].expand_as(written)
    else:
        beams = beams[:, : int((beams >= 0).sum(dim=1).max())]
        written = found.sequences[:, found.sequences.shape[1] - beams.shape[1] :]
        alive, rows = beams >= 0, beams.clamp(min=0)
    own = torch.stack(
        [_log_probability(logits[step], rows[:, step], written[:, step]) for step in range(written.shape[1])], dim=1
    )
    # Not a product with the mask: values behind the end may be minus infinity.
    sums = own.where(alive, own.new_zeros(())).sum(dim=1)
    return Generated(found.sequences, list(zip(sums.tolist(), alive.sum(dim=1).tolist(), strict=True)))


def _log_probability(logits: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Return the log-probability of ``tokens`` ``[B]`` in ``rows`` of the logits of one step ``[B * beams, V]``."""
    chosen = logits.float()[rows.to(logits.device)]
    own = chosen.gather(1, tokens.to(logits.device)[:, None])[:, 0]
    return own.double() - chosen.logsumexp(dim=1).double()


def _up_to_the_end(written: Tensor, model: nn.Module, generation: Mapping[str, Any]) -> Tensor:
    """Return true up to and with each row's end token.

    Models inside a model may have other end tokens, and not the outer one's count. An end is followed by padding alone.
    """
    ends = _tokens("eos_token_id", model, generation)
    fillers = ends | _tokens("pad_token_id", model, generation)
    ended = _among(written, ends)
    padding = _among(written, fillers) & (written == written[:, -1:])
    behind = padding.flip(1).long().cumprod(dim=1).flip(1).bool()
    only_padding = torch.cat([behind[:, 1:], behind.new_ones(len(behind), 1)], dim=1)
    last = ended & only_padding
    before = last.long().cumsum(dim=1) - last.long()
    return before == 0


def _among(written: Tensor, tokens: set[int]) -> Tensor:
    return torch.isin(written, torch.tensor(sorted(tokens), dtype=written.dtype, device=written.device))


def _tokens(name: str, model: nn.Module, generation: Mapping[str, Any]) -> set[int]:
    """Return the tokens that ``generation``, or any generation settings inside the model, give the role ``name``."""
    settings = [getattr(module, "generation_config", None) for module in model.modules()]
    values = [generation.get(name), *(getattr(own, name, None) for own in settings)]
    found: set[int] = set()
    for value in values:
        found |= set(value if isinstance(value, Sequence) else [value]) - {None}
    return {int(token) for token in found}
