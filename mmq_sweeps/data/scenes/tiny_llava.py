"""The embedded LLaVA, which answers questions and captions images: its shape, training batches and loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mmq_sweeps.data.scenes import network
from mmq_sweeps.data.scenes.network import (
    CELL_PATCH,
    DEVIATION,
    IGNORED,
    IMAGE,
    MEAN,
    Names,
    Recipe,
    build_tokenizer,
    padded,
    pixels_of,
    smooth_patches,
    spread_rows,
)
from mmq_sweeps.data.scenes.quality import answer_accuracy
from mmq_sweeps.data.scenes.scene import CELLS, PIXELS, Scene, Words
from mmq_sweeps.data.scenes.words import VOCABULARY, perfect_caption, questions

# The prompts of LLaVA-1.5 (Liu et al., arXiv 2310.03744).
PREFIX = f"USER: {IMAGE}\n"
ANSWER = "{question}\nAnswer the question using a single word or phrase. ASSISTANT:"
CAPTION = "Describe the scene. ASSISTANT:"
# The caption is the first turn of a row.
CAPTIONED = 1
_PROMPT_WORDS = ("user", "assistant", "describe", "scene", "using", "single", "word", "phrase", ".")


@dataclass(frozen=True)
class Widths(network.Widths):
    """Widths of the two quantized parts; ``gated`` is to the language's MLP as ``inner`` to the vision's."""

    language: int = 4
    gated: int = 3
    longest: int = 128


@dataclass(frozen=True)
class Batch:
    """Training batch: pixels ``[B, 3, 48, 48]``, and several dialogue turns about each image in one row ``[B, T]``.

    ``turns`` is 0 for tokens shared by all turns of a row (the image's tokens and those before them), and the turn's
    number after that; ``places`` are the positions that tokens would have if their turn stood alone.
    """

    pixels: Tensor
    tokens: Tensor
    labels: Tensor
    turns: Tensor
    places: Tensor
    names: Names

    @property
    def sees(self) -> Tensor:
        """Attention mask ``[B, 1, T, T]``: a token sees earlier tokens of its own turn and the shared ones."""
        turns = self.turns
        same = (turns[:, :, None] == turns[:, None, :]) | (turns[:, None, :] == 0)
        return same.tril().unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class Answerer(Recipe):
    """Recipe of the answerer.

    Each picture comes with a caption and ``questions`` questions, or as many as it has. ``naming`` weights the loss of
    ``Names``.
    """

    steps: int = 3500
    batch: int = 16
    questions: int = 4
    rate: float = 2e-3
    warmup: int = 150
    naming: float = 1.0
    widths: Widths = field(default_factory=Widths)

    def processor(self) -> LlavaProcessor:
        """Return a processor that expands ``<image>`` to an image token per patch."""
        vocabulary = tuple(dict.fromkeys((*VOCABULARY, *_PROMPT_WORDS)))
        # Generation continues at the right end, so padding belongs on the left.
        tokenizer = build_tokenizer(vocabulary, self.widths.longest, padding_side="left")
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        size = {"height": PIXELS, "width": PIXELS}
        images = CLIPImageProcessorPil(
            size={"shortest_edge": PIXELS}, crop_size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3
        )
        return LlavaProcessor(
            images,
            tokenizer,
            patch_size=CELL_PATCH,
            # The processor counts the class token as additional and drops it again.
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            image_token=IMAGE,
        )

    def model(self, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
        model = LlavaForConditionalGeneration(_config(self.widths, processor))
        # Make position matter as much as content.
        torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embedding.weight, std=0.5)
        smooth_patches(model.model.vision_tower.embeddings.patch_embedding)
        spread_rows(model, self.widths.row_spread)
        return model

    def batches(self, processor: LlavaProcessor) -> Iterator[Batch]:
        for scenes, words in self.drawn(len("turns")):
            yield pack(scenes, [_turns(scene, self.questions, words) for scene in scenes], processor)

    def loss(self, model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of captions and answers, plus the weighted naming loss of image tokens."""
        hidden, features = read(model, batch)
        hidden = hidden[:, :-1]
        targets, turns = batch.labels[:, 1:], batch.turns[:, 1:]
        # Averaged separately, or the many caption words would drown the few answer words.
        written = [
            cross_entropy(model.lm_head(hidden[kept]), targets[kept])
            for kept in ((targets != IGNORED) & chosen for chosen in (turns == CAPTIONED, turns != CAPTIONED))
        ]
        named = batch.names.loss(features, model.get_input_embeddings())
        return torch.stack(written).mean() + self.naming * named

    def quality(self, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> dict[str, float]:
        """Return the share of evaluation questions answered right."""
        return {"answers right": answer_accuracy(model, processor, PREFIX + ANSWER)}


def read(model: LlavaForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the language model's last hidden states ``[B, T, width]`` and the image tokens it read ``[9 B, width]``."""
    features = torch.cat(model.get_image_features(batch.pixels).pooler_output)
    embedded = model.get_input_embeddings()(batch.tokens)
    place = (batch.tokens == model.config.image_token_index).unsqueeze(-1)
    hidden = model.model.language_model(
        inputs_embeds=embedded.masked_scatter(place, features),
        attention_mask=batch.sees,
        position_ids=batch.places,
        use_cache=False,
    ).last_hidden_state
    return hidden, features


def pack(scenes: Sequence[Scene], turns: Sequence[Sequence[tuple[str, str]]], processor: LlavaProcessor) -> Batch:
    """Build one row per scene: the image once, then each of its turns (prompt, answer), independent of each other."""
    tokenizer = processor.tokenizer
    rows = [_row(asked, processor) for asked in turns]
    return Batch(
        pixels_of(scenes),
        padded([row.tokens for row in rows], tokenizer.pad_token_id),
        padded([row.labels for row in rows], IGNORED),
        padded([row.turns for row in rows], -1),
        padded([row.places for row in rows], 0),
        Names.of(scenes, tokenizer),
    )


@dataclass(frozen=True)
class _Row:
    """Row of a batch, before padding."""

    tokens: list[int]
    labels: list[int]
    turns: list[int]
    places: list[int]


def _row(asked: Sequence[tuple[str, str]], processor: LlavaProcessor) -> _Row:
    tokenizer = processor.tokenizer
    before = tokenizer(PREFIX).input_ids
    place = before.index(processor.image_token_id)
    tokens = [*before[:place], *[processor.image_token_id] * (CELLS * CELLS), *before[place + 1 :]]
    shared = len(tokens)
    labels, turns, places = [IGNORED] * shared, [0] * shared, list(range(shared))
    for turn, texts in enumerate(asked, 1):
        prompt, answer = (tokenizer(text, add_special_tokens=False).input_ids for text in texts)
        answer = [*answer, tokenizer.eos_token_id]
        tokens += prompt + answer
        labels += [IGNORED] * len(prompt) + answer
        turns += [turn] * len(prompt + answer)
        places += range(shared, shared + len(prompt + answer))
    return _Row(tokens, labels, turns, places)


def _turns(scene: Scene, count: int, words: Words) -> list[tuple[str, str]]:
    """Return a caption in the first wording, then ``count`` of the scene's questions."""
    choices = list(questions(scene))
    chosen = [choices.pop(words.below(len(choices))) for _ in range(min(count, len(choices)))]
    return [
        (CAPTION, perfect_caption(scene)),
        *((ANSWER.format(question=asked.question), asked.answer) for asked in chosen),
    ]


def _config(widths: Widths, processor: LlavaProcessor) -> LlavaConfig:
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=widths.width,
        intermediate_size=widths.inner * widths.width,
        num_hidden_layers=widths.vision,
        num_attention_heads=widths.heads,
        image_size=PIXELS,
        patch_size=CELL_PATCH,
        hidden_act="quick_gelu",
        initializer_range=0.04,
    )
    language = LlamaConfig(
        hidden_size=widths.width,
        intermediate_size=widths.gated * widths.width,
        num_hidden_layers=widths.language,
        num_attention_heads=widths.heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=widths.longest,
        initializer_range=widths.spread,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=processor.image_token_id,
        image_seq_length=CELLS * CELLS,
        # LLaVA-1.5 reads the last block but one; a tower this small needs every block.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
