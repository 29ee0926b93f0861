"""Time an axis of vision weights: GPTQ of one block at four bit-widths for seven weights, against one weight.

    python benchmarks/weighted.py [--json] [--width 1024] [--samples 128] [--pairs 3] [--folder FOLDER]

The block is one of a LLaVA's language model with random weights; samples have LLaVA-1.5's 576 vision tokens and 48 tokens of
text. Both runs calibrate and quantize as a sweep does, into a store of their own, from the model's run over the samples to the
stored units. The seven weights share that run and the sums of both kinds of tokens; each adds its factorizations, which are
timed alone, and its solutions. They are to take at most 2.5 times one weight (all tokens alike), plus the factorizations of
the other six.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from benchmarks.against import seconds
from benchmarks.timing import progress
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.methods.factor import factorize
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization import statistics as stored_statistics
from mmq_sweeps.quantization.quantize import quantize_units
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.store.store import Store

BITS = (2, 3, 4, 8)
WEIGHTS = (None, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
VISION, TEXT, BATCH, IMAGE_TOKEN = 576, 48, 4, 5
LIMIT = 2.5
LANGUAGE = {
    "module": ["model.language_model"],
    "blocks": ["layers"],
    "attention": ["self_attn"],
    "mlp": ["mlp"],
    "masked": True,
    "vision_tokens": "image_token_id",
}


def model_of(width: int) -> LoadedModel:
    """Return a LLaVA of one block whose tower, tiny, gives as many tokens as LLaVA-1.5's."""
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    # Of Llama: the middle of the MLP is 11/4 as wide, rounded to whole heads.
    text = {"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": 1, "vocab_size": 64}
    config = transformers.LlavaConfig(
        vision_config={**tower, "image_size": 336, "patch_size": 14},
        text_config={**text, "num_attention_heads": width // 128, "num_key_value_heads": width // 128},
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    )
    with quiet_libraries():
        model = transformers.LlavaForConditionalGeneration(config)
    return LoadedModel(model.eval().requires_grad_(False), None, {})


def batches_of(samples: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for start in range(0, samples, BATCH):
        count = min(BATCH, samples - start)
        tokens = torch.randint(6, 64, (count, VISION + TEXT), generator=generator)
        tokens[:, :VISION] = IMAGE_TOKEN
        pixels = torch.randn(count, 3, 336, 336, generator=generator)
        yield {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "pixel_values": pixels}


def requests_of(part: Part, weights: Sequence[float | None]) -> list[Request]:
    return [
        Request(
            unit, GPTQ(vision_weight=weight), GPTQ().format(bits), f"{unit.name} {weight} {bits}", {"samples": 1},
            statistics=f"{unit.name} all", kinds=f"{unit.name} kinds",
        )
        for unit in part.units
        for weight in weights
        for bits in BITS
    ]  # fmt: skip


def quantized(loaded: LoadedModel, part: Part, samples: int, weights: Sequence[float | None], folder: str) -> Store:
    store = Store.open(Path(folder))
    failed = quantize_units(requests_of(part, weights), loaded, {part.name: part}, lambda _: batches_of(samples), store)
    if failed:
        raise RuntimeError(str(next(iter(failed.values()))))
    return store


def factorizing(part: Part, store: Store) -> float:
    """Return the seconds that the factorizations of one weight take."""
    grams = [
        shared.stats.gram for unit in part.units for shared in stored_statistics.read(store, f"{unit.name} all") or []
    ]
    return seconds(lambda: [factorize(gram) for gram in grams])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    loaded = model_of(options.width)
    part = find_parts(loaded.model, {"parts": {"language": LANGUAGE}})["language"]
    found: list[tuple[float, float, float]] = []

    def run(weights: Sequence[float | None]) -> tuple[float, float]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            taken = seconds(lambda: quantized(loaded, part, options.samples, weights, folder))
            return taken, factorizing(part, Store.open(Path(folder)))

    for pair in range(options.pairs):
        order = [WEIGHTS[:1], WEIGHTS] if pair % 2 else [WEIGHTS, WEIGHTS[:1]]
        taken = {len(weights): run(weights) for weights in order}
        found.append((taken[1][0], taken[len(WEIGHTS)][0], taken[1][1]))
        progress("pair {} of {}: one {:.1f} s, seven {:.1f} s, factorizations {:.2f} s".format(
            pair + 1, options.pairs, *found[-1]
        ))  # fmt: skip
    more = len(WEIGHTS) - 1
    ratios = [(seven - more * factors) / one for one, seven, factors in found]
    return {
        "width": options.width,
        "tokens": options.samples * (VISION + TEXT),
        "one_seconds": statistics.median(one for one, _, _ in found),
        "seven_seconds": statistics.median(seven for _, seven, _ in found),
        "factorization_seconds": statistics.median(factors for _, _, factors in found),
        "ratios": ratios,
        "ratio": statistics.median(ratios),
        "limit": LIMIT,
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield f"a block of width {found['width']}, {found['tokens']} tokens, {', '.join(map(str, BITS))} bits by GPTQ"
    yield f"one weight     {found['one_seconds']:8.1f} s, of which {found['factorization_seconds']:.2f} s factorizations"
    yield f"seven weights  {found['seven_seconds']:8.1f} s"
    yield (f"without the factorizations of six, {found['ratio']:.2f} times one weight (to be at most {found['limit']})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--width", type=int, default=1024, help="of the block; a multiple of 128")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", help="where the stores lie while they are written")
    options = parser.parse_args()
    found = measure(options)
    sys.stdout.write(json.dumps(found, indent=1) + "\n" if options.json else "\n".join(lines(found)) + "\n")


if __name__ == "__main__":
    main()
