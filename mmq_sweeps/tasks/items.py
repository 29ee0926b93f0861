"""Items of a task that cannot be asked or scored, and ids that are not unique: found before work starts, and named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mmq_sweeps.data.images import ImageError

SHOWN = 3
# What preparing one item's inputs raises where its text or image does not serve. Lack of memory is none of them.
_UNSUITED = (ValueError, TypeError, LookupError, AttributeError)
AnItem = TypeVar("AnItem")
Inputs = TypeVar("Inputs")


def problem_of_references(references: Sequence[Any]) -> str | None:
    """Say which of an item's right texts is none; None if all are texts. Empty texts are texts."""
    if not references:
        return "it has no right text"
    wrong = next((text for text in references if not isinstance(text, str)), None)
    if wrong is None and all(isinstance(text, str) for text in references):
        return None
    return f"one of its right texts is {text_of(wrong)}, not text"


def text_of(value: Any) -> str:
    """``value`` as its JSON file has it, cut where it is long: ``null``, ``42``, ``["a"]``."""
    try:
        shown = json.dumps(value)
    except TypeError:
        shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def describe_bad(bad: Mapping[str, str], total: int) -> str:
    """``2 of 24 items cannot be used: 17: the question is null, not text, 18: the question is empty``."""
    named = ", ".join(f"{item}: {problem}" for item, problem in list(bad.items())[:SHOWN])
    return f"{len(bad)} of {total} items cannot be used: {named}" + (", ..." if len(bad) > SHOWN else "")


def bad_texts(bad: Mapping[str, str]) -> dict[str, Any]:
    """What a record says of items whose texts cannot be used: how many, and the first; empty if none."""
    return {"texts": len(bad), "first_texts": dict(list(bad.items())[:SHOWN])} if bad else {}


def left_out_for(notes: Mapping[str, Any]) -> str:
    """Why items were left out, by a record's ``notes``: ``2 images and 1 text cannot be used``."""
    missing = notes.get("missing", {})
    counts = [(missing.get("images", 0), "image"), (missing.get("texts", 0), "text")]
    named = [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
    return f"{' and '.join(named)} cannot be used"


def check_ids(split: str, named: Iterable[tuple[str, Any]]) -> None:
    """ValueError if two items of ``split`` have one id; ``named`` are ids with the examples that they come from."""
    first: dict[str, Any] = {}
    for identity, example in named:
        if identity in first:
            files = " and ".join(str(getattr(one, "path", one.id)) for one in (first[identity], example))
            raise ValueError(
                f"task.split={split}: two items have the id {identity!r}, of {files}; one would stand for both. Give "
                "each its own id"
            )
        first[identity] = example


def naming_the_item(prepare: Callable[[Sequence[AnItem]], Inputs]) -> Callable[[Sequence[AnItem]], Inputs]:
    """``prepare``, which makes inputs of a batch; a ValueError names the item of the batch that it cannot prepare."""

    def prepared(batch: Sequence[AnItem]) -> Inputs:
        try:
            return prepare(batch)
        except ImageError:
            raise  # It names its file.
        except _UNSUITED as error:
            for item in batch:
                try:
                    prepare([item])
                except _UNSUITED as cause:
                    identity = getattr(item, "id", item)
                    raise ValueError(f"item {identity!r} cannot be asked: {cause}") from error
            raise

    return prepared
