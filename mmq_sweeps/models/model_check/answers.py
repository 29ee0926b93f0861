"""Check a model's answers: finite, dependent on the image, and the same in a batch as alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmq_sweeps.errors import some_of
from mmq_sweeps.models.logits import are_answers
from mmq_sweeps.models.model_check.asking import Asked, Asking, Trial, answered, short
from mmq_sweeps.models.model_check.modules import Misplaced, first_not_finite, weights_not_finite

# Relative distances of answers: at least between two images, and at most between an item alone and in a batch.
ANSWERS_ALIKE = 1e-4
BATCH_CHANGES = {"float32": 1e-2, "float16": 0.1, "bfloat16": 0.2}


def check_places(trial: Trial) -> Iterator[str]:
    """Check that every image feature has a placeholder and every answer is finite."""
    for asked in (trial.first, trial.second):
        try:
            answer, _ = trial.answer(asked)
        except Misplaced as error:
            yield misplaced(
                trial.asking, asked, f"{error.places} image placeholders", f"{error.features} image features"
            )
            return
        if not bool(are_answers(answer).all()):
            yield _not_finite(trial.asking, trial.inputs(asked), asked.id)
            return


def check_images(trial: Trial) -> Iterator[str]:
    """Check that another image changes the answer to the same text."""
    answer, _ = trial.answer(trial.first)
    if all(_apart(trial.asking, answer, trial.answer(other)[0]) < ANSWERS_ALIKE for other in trial.others):
        yield (
            f"{trial.asking.checkpoint}: the model answers {short(trial.first.text)} about {trial.first.id} and "
            f"{trial.second.id} alike, so it does not see its images; look whether the processor and the prompt hand them "
            "on, and whether the weights between vision and language are those of this checkpoint"
        )


def check_batch(trial: Trial) -> Iterator[str]:
    """Check that batched items, the shorter padded, see their own image and are answered as alone."""
    asking = trial.asking
    if not asking.batched:
        return
    both = (trial.first, trial.second)
    together, filled = answered(asking, asking.prepare(both))
    alone = [trial.answer(asked) for asked in both]
    places = [sum(own.places) for _, own in alone]
    if asking.prompted and filled.places and places != filled.places:
        yield (
            f"{asking.checkpoint}: in a batch {both[0].id} and {both[1].id} hold {_listed(filled.places)} image "
            f"placeholders, alone {_listed(places)}, so features go to another row; set task.batch_size=1, or mend the "
            "checkpoint's processor_config.json"
        )
        return
    for asked, (own, _), row in zip(both, alone, together, strict=True):
        changed = _apart(asking, own, row[None])
        if not changed <= BATCH_CHANGES[asking.loaded.config["dtype"]]:
            yield (
                f"{asking.checkpoint}: in a batch {asked.id} is answered otherwise than alone (its scores change by "
                f"{changed:.2g} of their size), as if padding were text; set task.batch_size=1, or mend pad_token and "
                "padding_side in the checkpoint's tokenizer_config.json"
            )
            return


def misplaced(asking: Asking, asked: Asked, places: str, features: str) -> str:
    processor = asking.loaded.processor
    token = getattr(processor, "image_token", None)
    token = getattr(token, "content", token) or "the image token"
    return (
        f"{asking.checkpoint}: the input of {asked.id} (task.prompt={short(asked.text)}) holds {places}, and the model has "
        f"{features} to put there, so the image would be lost; give the prompt {token} as often as its "
        f"{type(processor).__name__} expects it, and mend num_query_tokens, patch_size or image_seq_length in the "
        "checkpoint's processor_config.json"
    )


def _not_finite(asking: Asking, inputs: Mapping[str, Any], item: str) -> str:
    loaded = asking.loaded
    dtype = loaded.config["dtype"]
    if bad := list(weights_not_finite(loaded.model)):
        remedy = (
            "choose model.dtype=float32 or bfloat16 if they are too large for float16, or get the checkpoint again"
            if dtype == "float16"
            else "get the checkpoint again"
        )
        return f"{asking.checkpoint}: {len(bad)} weights have values that are not finite in {dtype} ({some_of(bad)}); {remedy}"
    where = first_not_finite(loaded.model, lambda: answered(asking, inputs))
    remedy = "choose model.dtype=float32 or bfloat16" if dtype == "float16" else "choose model.dtype=float32"
    if dtype == "float32":
        remedy = "the checkpoint does not work with this release of transformers, or its config.json is not its own"
    return (
        f"model.dtype={dtype}: at full precision the output of {where} is not finite for {item}, so every answer would be "
        f"empty; {remedy}"
    )


def _apart(asking: Asking, one: Tensor, other: Tensor) -> float:
    """Return the distance of two answers ``[1, K]``, relative to the first's norm or, for logits, its spread.

    Logits have no origin, so only their spread measures their size.
    """
    both = one.isfinite() & other.isfinite()
    one, other = one[both].double(), other[both].double()
    size = (one - one.mean()).norm().clamp_min(1e-12) if asking.prompted else one.norm().clamp_min(1.0)
    return float((one - other).norm() / size)


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
