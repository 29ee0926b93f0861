"""The questions to a model: items of a task, and how two of them are prepared and answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmq_sweeps.memory import ran_out_of_memory
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.model_check.modules import Filled, Misplaced

# Characters of a text shown in a message.
SHORT = 60


@dataclass(frozen=True, eq=False)
class Asked:
    """An item as a task asks it: ``images`` are PIL images, ``text`` the prompt."""

    id: str
    images: Sequence[Image.Image]
    text: str

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return self.images[0]


@dataclass(frozen=True)
class Asking:
    """A task's way of asking ``loaded``.

    ``prepare`` makes the model's inputs, a row per item; ``answer`` returns scores ``[B, K]`` for inputs on the device.
    ``prompted`` is true if texts are prompts: they contain image placeholders and must not be truncated. ``batched`` is
    true if the task runs several items at once.
    """

    loaded: LoadedModel
    prepare: Callable[[Sequence[Asked]], Mapping[str, Any]]
    answer: Callable[[Mapping[str, Any]], Tensor]
    prompted: bool
    batched: bool

    @property
    def checkpoint(self) -> str:
        return f"model.checkpoint={self.loaded.config['checkpoint']}"


class Trial:
    """Two items, with their prepared inputs and their answers alone cached.

    ``others`` are ``first``'s text with two other images: ``second``'s, and ``first``'s inverted, which differs even if
    the items' images are equal.
    """

    def __init__(self, asking: Asking, first: Asked, second: Asked) -> None:
        self.asking, self.first, self.second = asking, first, second
        again = second if second.text == first.text else replace(second, text=first.text)
        self.others = (again, replace(first, images=[ImageOps.invert(image.convert("RGB")) for image in first.images]))
        self.inputs, self.answer = cache(self._inputs), cache(self._answer)

    def _inputs(self, asked: Asked) -> Mapping[str, Any]:
        with _naming(asked):
            return self.asking.prepare([asked])

    def _answer(self, asked: Asked) -> tuple[Tensor, Filled]:
        inputs = self.inputs(asked)
        with _naming(asked):
            return answered(self.asking, inputs)


@contextmanager
def _naming(asked: Asked) -> Iterator[None]:
    """Name the item in the error of a model or processor that cannot take it."""
    try:
        yield
    except Misplaced:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise
        raise ValueError(f"item {asked.id!r} ({short(asked.text)}) cannot be asked: {error}") from error


@torch.no_grad()
def answered(asking: Asking, inputs: Mapping[str, Any]) -> tuple[Tensor, Filled]:
    with Filled() as filled:
        return asking.answer(asking.loaded.to_device(inputs)), filled


def short(text: str) -> str:
    return repr(text if len(text) <= SHORT else f"{text[:SHORT]}...")
