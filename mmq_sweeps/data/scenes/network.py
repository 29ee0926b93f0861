"""Parts shared by the embedded models: recipe, word-level tokenizer, pictures as tensors, weight initialization.

Needs torch and transformers, as the ``tiny_*`` models, ``quality`` and ``train`` do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mmq_sweeps.data.scenes.dataset import Scenes
from mmq_sweeps.data.scenes.render import render_array
from mmq_sweeps.data.scenes.scene import CELL, CELLS, COLOURS, KINDS, SIZES, TONES, UNITS, Scene, Words

# Scenes are mostly dark ground; these put it near zero.
MEAN, DEVIATION = 0.11, 0.25
PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
# Label of tokens excluded from a loss: image tokens, prompts and padding.
IGNORED = -100
# Side in pixels of a patch as large as a cell.
CELL_PATCH = CELL // UNITS
# Words that a cell's image token learns to name: kind, colour, tone and size.
NAMES = ((*KINDS, "dot"), COLOURS, tuple(TONES), tuple(SIZES))


@dataclass(frozen=True)
class Widths:
    """Width of the quantized parts, and number of blocks of each.

    ``spread`` is the standard deviation of fresh weights; ``inner`` is an MLP's width as a multiple of the part's;
    ``longest`` is the token limit of a text; ``row_spread`` is the standard deviation of the logarithm of the row norms
    of fresh linears.
    """

    width: int = 64
    vision: int = 6
    heads: int = 4
    inner: int = 4
    longest: int = 64
    spread: float = 0.12
    row_spread: float = 0.6


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """Recipe of a model: the trained weights depend only on it, the code and the number of threads."""

    seed: int = 0
    steps: int
    batch: int
    rate: float
    warmup: int

    def build(self) -> tuple[Any, Any]:
        """Return a model with fresh weights, equal for equal seeds, and its processor."""
        processor = self.processor()
        torch.manual_seed(self.seed)
        return self.model(processor), processor

    @abstractmethod
    def processor(self) -> Any:
        """Return the model's processor."""

    @abstractmethod
    def model(self, processor: Any) -> Any:
        """Return a model with weights drawn by torch's generator."""

    @abstractmethod
    def batches(self, processor: Any) -> Iterator[Any]:
        """Yield ``steps`` batches in order; batch ``n`` depends only on the recipe and ``n``."""

    @abstractmethod
    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the loss to minimize."""

    @abstractmethod
    def quality(self, model: Any, processor: Any) -> dict[str, float]:
        """Return shares of evaluation items that a trained model gets right, for the script to print."""

    def drawn(self, stream: int) -> Iterator[tuple[list[Scene], Words]]:
        """Yield the scenes of each batch, and a stream of random words for its texts."""
        data = Scenes("train", self.steps * self.batch, self.seed)
        for step in range(self.steps):
            yield [data.scene(step * self.batch + i) for i in range(self.batch)], Words(self.seed, stream, step)


def build_tokenizer(vocabulary: Sequence[str], longest: int, padding_side: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that lower-cases, splits at spaces and marks, and puts ``<s>`` before each text."""
    words = {word: index for index, word in enumerate((PAD, BOS, EOS, UNKNOWN, *vocabulary))}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side=padding_side,
        model_max_length=longest,
    )


def pixels_of(scenes: Sequence[Scene]) -> Tensor:
    """Return the pictures as ``[B, 3, 48, 48]``, scaled to [0, 1] and normalized as the image processors do it."""
    pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float().div(255).sub(MEAN).div(DEVIATION)


def spread_rows(model: nn.Module, spread: float) -> None:
    """Scale the rows of the blocks' linears by log-normal factors with a root mean square of 1.

    Large models have output channels many times larger than others; models this small do not grow them by themselves.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (".layers." in name or ".layer." in name):
            factors = torch.exp(spread * torch.randn(module.out_features, 1))
            module.weight.data *= factors / factors.square().mean().sqrt()


def smooth_patches(embedding: nn.Conv2d, cells: int = 4) -> None:
    """Initialize a patch's filters smoothly: ``cells`` x ``cells`` random values, interpolated to the patch size.

    Filters of independent pixels mix a shape's colour with its outline, and learn late to separate the two.
    """
    weight = embedding.weight.data
    drawn = torch.randn(*weight.shape[:2], cells, cells)
    smooth = nn.functional.interpolate(drawn, size=weight.shape[2:], mode="bilinear", align_corners=False)
    # On a uniform patch a filter's values add up; this scale keeps the sum at the order of the pixel values.
    weight.copy_(smooth / (cells * weight[0, 0].numel() ** 0.5))


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Return ``rows`` as a ``[B, T]`` tensor, padded on the right with ``fill``."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


@dataclass(frozen=True)
class Names:
    """Labels of the cells of some scenes: indices into each group of ``NAMES`` ``[cells, 4]``, or ``IGNORED``.

    ``ids`` are the token ids of the names.
    """

    shown: Tensor
    ids: list[list[int]]

    @classmethod
    def of(cls, scenes: Sequence[Scene], tokenizer: PreTrainedTokenizerFast) -> Names:
        """Label the cells row by row, scene after scene."""
        shown = [cell for scene in scenes for cell in _shown(scene)]
        return cls(torch.tensor(shown), [tokenizer.convert_tokens_to_ids(list(words)) for words in NAMES])

    def loss(self, features: Tensor, embeddings: nn.Embedding) -> Tensor:
        """Return the cross-entropy of the names of the cells with ``features`` ``[cells, width]``.

        The logits are products of features and the names' embeddings. BLIP-2 and LLaVA start from a vision tower that
        CLIP's training taught to match pictures with words (arXiv 2103.00020). This stands in for it, patch by patch,
        so patches must be cells.
        """
        losses = [
            nn.functional.cross_entropy(features @ embeddings.weight[ids].T, self.shown[:, at], ignore_index=IGNORED)
            for at, ids in enumerate(self.ids)
        ]
        return torch.stack(losses).mean()


def _shown(scene: Scene) -> list[list[int]]:
    cells = [[IGNORED] * len(NAMES) for _ in range(CELLS * CELLS)]
    for shape in scene.shapes:
        words = (shape.kind, shape.colour, shape.tone, shape.size)
        cells[shape.row * CELLS + shape.column] = [names.index(word) for names, word in zip(NAMES, words, strict=True)]
    for x, y in scene.dots:
        cells[y // CELL * CELLS + x // CELL][0] = NAMES[0].index("dot")
    return cells
