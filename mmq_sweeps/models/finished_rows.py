"""Leave rows whose text has ended out of the following steps of greedy decoding; the tokens are those of ``generate`` alone.

transformers computes every row of a batch until its longest text ends. Here the model's forward sees the rows that still
write, and ``generate`` gets zeros for the others, which it pads anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mmq_sweeps.models.loading import LoadedModel

# Models that keep nothing of a row beside ``ROWS`` and the cache (Qwen-VL also keeps offsets of positions).
# Of BLIP-2 it is the decoder inside that generates.
KNOWN = (
    "OPTForCausalLM", "LlavaForConditionalGeneration", "Idefics3ForConditionalGeneration",
    "SmolVLMForConditionalGeneration", "InternVLForConditionalGeneration",
)  # fmt: skip
ROWS = ("input_ids", "attention_mask", "position_ids")
GREEDY = {"max_new_tokens", "num_beams", "do_sample"}
# Rows are taken out when so many of those left have ended: doing so copies the cache.
WORTH = 1 / 8


@contextmanager
def finished_rows_left_out(loaded: LoadedModel, generation: Mapping[str, Any]) -> Iterator[None]:
    """Let ``generate`` of ``loaded`` with the settings ``generation`` compute unfinished rows only.

    Changes nothing for a model that is not ``KNOWN``, for beams or samples, or on a GPU, where a step with fewer rows takes
    about as long.
    """
    model = next((module for module in loaded.model.modules() if type(module).__name__ in KNOWN), None)
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if model is None or ends is None or not _greedy(loaded, generation) or loaded.device.type != "cpu":
        yield
        return
    replaced, forward = model.__dict__.get("forward"), model.forward  # accelerate's, where it places weights
    rows = _Rows(torch.as_tensor(ends).reshape(-1))

    # ``generate`` reads the signature.
    @functools.wraps(forward)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        return rows.call(forward, args, kwargs)

    model.forward = stand_in
    try:
        yield
    finally:
        if replaced is None:
            del model.forward
        else:
            model.forward = replaced


class _Rows:
    """Rows of the batch that still write, from one step of decoding to the next."""

    def __init__(self, ends: Tensor) -> None:
        self._ends = ends
        self._begin(0)

    def call(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Call ``forward`` for the rows that are left; return its output with logits for all rows."""
        if args or not _is_step(kwargs):
            self._begin(0)
            return forward(*args, **kwargs)
        tokens, cache = kwargs["input_ids"], kwargs["past_key_values"]
        if not len(self._ended):
            self._begin(len(tokens))
        self._leave_out(tokens[:, 0], cache)
        if len(self._left) == len(tokens):
            return forward(**kwargs)
        output = forward(**kwargs | {name: kwargs[name][self._left] for name in ROWS if kwargs.get(name) is not None})
        logits = output.logits.new_zeros(len(tokens), *output.logits.shape[1:])
        logits[self._left] = output.logits
        output.logits = logits
        return output

    def _begin(self, count: int) -> None:
        self._ended, self._left = torch.zeros(count, dtype=torch.bool), torch.arange(count)

    def _leave_out(self, last: Tensor, cache: DynamicCache) -> None:
        """Take rows out of ``cache`` if enough have ended; ``last`` is each row's last token, behind an end padding."""
        self._ended |= torch.isin(last, self._ends)
        writing = (~self._ended[self._left]).nonzero()[:, 0]
        if 0 < len(writing) <= (1 - WORTH) * len(self._left):
            cache.batch_select_indices(writing)
            self._left = self._left[writing]


def _is_step(kwargs: Mapping[str, Any]) -> bool:
    """Return True if a call with ``kwargs`` reads one more token of each row, with all of the past in a cache."""
    tokens: Any = kwargs.get("input_ids")
    cache: Any = kwargs.get("past_key_values")
    if not isinstance(tokens, Tensor) or tokens.shape[1:] != (1,) or type(cache) is not DynamicCache:
        return False
    by_row = [value for name in ROWS if (value := kwargs.get(name)) is not None]
    others = (value for name, value in kwargs.items() if name not in (*ROWS, "past_key_values"))
    return (
        cache.get_seq_length() > 0
        and all(type(layer) is DynamicLayer for layer in cache.layers)
        and all(isinstance(value, Tensor) and value.dim() == 2 and len(value) == len(tokens) for value in by_row)
        and all(isinstance(value, (bool, int, float, str, NoneType)) for value in others)
    )


def _greedy(loaded: LoadedModel, generation: Mapping[str, Any]) -> bool:
    """Return True if decoding takes the likeliest token, with no other settings than ``GREEDY``."""
    if loaded.config.get("inherit_generation") or not set(generation) <= GREEDY:
        return False
    return generation.get("num_beams", 1) == 1 and not generation.get("do_sample", False)
