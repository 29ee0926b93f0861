"""Inputs of ``generate`` for items, in batches of as many images, and the new tokens of its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mmq_sweeps.data.images import image_count
from mmq_sweeps.grouping import grouped
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.plain_text import plain_text
from mmq_sweeps.tasks.examples import decoded, split_up
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.teaching import nested


def prompt_inputs(loaded: LoadedModel, images: Sequence[list[Any]], texts: Sequence[str]) -> dict[str, Any]:
    """Return the inputs of ``generate``, a row per text with its images."""
    found = loaded.processor(
        images=nested(images),
        text=list(texts),
        return_tensors="pt",
        padding=True,
        # Text is generated after the prompt, so padding goes before it.
        padding_side="left",
    )
    return dict(found)


def prompts_of(loaded: LoadedModel, items: Sequence[Item]) -> list[str]:
    return [item.prompt_for(loaded.processor) for item in items]


def taught(loaded: LoadedModel, items: Sequence[Item]) -> tuple[list[list[Any]], list[str], list[str]]:
    """Return the images, prompts and first right texts of ``items``, for teacher forcing."""
    answers = [plain_text(item.references[0], loaded.processor) for item in items]
    return decoded([item.example for item in items]), prompts_of(loaded, items), answers


def examples_of(items: Sequence[Item]) -> list[Any]:
    return list({id(item.example): item.example for item in items}.values())


def by_images(items: Sequence[Item]) -> list[list[Item]]:
    """Group items by their number of images, in the order in which each number first occurs."""
    return list(grouped(items, lambda item: image_count(item.example)).values())


def batches_of(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Split items into batches with as many images a row, since many processors cannot mix rows with and without."""
    return [batch for alike in by_images(items) for batch in split_up(alike, size)]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def new_tokens(tokens: Tensor, prompt: Tensor) -> Tensor:
    """Strip the prompt: some releases of transformers return it before the new tokens, some do not."""
    length = prompt.shape[1]
    if tokens.shape[1] >= length and bool((tokens[:, :length] == prompt).all()):
        return tokens[:, length:]
    return tokens
