"""Train an embedded model from scratch: ``python -m mmq_sweeps.data.scenes.train [MODEL] [--out DIR] [--seed N]``.

The default arguments reproduce the weights that ship with the package. Every step sees fresh scenes of the training
split.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from mmq_sweeps.data.scenes.network import Recipe
from mmq_sweeps.data.scenes.tiny_blip2 import Captioner
from mmq_sweeps.data.scenes.tiny_blip2_itm import Retriever
from mmq_sweeps.data.scenes.tiny_llava import Answerer
from mmq_sweeps.errors import COUNT, ConfigError, Range, check_ranges

RECIPES: dict[str, Recipe] = {
    "tiny_blip2": Captioner(),
    "tiny_blip2_itm": Retriever(),
    "tiny_llava": Answerer(),
}
STEPS = Range("1 or more", lambda value: value >= 1)


def rate_at(step: int, recipe: Recipe) -> float:
    """Return the learning rate: a linear warm-up, then a cosine to zero."""
    if step < recipe.warmup:
        return recipe.rate * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return recipe.rate * 0.5 * (1 + math.cos(math.pi * done))


def train(recipe: Recipe) -> tuple[PreTrainedModel, ProcessorMixin, list[float]]:
    """Train, and return the model in evaluation mode, its processor, and the loss of every step."""
    model, processor = recipe.build()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses: list[float] = []
    started = time.monotonic()
    for step, batch in enumerate(recipe.batches(processor)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe)
        loss = recipe.loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            minutes = (time.monotonic() - started) / 60
            _tell(f"step {step + 1}/{recipe.steps} loss {np.mean(losses[-100:]):.4f} {minutes:.1f} min")
    return model.eval(), processor, losses


def save(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write weights, tokenizer and processor to ``folder``, as ``from_pretrained`` reads them."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", choices=list(RECIPES), default="tiny_blip2", help="default: tiny_blip2")
    parser.add_argument("--out", type=Path, help="folder to write the checkpoint to; default: the model's name")
    parser.add_argument("--seed", type=int, help="default: that of the model in the package")
    parser.add_argument("--steps", type=int, help="default: those of the model in the package")
    chosen = parser.parse_args(arguments)
    given = {name: getattr(chosen, name) for name in ("seed", "steps") if getattr(chosen, name) is not None}
    try:
        check_ranges(given, {"seed": COUNT, "steps": STEPS})
    except ConfigError as error:
        parser.error(str(error))
    # More threads change the order of sums; with a single thread the weights depend only on the arguments.
    torch.set_num_threads(1)
    recipe = replace(RECIPES[chosen.model], **given)
    model, processor, _ = train(recipe)
    save(model, processor, chosen.out or Path(chosen.model))
    for name, share in recipe.quality(model, processor).items():
        _tell(f"{name} {share:.1%}")


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
