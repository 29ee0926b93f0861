"""Check a loaded model on real prepared inputs before its first cell: does it see its images, and is its output finite?

With transformers 5.23 a prompt with too few image placeholders raises nothing (huggingface/transformers#34223): the
image vanishes, or its features move to the next row of a batch, and every later result is that of a blind model. So a
task passes in how it prepares and runs its items, and this module runs a few: an item alone, the same text with another
image, and two items in a batch. Each problem is a sentence with its cause and remedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from mmq_sweeps.models.model_check.answers import check_batch, check_images, check_places
from mmq_sweeps.models.model_check.asking import Asked, Asking, Trial
from mmq_sweeps.models.model_check.modules import Filled, called
from mmq_sweeps.models.model_check.pictures import check_pictures
from mmq_sweeps.models.model_check.texts import check_prompts, check_texts, check_tokens

__all__ = ["Asked", "Asking", "Filled", "called", "problems", "problems_of_places"]

OF_IMAGES = (check_pictures, check_tokens, check_places, check_images, check_batch)
# Of a task without images.
OF_TEXTS = (check_places, check_batch)


def problems(
    asking: Asking, first: Asked, second: Asked, around: str, texts: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Yield problems in how the model answers ``first`` and ``second``, whose images differ if the data has two.

    ``texts`` are the prompts of all items, ``(id, text)``; ``around`` is the prompt without the data's text. Checks run
    in order from inputs to answers and end at the first that fails: a model that receives no image cannot tell two
    apart.
    """
    processor = asking.loaded.processor
    if absent := [name for name in ("tokenizer", "image_processor") if getattr(processor, name, None) is None]:
        yield (
            f"{asking.checkpoint}: its inputs are prepared by a {type(processor).__name__} without {' and '.join(absent)}; put "
            "the model's processor_config.json (or preprocessor_config.json) beside its weights"
        )
        return
    trial = Trial(asking, first, second)
    checks: list[Callable[[], Iterable[str]]] = [
        lambda: check_texts(asking, first.images, around, texts),
        lambda: check_prompts(asking, [replace(first, text=around), first, second]) if asking.prompted else (),
        *(partial(check, trial) for check in (OF_IMAGES if first.images else OF_TEXTS)),
    ]
    for check in checks:
        found = list(check())
        yield from found
        if found:
            return


def problems_of_places(asking: Asking, asked: Asked) -> Iterator[str]:
    """Yield problems of an item with another number of images: it cannot be prepared, or an image has no placeholder."""
    yield from check_places(Trial(asking, asked, asked))
