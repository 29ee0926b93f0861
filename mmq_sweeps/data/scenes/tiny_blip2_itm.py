"""The embedded BLIP-2 retriever: its shape, training batches and loss.

The losses are BLIP-2's image-text contrast and image-text matching (arXiv 2301.12597). Matching uses hard negatives:
pairs that the contrast confuses (ALBEF, arXiv 2107.07651), and texts of the same scene with one detail changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    PreTrainedTokenizerFast,
)

from mmq_sweeps.data.scenes.dataset import Scenes
from mmq_sweeps.data.scenes.network import (
    CELL_PATCH,
    DEVIATION,
    IMAGE,
    MEAN,
    Names,
    build_tokenizer,
    padded,
    pixels_of,
    smooth_patches,
    spread_rows,
)
from mmq_sweeps.data.scenes.quality import recalls
from mmq_sweeps.data.scenes.scene import COLOURS, KINDS, MOST_DOTS, PIXELS, SIZES, TONES, Scene, Words
from mmq_sweeps.data.scenes.words import VOCABULARY, references
from mmq_sweeps.models.retriever import Texts

WORDINGS = 5


@dataclass(frozen=True)
class Widths:
    """Width and number of blocks of the two parts.

    ``spread`` is the standard deviation of fresh weights; ``inner`` is an MLP's width as a multiple of the part's;
    ``shared`` is the width of the contrast's embedding space; ``longest`` is the token limit of a text; ``row_spread``
    is the standard deviation of the logarithm of the row norms of fresh linears.
    """

    width: int = 64
    vision: int = 6
    connector: int = 3
    heads: int = 4
    inner: int = 4
    queries: int = 8
    shared: int = 64
    longest: int = 64
    spread: float = 0.12
    row_spread: float = 0.6


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


@dataclass(frozen=True)
class Retriever:
    """Recipe: the trained weights depend only on it, the code and the number of threads.

    ``temperature`` divides the cosines of the contrast; ``naming`` weights the loss of ``Names``.
    """

    seed: int = 0
    steps: int = 1500
    batch: int = 24
    rate: float = 1.5e-3
    warmup: int = 150
    temperature: float = 0.07
    naming: float = 1.0
    widths: Widths = field(default_factory=Widths)

    def build(self) -> tuple[Blip2ForImageTextRetrieval, Blip2Processor]:
        """Return a model with fresh weights, equal for equal seeds, and its processor."""
        processor = build_processor(self.widths)
        return build_model(self.widths, processor, self.seed), processor

    def batches(self, processor: Blip2Processor) -> Iterator[Batch]:
        """Yield the training batches in order; batch ``n`` depends only on the seed, the size and ``n``."""
        data = Scenes("train", self.steps * self.batch, self.seed)
        for step in range(self.steps):
            scenes = [data.scene(step * self.batch + i) for i in range(self.batch)]
            words = Words(self.seed, len("pairs"), step)
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


def build_processor(widths: Widths) -> Blip2Processor:
    """Return a processor that puts ``queries`` image tokens before the text."""
    # The contrast uses a text's first token, so padding belongs on the right.
    tokenizer = build_tokenizer(VOCABULARY, widths.longest, padding_side="right")
    size = {"height": PIXELS, "width": PIXELS}
    images = BlipImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)
    return Blip2Processor(images, tokenizer, num_query_tokens=widths.queries)


def build_model(widths: Widths, processor: Blip2Processor, seed: int) -> Blip2ForImageTextRetrieval:
    """Return a model with fresh weights; equal seeds give equal weights."""
    torch.manual_seed(seed)
    model = Blip2ForImageTextRetrieval(_config(widths, processor.tokenizer))
    # Blip2 initializes its queries to zero, and equal queries stay equal; a spread breaks the symmetry.
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    # Make position matter as much as content.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.5)
    smooth_patches(model.vision_model.embeddings.patch_embedding)
    spread_rows(model, widths.row_spread)
    return model


def _config(widths: Widths, tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    common: dict[str, Any] = {
        "hidden_size": widths.width,
        "intermediate_size": widths.inner * widths.width,
        "num_attention_heads": widths.heads,
        "hidden_act": "gelu",
        "initializer_range": widths.spread,
    }
    vision = Blip2VisionConfig(**common, num_hidden_layers=widths.vision, image_size=PIXELS, patch_size=CELL_PATCH)
    connector = Blip2QFormerConfig(
        **common,
        encoder_hidden_size=widths.width,
        vocab_size=len(tokenizer),
        num_hidden_layers=widths.connector,
        cross_attention_frequency=1,
        use_qformer_text_input=True,
        max_position_embeddings=widths.longest,
        pad_token_id=tokenizer.pad_token_id,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=connector,
        num_query_tokens=widths.queries,
        image_text_hidden_size=widths.shared,
        initializer_range=widths.spread,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> Texts:
    rows = tokenizer(list(texts)).input_ids
    return Texts(padded(rows, tokenizer.pad_token_id), padded([[1] * len(row) for row in rows], 0))
