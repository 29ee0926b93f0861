"""What the embedded models share: a word-level tokenizer, pictures as tensors, and how fresh weights start.

Needs torch and transformers, as the models' own modules and ``train`` do; nothing else in this package does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from mmq_sweeps.data.scenes.render import render_array
from mmq_sweeps.data.scenes.scene import CELL, CELLS, COLOURS, KINDS, SIZES, TONES, UNITS, Scene

# A scene is mostly dark ground; these put the ground near zero.
MEAN, DEVIATION = 0.11, 0.25
PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"
# What a loss leaves out: image tokens, prompts and padding.
IGNORED = -100
# The side, in pixels, of a patch that is a cell.
CELL_PATCH = CELL // UNITS
# What the image token of a cell may be taught to name: kind, colour, tone and size, each by a word.
NAMES = ((*KINDS, "dot"), COLOURS, tuple(TONES), tuple(SIZES))


def build_tokenizer(vocabulary: Sequence[str], longest: int, padding_side: str) -> PreTrainedTokenizerFast:
    """A tokenizer that lower-cases, splits at spaces and marks, and puts ``<s>`` before each text."""
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
    """The pictures as ``[B, 3, 48, 48]``, by the image processors' own arithmetic: to [0, 1], then normalised."""
    pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))
    return pixels.permute(0, 3, 1, 2).float().div(255).sub(MEAN).div(DEVIATION)


def spread_rows(model: nn.Module, spread: float) -> None:
    """Start the rows of the blocks' linears log-normally spread in size, at a root mean square of one.

    Large models have output channels many times larger than others; so small a model does not grow them by itself.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (".layers." in name or ".layer." in name):
            factors = torch.exp(spread * torch.randn(module.out_features, 1))
            module.weight.data *= factors / factors.square().mean().sqrt()


def smooth_patches(embedding: nn.Conv2d, cells: int = 4) -> None:
    """Start a patch's filters smooth, as ``cells`` x ``cells`` random values drawn out to its size.

    Filters of unrelated pixels mix a shape's colour with its outline, and learn to tell the two apart late.
    """
    weight = embedding.weight.data
    drawn = torch.randn(*weight.shape[:2], cells, cells)
    smooth = nn.functional.interpolate(drawn, size=weight.shape[2:], mode="bilinear", align_corners=False)
    # Over a patch of one colour, a filter's values add up; this keeps the sum in the order of the pixels.
    weight.copy_(smooth / (cells * weight[0, 0].numel() ** 0.5))


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """``rows`` as one ``[B, T]`` tensor, with ``fill`` behind the shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


@dataclass(frozen=True)
class Names:
    """What each cell of some scenes shows: of each kind of ``NAMES``, which name, ``[cells, 4]``, or ``IGNORED``; and
    the token ids of the names."""

    shown: Tensor
    ids: list[list[int]]

    @classmethod
    def of(cls, scenes: Sequence[Scene], tokenizer: PreTrainedTokenizerFast) -> Names:
        """Cells row by row, scene after scene."""
        shown = [cell for scene in scenes for cell in _shown(scene)]
        return cls(torch.tensor(shown), [tokenizer.convert_tokens_to_ids(list(words)) for words in NAMES])

    def loss(self, features: Tensor, embeddings: nn.Embedding) -> Tensor:
        """Cross-entropy of the names, scored by the product of a cell's ``features`` ``[cells, width]`` with their
        embeddings.

        BLIP-2 and LLaVA start from a vision tower that CLIP's training taught to match pictures with words (arXiv
        2103.00020). This stands in for it, a patch at a time, so patches have to be cells.
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
