"""Check that the image processor preserves the contrast of pictures, and that different images differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from PIL import Image, ImageStat
from torch import Tensor, nn

from mmq_sweeps.models.model_check.asking import Trial

# Bounds on the gain of contrast by preprocessing; normalising by a standard deviation of 0.25 gains 4.
LEAST_CONTRAST, MOST_CONTRAST = 0.05, 50.0
# Least share of the prepared values that depends on the image; a picture padded to a square may fill a small part.
LEAST_AREA = 0.01


def check_pictures(trial: Trial) -> Iterator[str]:
    """Check that the image processor preserves contrast and prepares different images differently."""
    asking, first = trial.asking, trial.first
    processor = type(asking.loaded.processor.image_processor).__name__
    where = "in the checkpoint's processor_config.json or preprocessor_config.json"
    remedy = f"mend rescale_factor, image_mean and image_std {where}"
    spread = getattr(asking.loaded.processor.image_processor, "image_std", None) or ()
    spread = list(spread) if isinstance(spread, (list, tuple)) else [spread]
    if any(float(value) <= 0 for value in spread):
        yield f"{asking.checkpoint}: its {processor} divides pixels by image_std={spread}, which turns pictures round; {remedy}"
        return
    pixels = {asked: _pixels(trial.inputs(asked)) for asked in (first, *trial.others)}
    if not pixels[first]:
        yield f"{asking.checkpoint}: its processor prepares no pixel values for {first.id}, so the model sees no image"
        return
    if all(_same(pixels[first], pixels[other]) for other in trial.others):
        yield f"{asking.checkpoint}: its {processor} prepares {first.id} and {trial.second.id} alike; {remedy}"
        return
    if (area := _area(pixels[first], pixels[trial.others[-1]])) < LEAST_AREA:
        yield (
            f"{asking.checkpoint}: only {area:.2%} of the pixel values that its {processor} prepares depend on {first.id}, so "
            f"the model sees next to nothing; mend size and crop_size {where}"
        )
        return
    if wrong := _other_size(asking.loaded.model, pixels[first]):
        yield f"{asking.checkpoint}: its {processor} prepares images of {wrong}; mend size {where}"
        return
    richest = max(pixels, key=lambda asked: _contrast(asked.image))
    before = _contrast(richest.image)
    after = max(float(value.float().std()) for value in pixels[richest].values())
    if before and not LEAST_CONTRAST < after / before < MOST_CONTRAST:
        seen = "next to nothing" if after < before else "extremes only"
        yield (
            f"{asking.checkpoint}: its {processor} turns {richest.id}, whose values have a standard deviation of {before:.2g} "
            f"of their range, into pixel values with one of {after:.2g}, so the model sees {seen}; {remedy}"
        )


def _pixels(inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the prepared images: every floating tensor but masks, because families name them differently."""
    return {
        name: value
        for name, value in inputs.items()
        if isinstance(value, Tensor) and value.is_floating_point() and "mask" not in name
    }


def _same(some: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return all(name in others and torch.equal(value, others[name]) for name, value in some.items())


def _area(some: Mapping[str, Tensor], inverted: Mapping[str, Tensor]) -> float:
    """Return the largest share of values that differ between the pixels of an image and of the same image inverted."""
    shares = [
        float((value != inverted[name]).float().mean())
        for name, value in some.items()
        if name in inverted and value.shape == inverted[name].shape
    ]
    return max(shares, default=1.0)


def _other_size(model: nn.Module, pixels: Mapping[str, Tensor]) -> str | None:
    """Describe a mismatch of image and model size that would silently crop the position table, as BLIP's is; else None."""
    for module in model.modules():
        table, size = getattr(module, "position_embedding", None), getattr(module, "image_size", None)
        if isinstance(table, nn.Parameter) and isinstance(size, int):
            shapes = {tuple(value.shape[-2:]) for value in pixels.values() if value.dim() == 4} - {(size, size)}
            return next((f"{height} x {width} pixels for a model of {size} x {size}" for height, width in shapes), None)
    return None


def _contrast(image: Image.Image) -> float:
    """Return the standard deviation of an image's values as a share of their possible range."""
    return max(ImageStat.Stat(image.convert("RGB")).stddev) / 255
