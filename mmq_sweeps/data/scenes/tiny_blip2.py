"""The embedded BLIP-2 captioner, which also answers questions: its shape, training batches and loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from mmq_sweeps.data.scenes.dataset import Scenes
from mmq_sweeps.data.scenes.network import (
    DEVIATION,
    IGNORED,
    IMAGE,
    MEAN,
    build_tokenizer,
    padded,
    pixels_of,
    spread_rows,
)
from mmq_sweeps.data.scenes.quality import answer_accuracy
from mmq_sweeps.data.scenes.scene import PIXELS, Scene, Words
from mmq_sweeps.data.scenes.words import VOCABULARY, questions, references

PROMPT = "question : {} short answer :"
# Every fourth image also gets a question: few suffice to learn answers, and each question row costs a caption row.
QUESTIONED = 4


@dataclass(frozen=True)
class Widths:
    """Width and number of blocks of the three parts.

    ``spread`` is the standard deviation of fresh weights; ``inner`` is an MLP's width as a multiple of the part's;
    ``longest`` is the token limit of a text; ``row_spread`` is the standard deviation of the logarithm of the row norms
    of fresh linears.
    """

    width: int = 64
    vision: int = 6
    connector: int = 2
    language: int = 6
    heads: int = 4
    inner: int = 4
    patch: int = 8
    queries: int = 12
    longest: int = 64
    spread: float = 0.12
    row_spread: float = 0.35


@dataclass(frozen=True)
class Batch:
    """Pixels ``[B, 3, 48, 48]`` and texts ``[B + Q, T]``: captions of all images, then questions on the first ``Q``."""

    pixels: Tensor
    tokens: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Captioner:
    """Recipe: the trained weights depend only on it, the code and the number of threads."""

    seed: int = 0
    steps: int = 5500
    batch: int = 32
    rate: float = 1.5e-3
    warmup: int = 200
    widths: Widths = field(default_factory=Widths)

    def build(self) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
        """Return a model with fresh weights, equal for equal seeds, and its processor."""
        processor = build_processor(self.widths)
        return build_model(self.widths, processor, self.seed), processor

    def batches(self, processor: Blip2Processor) -> Iterator[Batch]:
        """Yield the training batches in order; batch ``n`` depends only on the seed, the size and ``n``."""
        data = Scenes("train", self.steps * self.batch, self.seed)
        ids = processor.tokenizer.get_vocab()
        for step in range(self.steps):
            scenes = [data.scene(step * self.batch + i) for i in range(self.batch)]
            words = Words(self.seed, len("texts"), step)
            texts = [_caption(scene, words) for scene in scenes]
            texts += [_question(scene, words) for scene in scenes[: self.batch // QUESTIONED]]
            yield Batch(pixels_of(scenes), *_rows(texts, ids, processor.num_query_tokens))

    def loss(self, model: Blip2ForConditionalGeneration, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over words of captions and answers; the vision part encodes each image once."""
        features = model.get_image_features(batch.pixels).pooler_output
        features = torch.cat([features, features[: len(batch.tokens) - len(features)]])
        embedded = model.get_input_embeddings()(batch.tokens)
        place = (batch.tokens == model.config.image_token_index).unsqueeze(-1)
        embedded = embedded.masked_scatter(place, features)
        hidden = model.language_model.model(inputs_embeds=embedded, attention_mask=batch.mask).last_hidden_state[:, :-1]
        targets = batch.labels[:, 1:]
        kept = targets != IGNORED
        return torch.nn.functional.cross_entropy(model.language_model.lm_head(hidden[kept]), targets[kept])

    def quality(self, model: Blip2ForConditionalGeneration, processor: Blip2Processor) -> dict[str, float]:
        """Return the share of evaluation questions answered right."""
        return {"answers right": answer_accuracy(model, processor, "Question: {question} Short answer:")}


def build_processor(widths: Widths) -> Blip2Processor:
    """Return a processor that puts ``queries`` image tokens before the text."""
    # Generation continues at the right end, so padding belongs on the left.
    tokenizer = build_tokenizer(VOCABULARY, widths.longest, padding_side="left")
    size = {"height": PIXELS, "width": PIXELS}
    images = BlipImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)
    return Blip2Processor(images, tokenizer, num_query_tokens=widths.queries)


def build_model(widths: Widths, processor: Blip2Processor, seed: int) -> Blip2ForConditionalGeneration:
    """Return a model with fresh weights; equal seeds give equal weights."""
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(_config(widths, processor.tokenizer))
    # Blip2 initializes its queries to zero, and equal queries stay equal; a spread breaks the symmetry.
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    # Make position matter as much as content, or shapes that span patches are learned late.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.5)
    spread_rows(model, widths.row_spread)
    return model


def _config(widths: Widths, tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
    common: dict[str, Any] = {
        "hidden_size": widths.width,
        "num_attention_heads": widths.heads,
        "initializer_range": widths.spread,
    }
    vision = Blip2VisionConfig(
        **common,
        intermediate_size=widths.inner * widths.width,
        num_hidden_layers=widths.vision,
        image_size=PIXELS,
        patch_size=widths.patch,
        hidden_act="gelu",
    )
    connector = Blip2QFormerConfig(
        **common,
        vocab_size=1,
        intermediate_size=widths.inner * widths.width,
        num_hidden_layers=widths.connector,
        hidden_act="gelu",
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    language = OPTConfig(
        hidden_size=widths.width,
        num_attention_heads=widths.heads,
        ffn_dim=widths.inner * widths.width,
        num_hidden_layers=widths.language,
        vocab_size=len(tokenizer),
        max_position_embeddings=widths.queries + widths.longest,
        activation_function="relu",
        dropout=0.0,
        init_std=widths.spread,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=connector,
        text_config=language,
        num_query_tokens=widths.queries,
        initializer_range=widths.spread,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )


def _caption(scene: Scene, words: Words) -> tuple[str, str]:
    """Pick the first wording in half of all cases, so that greedy decoding writes it."""
    choice = words.below(8)
    return "", references(scene)[choice if choice < 5 else 0]


def _question(scene: Scene, words: Words) -> tuple[str, str]:
    choices = questions(scene)
    question = choices[words.below(len(choices))]
    return PROMPT.format(question.question), question.answer


def _rows(texts: list[tuple[str, str]], ids: dict[str, int], queries: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, labels = [], []
    for prompt, answer in texts:
        start = [ids[IMAGE]] * queries + [ids["<s>"]] + [ids[word] for word in prompt.split()]
        rest = [ids[word] for word in answer.split()] + [ids["</s>"]]
        rows.append(start + rest)
        labels.append([IGNORED] * len(start) + rest)
    return padded(rows, ids["<pad>"]), padded([[1] * len(row) for row in rows], 0), padded(labels, IGNORED)
