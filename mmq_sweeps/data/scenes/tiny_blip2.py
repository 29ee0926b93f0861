"""The embedded BLIP-2 captioner, which also answers questions: its shape, training batches and loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

from mmq_sweeps.data.scenes import network
from mmq_sweeps.data.scenes.network import (
    DEVIATION,
    IGNORED,
    IMAGE,
    MEAN,
    Recipe,
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
class Widths(network.Widths):
    """Widths of the three parts."""

    connector: int = 2
    language: int = 6
    patch: int = 8
    queries: int = 12
    row_spread: float = 0.35


@dataclass(frozen=True)
class Batch:
    """Pixels ``[B, 3, 48, 48]`` and texts ``[B + Q, T]``: captions of all images, then questions on the first ``Q``."""

    pixels: Tensor
    tokens: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Captioner(Recipe):
    """Recipe of the captioner."""

    steps: int = 5500
    batch: int = 32
    rate: float = 1.5e-3
    warmup: int = 200
    widths: Widths = field(default_factory=Widths)

    def processor(self) -> Blip2Processor:
        # Generation continues at the right end, so padding belongs on the left.
        return blip2_processor(self.widths.queries, self.widths.longest, padding_side="left")

    def model(self, processor: Blip2Processor) -> Blip2ForConditionalGeneration:
        model = Blip2ForConditionalGeneration(_config(self.widths, processor.tokenizer))
        break_symmetries(model)
        spread_rows(model, self.widths.row_spread)
        return model

    def batches(self, processor: Blip2Processor) -> Iterator[Batch]:
        ids = processor.tokenizer.get_vocab()
        for scenes, words in self.drawn(len("texts")):
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


def blip2_processor(queries: int, longest: int, padding_side: str) -> Blip2Processor:
    """Return a processor that puts ``queries`` image tokens before the text."""
    tokenizer = build_tokenizer(VOCABULARY, longest, padding_side)
    size = {"height": PIXELS, "width": PIXELS}
    images = BlipImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)
    return Blip2Processor(images, tokenizer, num_query_tokens=queries)


def break_symmetries(model: Any) -> None:
    """Draw anew the weights of a BLIP-2 that would be learned late, or not at all."""
    # Blip2 initializes its queries to zero, and equal queries stay equal; a spread breaks the symmetry.
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    # Make position matter as much as content, or shapes that span patches are learned late.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.5)


def blip2_config(
    widths: Any, tokenizer: PreTrainedTokenizerFast, patch: int, connector: Mapping[str, Any], **more: Any
) -> Blip2Config:
    """Return the configuration of a BLIP-2 with its parts' ``widths``; ``connector`` and ``more`` add fields to it."""
    common: dict[str, Any] = {
        "hidden_size": widths.width,
        "intermediate_size": widths.inner * widths.width,
        "num_attention_heads": widths.heads,
        "hidden_act": "gelu",
        "initializer_range": widths.spread,
    }
    vision = Blip2VisionConfig(**common, num_hidden_layers=widths.vision, image_size=PIXELS, patch_size=patch)
    between = Blip2QFormerConfig(
        **common,
        num_hidden_layers=widths.connector,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **connector,
    )
    return Blip2Config(
        vision_config=vision,
        qformer_config=between,
        num_query_tokens=widths.queries,
        initializer_range=widths.spread,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        **more,
    )


def _config(widths: Widths, tokenizer: PreTrainedTokenizerFast) -> Blip2Config:
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
    return blip2_config(widths, tokenizer, widths.patch, {"vocab_size": 1}, text_config=language)


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
