"""BLIP-2's image-text retriever (arXiv 2301.12597), split so that a set of pairs costs no module twice.

``Blip2ForImageTextRetrieval`` reruns its vision part for every pair. Here each image and each text is encoded once, and
only the Q-Former sees pairs. The scores are those of the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.plain_text import plain_text

# Index of "they belong together" in the matching head's two outputs.
MATCHES = 1


@dataclass(frozen=True)
class Texts:
    """Tokens ``[M, T]``, padded on the right, and their mask ``[M, T]``."""

    tokens: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> Texts:
        """Return the texts of ``rows``, no wider than the longest of them."""
        mask = self.mask[rows]
        length = int(mask.sum(dim=1).max())
        return Texts(self.tokens[rows, :length], mask[:, :length])


@dataclass(frozen=True)
class Retriever:
    """Encoder and scorer around ``loaded``, a ``Blip2ForImageTextRetrieval``; texts are cut after ``text_length`` tokens."""

    loaded: LoadedModel
    text_length: int

    def pixels(self, images: Sequence[Any]) -> Tensor:
        """Return ``[B, 3, H, W]`` as the checkpoint's processor prepares them."""
        pixels: Tensor = self.loaded.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return pixels

    def tokenized(self, texts: Sequence[str]) -> Texts:
        """Tokenize all ``texts``, on the CPU; a special token's spelling in them is plain text."""
        found = self.loaded.processor.tokenizer(
            [plain_text(text, self.loaded.processor) for text in texts],
            padding=True,
            padding_side="right",  # the first token stands for its text
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        )
        return Texts(found["input_ids"], found["attention_mask"])

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vision part's output ``[B, P, W]`` and each query's unit-length feature ``[B, Q, D]``, in float32."""
        model: Any = self.loaded.model
        seen = model.vision_model(pixel_values=pixels.to(self.loaded.device))[0]
        queries = model.query_tokens.expand(len(seen), -1, -1)
        looks = model.qformer(query_embeds=queries, encoder_hidden_states=seen)[0]
        return seen, self._feature(model.vision_projection, looks)

    def encode_texts(self, texts: Texts) -> Tensor:
        """Return unit-length features ``[M, D]``, in float32."""
        model: Any = self.loaded.model
        texts = self._on_device(texts)
        words = model.qformer(
            query_embeds=model.embeddings(input_ids=texts.tokens), query_length=0, attention_mask=texts.mask
        )[0]
        return self._feature(model.text_projection, words[:, 0])

    def match(self, seen: Tensor, texts: Texts) -> Tensor:
        """Return how well each text ``[M]`` matches an image's vision output ``[P, W]``: the queries' mean logit."""
        model: Any = self.loaded.model
        texts = self._on_device(texts)
        queries = model.query_tokens.expand(len(texts), -1, -1)
        count = queries.shape[1]
        together = model.qformer(
            query_embeds=model.embeddings(input_ids=texts.tokens, query_embeds=queries),
            query_length=count,
            attention_mask=torch.cat([texts.mask.new_ones(len(texts), count), texts.mask], dim=1),
            # One image for all texts: its keys and values are computed once and broadcast.
            encoder_hidden_states=seen[None],
        )[0]
        logits: Tensor = model.itm_head(together[:, :count].to(model.itm_head.weight.dtype)).mean(dim=1)
        return logits[:, MATCHES].float()

    def forward_inputs(self, pixels: Tensor, texts: Texts, matching: bool) -> dict[str, Any]:
        """Return arguments of the model's own forward pass over pairs: for the matching head, or for the two features."""
        config: Any = self.loaded.model.config
        tokens, mask = texts.tokens, texts.mask
        if config.image_token_index is not None:
            # Image placeholders before the text, which the forward pass cuts off again.
            tokens = torch.cat(
                [tokens.new_full((len(texts), config.num_query_tokens), config.image_token_index), tokens], 1
            )
            mask = torch.cat([mask.new_ones(len(texts), config.num_query_tokens), mask], 1)
        return {
            "pixel_values": pixels,
            "input_ids": tokens,
            "attention_mask": mask,
            "use_image_text_matching_head": matching,
        }

    def _on_device(self, texts: Texts) -> Texts:
        return Texts(texts.tokens.to(self.loaded.device), texts.mask.to(self.loaded.device))

    @staticmethod
    def _feature(projection: Any, hidden: Tensor) -> Tensor:
        return normalize(projection(hidden.to(projection.weight.dtype)).float(), dim=-1)
