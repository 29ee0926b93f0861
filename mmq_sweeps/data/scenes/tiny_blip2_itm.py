"""The embedded BLIP-2 retriever: its shape, training batches and loss.

The losses are BLIP-2's image-text contrast and image-text matching (arXiv 2301.12597). Matching uses hard negatives:
pairs that the contrast confuses (ALBEF, arXiv 2107.07651), and texts of the same scene with one detail changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    PreTrainedTokenizerFast,
)

from mmq_sweeps.data.scenes import network
from mmq_sweeps.data.scenes.network import (
    CELL_PATCH,
    Names,
    Recipe,
    padded,
    pixels_of,
    smooth_patches,
    spread_rows,
)
from mmq_sweeps.data.scenes.quality import recalls
from mmq_sweeps.data.scenes.scene import COLOURS, KINDS, MOST_DOTS, SIZES, TONES, Scene, Words
from mmq_sweeps.data.scenes.tiny_blip2 import blip2_config, blip2_processor, break_symmetries
from mmq_sweeps.data.scenes.words import references
from mmq_sweeps.models.retriever import Texts

WORDINGS = 5


@dataclass(frozen=True)
class Widths(network.Widths):
    """Widths of the two parts; ``shared`` is the width of the contrast's embedding space."""

    connector: int = 3
    queries: int = 8
    shared: int = 64


@dataclass(frozen=True)
class Batch:
    """Training batch: pixels ``[B, 3, 48, 48]`` and texts ``[3 B, T]``.

    The texts are a caption of each image, another caption of each, then for each a caption with one detail wrong.
    ``names`` labels the cells; ``seed`` draws the hard negatives.
    """

    pixels: Tensor
    texts: Texts
    names: Names
    seed: int


@dataclass(frozen=True, kw_only=True)
class Retriever(Recipe):
    """Recipe of the retriever.

    ``temperature`` divides the cosines of the contrast; ``naming`` weights the loss of ``Names``.
    """

    steps: int = 1500
    batch: int = 24
    rate: float = 1.5e-3
    warmup: int = 150
    temperature: float = 0.07
    naming: float = 1.0
    widths: Widths = field(default_factory=Widths)

    def processor(self) -> Blip2Processor:
        # The contrast uses a text's first token, so padding belongs on the right.
        return blip2_processor(self.widths.queries, self.widths.longest, padding_side="right")

    def model(self, processor: Blip2Processor) -> Blip2ForImageTextRetrieval:
        model = Blip2ForImageTextRetrieval(_config(self.widths, processor.tokenizer))
        break_symmetries(model)
        smooth_patches(model.vision_model.embeddings.patch_embedding)
        spread_rows(model, self.widths.row_spread)
        return model

    def batches(self, processor: Blip2Processor) -> Iterator[Batch]:
        for scenes, words in self.drawn(len("pairs")):
            firsts = [words.below(WORDINGS) for _ in scenes]
            texts = [references(scene)[first] for scene, first in zip(scenes, firsts, strict=True)]
            seconds = [(first + 1 + words.below(WORDINGS - 1)) % WORDINGS for first in firsts]
            texts += [references(scene)[second] for scene, second in zip(scenes, seconds, strict=True)]
            texts += [references(change(scene, words))[words.below(WORDINGS)] for scene in scenes]
            names = Names.of(scenes, processor.tokenizer)
            yield Batch(pixels_of(scenes), tokenize(texts, processor.tokenizer), names, words.below(2**31))

    def loss(self, model: Blip2ForImageTextRetrieval, batch: Batch) -> Tensor:
        """Return the sum of contrast, matching and weighted naming losses, each a mean cross-entropy."""
        count = len(batch.pixels)
        seen = model.vision_model(batch.pixels).last_hidden_state
        similarity = contrast(model, seen, batch.texts[: 2 * count]) / self.temperature
        owner = torch.arange(count).repeat(2)
        by_image = torch.cat([similarity[:, :count], similarity[:, count:]])
        contrasted = (cross_entropy(by_image, owner) + cross_entropy(similarity.T, owner)) / 2
        images, texts = hard_pairs(similarity.detach(), batch.seed)
        together = torch.zeros(len(images), dtype=torch.long)
        together[:count] = 1
        matched = cross_entropy(match(model, seen[images], batch.texts[texts]), together)
        # The first vision output is the class token's.
        named = batch.names.loss(seen[:, 1:].flatten(0, 1), model.embeddings.word_embeddings)
        return contrasted + matched + self.naming * named

    def quality(self, model: Blip2ForImageTextRetrieval, processor: Blip2Processor) -> dict[str, float]:
        """Return recall@1 in both directions."""
        return recalls(model, processor)


def contrast(model: Blip2ForImageTextRetrieval, seen: Tensor, texts: Texts) -> Tensor:
    """Return ``[B, N]``: the best query's cosine with each text, for vision outputs ``seen`` ``[B, P, width]``."""
    queries = model.query_tokens.expand(len(seen), -1, -1)
    looks = model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    words = model.qformer(
        query_embeds=model.embeddings(input_ids=texts.tokens), query_length=0, attention_mask=texts.mask
    ).last_hidden_state[:, 0]
    looks, words = normalize(model.vision_projection(looks), dim=-1), normalize(model.text_projection(words), dim=-1)
    return (looks @ words.T).amax(1)


def hard_pairs(similarity: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return image rows and text rows to match, given ``similarity`` ``[B, 2 B]``.

    The first ``B`` pairs belong together. Then follow each image with a text that the contrast confuses with its own,
    each first text with an image so confused, and each image with the text that has one detail wrong.
    """
    count = len(similarity)
    own = torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    confused = similarity.masked_fill(torch.eye(count, dtype=torch.bool).repeat(1, 2), float("-inf"))
    text = torch.multinomial(confused.softmax(1), 1, generator=generator)[:, 0]
    image = torch.multinomial(confused[:, :count].T.softmax(1), 1, generator=generator)[:, 0]
    return torch.cat([own, own, image, own]), torch.cat([own, text, own, 2 * count + own])


def match(model: Blip2ForImageTextRetrieval, seen: Tensor, texts: Texts) -> Tensor:
    """Return logits ``[N, 2]`` (apart, together) of vision outputs ``[N, P, width]`` and texts, row by row."""
    queries = model.query_tokens.expand(len(seen), -1, -1)
    mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), texts.mask], 1)
    hidden = model.qformer(
        query_embeds=model.embeddings(input_ids=texts.tokens, query_embeds=queries),
        query_length=queries.shape[1],
        attention_mask=mask,
        encoder_hidden_states=seen,
    ).last_hidden_state
    return model.itm_head(hidden[:, : queries.shape[1]]).mean(1)


def change(scene: Scene, words: Words) -> Scene:
    """Return ``scene`` with another number of dots, or one shape of another kind, colour, tone or size.

    Use the result for its texts only: positions and radii do not follow the change.
    """
    at = words.below(len(scene.shapes))
    shape = scene.shapes[at]
    taken = {other.kind for other in scene.shapes}
    what = words.below(5)
    if what == 0:
        counts = [count for count in range(1, MOST_DOTS + 1) if count != len(scene.dots)]
        return replace(scene, dots=((0, 0),) * counts[words.below(len(counts))])
    looks = (
        [replace(shape, kind=kind) for kind in KINDS if kind not in taken],
        [replace(shape, colour=colour) for colour in COLOURS if colour != shape.colour],
        [replace(shape, tone=tone) for tone in TONES if tone != shape.tone],
        [replace(shape, size=size) for size in SIZES if size != shape.size],
    )[what - 1]
    changed = looks[words.below(len(looks))]
    return replace(scene, shapes=(*scene.shapes[:at], changed, *scene.shapes[at + 1 :]))


def _config(widths: Widths, tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    connector = {
        "encoder_hidden_size": widths.width,
        "vocab_size": len(tokenizer),
        "use_qformer_text_input": True,
        "max_position_embeddings": widths.longest,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return blip2_config(widths, tokenizer, CELL_PATCH, connector, image_text_hidden_size=widths.shared)


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Texts:
    rows = tokenizer(list(texts)).input_ids
    return Texts(padded(rows, tokenizer.pad_token_id), padded([[1] * len(row) for row in rows], 0))
