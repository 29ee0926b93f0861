"""The embedded BLIP-2: its shape, its word-level tokenizer and its processor, as Hugging Face objects.

Needs torch and transformers; nothing else in this package but ``train`` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
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

from mmq_sweeps.data.scenes.scene import PIXELS
from mmq_sweeps.data.scenes.words import VOCABULARY

# A scene is mostly dark ground; these put the ground near zero.
MEAN, DEVIATION = 0.11, 0.25
PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"


@dataclass(frozen=True)
class Widths:
    """Width and number of blocks of the three parts, and the deviation ``spread`` of fresh weights.

    ``inner`` is an MLP's width as a multiple of the part's; ``longest`` counts the tokens of a text; ``row_spread`` is
    the deviation of the logarithm of the rows' sizes in fresh linears.
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


def build_processor(widths: Widths) -> Blip2Processor:
    """A processor that lower-cases, splits at spaces and marks, and puts ``queries`` image tokens before the text."""
    words = {word: index for index, word in enumerate((PAD, BOS, EOS, UNKNOWN, *VOCABULARY))}
    backend = Tokenizer(models.WordLevel(words, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words[BOS])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        # Generation continues the right end of every row, so padding belongs on the left.
        padding_side="left",
        model_max_length=widths.longest,
    )
    size = {"height": PIXELS, "width": PIXELS}
    images = BlipImageProcessorPil(size=size, image_mean=[MEAN] * 3, image_std=[DEVIATION] * 3)
    return Blip2Processor(images, tokenizer, num_query_tokens=widths.queries)


def build_model(widths: Widths, processor: Blip2Processor, seed: int) -> Blip2ForConditionalGeneration:
    """A model with fresh weights; equal seeds give equal weights."""
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(_config(widths, processor.tokenizer))
    # Blip2 starts its queries at zero, where all of them stay alike; a small spread lets each find its own work.
    torch.nn.init.normal_(model.query_tokens, std=0.5)
    # Patches differ by their place as much as by what they show, or shapes that span patches are learned late.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.5)
    _spread_rows(model, widths.row_spread)
    return model


def _spread_rows(model: Blip2ForConditionalGeneration, spread: float) -> None:
    """Start the rows of the blocks' linears log-normally spread in size, at a root mean square of one.

    Large models have output channels many times larger than others; so small a model does not grow them by itself.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and (".layers." in name or ".layer." in name):
            factors = torch.exp(spread * torch.randn(module.out_features, 1))
            module.weight.data *= factors / factors.square().mean().sqrt()


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
