"""The number of tokens that a model can read, and the items that exceed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from mmq_sweeps.data.images import image_count
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.examples import decoded
from mmq_sweeps.tasks.generation.inputs import prompt_inputs, prompts_of
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.items import naming_the_item


def model_window(model: nn.Module) -> int | None:
    """Return how many tokens, image tokens included, ``model`` can read; None if its positions have no end."""
    config = getattr(model, "config", None)
    of_text = getattr(config, "get_text_config", lambda: config)
    window = getattr(of_text(), "max_position_embeddings", None)
    return window if isinstance(window, int) and window > 0 else None


def too_long(loaded: LoadedModel, items: Sequence[Item], generation: Mapping[str, Any]) -> dict[str, str]:
    """Return the items whose prompt and answer exceed the model's window, with the reason, by id."""
    window, tokenizer = model_window(loaded.model), getattr(loaded.processor, "tokenizer", None)
    if window is None or tokenizer is None or not items:
        return {}
    answer = generation.get("max_new_tokens") or 1
    prompts = prompts_of(loaded, items)
    tokens = dict.fromkeys(prompts, 0)
    tokens.update(zip(tokens, map(len, tokenizer(list(tokens))["input_ids"]), strict=True))

    def length_of(alone: Sequence[Item]) -> int:
        shown = decoded([item.example for item in alone])
        return int(prompt_inputs(loaded, shown, prompts_of(loaded, alone))["input_ids"].shape[1])

    exactly = naming_the_item(length_of)

    # An image adds about as many tokens to each prompt; only prompts that exceed the window by that are prepared and counted.
    around: dict[int, int] = {}
    found = {}
    for place, item in enumerate(items):
        count = image_count(item.example)
        if count not in around:
            around[count] = exactly([item]) - tokens[prompts[place]]
        # The last token is not read by the model.
        if (
            tokens[prompts[place]] + around[count] + answer - 1 > window
            and (length := exactly([item])) + answer - 1 > window
        ):
            found[item.id] = (
                f"its prompt has {length} tokens and the answer up to {answer} (max_new_tokens), and the model's window is "
                f"{window}"
            )
    return found
