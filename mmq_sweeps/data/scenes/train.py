"""Train the embedded BLIP-2 from scratch: ``python -m mmq_sweeps.data.scenes.train [--out DIR] [--seed N]``.

The weights that come with the package are what the default arguments make. Every step sees fresh scenes of the training
split, each with one caption and some with a question.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from mmq_sweeps.data.scenes.dataset import Scenes
from mmq_sweeps.data.scenes.network import DEVIATION, IMAGE, MEAN, Widths, build_model, build_processor
from mmq_sweeps.data.scenes.render import render_array
from mmq_sweeps.data.scenes.scene import Scene, Words
from mmq_sweeps.data.scenes.words import questions, references

PROMPT = "question : {} short answer :"
# What the loss leaves out: image tokens, prompts and padding.
IGNORED = -100
# One image in so many also gets a question; answers are learned from few, and a row of question costs one of caption.
QUESTIONED = 4


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, besides the code and the number of threads."""

    seed: int = 0
    steps: int = 5500
    batch: int = 32
    rate: float = 1.5e-3
    warmup: int = 200
    widths: Widths = field(default_factory=Widths)


@dataclass(frozen=True)
class Batch:
    """Pixels ``[B, 3, 48, 48]`` and texts ``[B + Q, T]``: captions of the images, then questions on the first ``Q``."""

    pixels: Tensor
    tokens: Tensor
    mask: Tensor
    labels: Tensor


def batches(recipe: Recipe, processor: Blip2Processor) -> Iterator[Batch]:
    """The batches of training in order; batch ``n`` depends on the recipe's seed, its size and ``n`` alone."""
    data = Scenes("train", recipe.steps * recipe.batch, recipe.seed)
    ids = processor.tokenizer.get_vocab()
    for step in range(recipe.steps):
        scenes = [data.scene(step * recipe.batch + i) for i in range(recipe.batch)]
        pixels = torch.from_numpy(np.stack([render_array(scene) for scene in scenes]))
        words = Words(recipe.seed, len("texts"), step)
        texts = [_caption(scene, words) for scene in scenes]
        texts += [_question(scene, words) for scene in scenes[: recipe.batch // QUESTIONED]]
        # The image processor's own arithmetic: rescale to [0, 1], then normalise.
        yield Batch(
            pixels.permute(0, 3, 1, 2).float().div(255).sub(MEAN).div(DEVIATION),
            *_rows(texts, ids, processor.num_query_tokens),
        )


def _caption(scene: Scene, words: Words) -> tuple[str, str]:
    """The first wording in half of all cases: what greedy decoding then writes."""
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
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [ids["<pad>"]] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return tokens, mask, torch.tensor([row + [IGNORED] * (longest - len(row)) for row in labels])


def loss_of(model: Blip2ForConditionalGeneration, batch: Batch) -> Tensor:
    """Mean cross-entropy over the words of captions and answers; each image is seen by the vision part once."""
    features = model.get_image_features(batch.pixels).pooler_output
    features = torch.cat([features, features[: len(batch.tokens) - len(features)]])
    embedded = model.get_input_embeddings()(batch.tokens)
    place = (batch.tokens == model.config.image_token_index).unsqueeze(-1)
    embedded = embedded.masked_scatter(place, features)
    hidden = model.language_model.model(inputs_embeds=embedded, attention_mask=batch.mask).last_hidden_state[:, :-1]
    targets = batch.labels[:, 1:]
    kept = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.language_model.lm_head(hidden[kept]), targets[kept])


def rate_at(step: int, recipe: Recipe) -> float:
    """The learning rate: a linear warm-up, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * done))


def train(recipe: Recipe) -> tuple[Blip2ForConditionalGeneration, Blip2Processor, list[float]]:
    """The trained model in evaluation mode, its processor, and the loss of every step."""
    processor = build_processor(recipe.widths)
    model = build_model(recipe.widths, processor, recipe.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(batches(recipe, processor)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            sys.stdout.write(f"step {step + 1}/{recipe.steps} loss {np.mean(losses[-100:]):.4f} {minutes:.1f} min\n")
            sys.stdout.flush()
    return model.eval(), processor, losses


def save(model: Blip2ForConditionalGeneration, processor: Blip2Processor, folder: Path) -> None:
    """Write weights, tokenizer and processor to ``folder``, as ``from_pretrained`` reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("tiny_blip2"), help="folder to write the checkpoint to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    chosen = parser.parse_args(arguments)
    # Sums are taken in another order with more threads; with one, the weights depend on the arguments alone.
    torch.set_num_threads(1)
    model, processor, _ = train(Recipe(seed=chosen.seed, steps=chosen.steps))
    save(model, processor, chosen.out)


if __name__ == "__main__":
    main()
