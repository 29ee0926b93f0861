"""Calibration inputs: images with their prompts and right answers, as in teacher forcing.

Padding that a processor adds so that images of unequal size fit into one tensor would be calibrated on where a model has
no mask for it. Such images are run one by one, so the statistics do not depend on the batch size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmq_sweeps.models.decoding import decoder_inputs, is_encoder_decoder
from mmq_sweeps.models.loading import LoadedModel


def teacher_forced(
    loaded: LoadedModel, images: Sequence[Any], prompts: Sequence[str], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """The model's keyword arguments for one forward pass over all samples, or for one each.

    The answer follows the prompt; with an encoder-decoder, the encoder reads the prompt and the decoder the answer.
    """
    together = _inputs(loaded, images, prompts, answers)
    if len({image.size for image in images}) < 2:
        return [together]
    alone = [_inputs(loaded, *map(list, zip(sample))) for sample in zip(images, prompts, answers, strict=True)]
    return [together] if _is_joined(together, alone) else alone


def _inputs(
    loaded: LoadedModel, images: Sequence[Any], prompts: Sequence[str], answers: Sequence[str]
) -> dict[str, Any]:
    # Some processors take a plain list for the several images of one text.
    shown = [[image] for image in images]
    if not is_encoder_decoder(loaded.model):
        texts = [f"{prompt} {answer}".strip() for prompt, answer in zip(prompts, answers, strict=True)]
        return dict(loaded.processor(images=shown, text=texts, return_tensors="pt", padding=True))
    inputs = dict(loaded.processor(images=shown, text=list(prompts), return_tensors="pt", padding=True))
    told = loaded.processor.tokenizer(list(answers), return_tensors="pt", padding=True, padding_side="right")
    return inputs | decoder_inputs(loaded.model, told["input_ids"], told["attention_mask"])


def _is_joined(together: Mapping[str, Any], alone: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the images' tensors of a batch are those of its samples one behind the other, without padding."""
    return all(
        isinstance(whole, Tensor)
        and all(one[name].shape[1:] == whole.shape[1:] for one in alone)
        and sum(len(one[name]) for one in alone) == len(whole)
        for name, whole in together.items()
        if not _is_of_text(name, together)
    )


def _is_of_text(name: str, inputs: Mapping[str, Any]) -> bool:
    """Whether an input has a value a token of the text, whose padding has a mask."""
    own, text = inputs[name], inputs["decoder_input_ids" if name.startswith("decoder") else "input_ids"]
    return isinstance(own, Tensor) and not own.is_floating_point() and own.shape[:2] == text.shape
