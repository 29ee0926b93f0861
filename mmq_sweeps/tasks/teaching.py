"""Calibration inputs: images with their prompts and right answers, as in teacher forcing.

To fit images of unequal size into one tensor, a processor may pad them, and a model without a mask for the padding
would be calibrated on it. Such images run one by one, so the statistics do not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmq_sweeps.models.decoding import decoder_inputs, is_encoder_decoder
from mmq_sweeps.models.loading import LoadedModel


def teacher_forced(
    loaded: LoadedModel, images: Sequence[Sequence[Any]], prompts: Sequence[str], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the model's keyword arguments: for a forward pass over all samples, or for a pass per sample.

    ``images`` has as many for each sample. The answer follows the prompt; with an encoder-decoder, the encoder reads the
    prompt and the decoder the answer.
    """
    together = _inputs(loaded, images, prompts, answers)
    if len({image.size for own in images for image in own}) < 2:
        return [together]
    alone = [
        _inputs(loaded, [own], [prompt], [answer]) for own, prompt, answer in zip(images, prompts, answers, strict=True)
    ]
    return [together] if _is_joined(together, alone) else alone


def _inputs(
    loaded: LoadedModel, images: Sequence[Sequence[Any]], prompts: Sequence[str], answers: Sequence[str]
) -> dict[str, Any]:
    shown = nested(images)
    if not is_encoder_decoder(loaded.model):
        texts = [f"{prompt} {answer}".strip() for prompt, answer in zip(prompts, answers, strict=True)]
        return dict(loaded.processor(images=shown, text=texts, return_tensors="pt", padding=True))
    inputs = dict(loaded.processor(images=shown, text=list(prompts), return_tensors="pt", padding=True))
    told = loaded.processor.tokenizer(list(answers), return_tensors="pt", padding=True, padding_side="right")
    return inputs | decoder_inputs(loaded.model, told["input_ids"], told["attention_mask"])


def nested(images: Sequence[Sequence[Any]]) -> list[list[Any]] | None:
    """Return a processor's ``images`` for rows with as many each; None if they have none."""
    # Some processors read a flat list as several images of a single text.
    return [list(own) for own in images] if any(images) else None


def _is_joined(together: Mapping[str, Any], alone: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the batch's image tensors are its samples' concatenated, without padding."""
    return all(
        isinstance(whole, Tensor)
        and all(one[name].shape[1:] == whole.shape[1:] for one in alone)
        and sum(len(one[name]) for one in alone) == len(whole)
        for name, whole in together.items()
        if not _is_of_text(name, together)
    )


def _is_of_text(name: str, inputs: Mapping[str, Any]) -> bool:
    """Return whether an input holds a value per text token; padding of such inputs is masked."""
    own, text = inputs[name], inputs["decoder_input_ids" if name.startswith("decoder") else "input_ids"]
    return isinstance(own, Tensor) and not own.is_floating_point() and own.shape[:2] == text.shape
