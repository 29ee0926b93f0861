"""Find and name items that cannot be asked or scored, and duplicate ids, before work starts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from mmq_sweeps.data.images import ImageError

SHOWN = 3
# Raised while preparing an item with an unsuitable text or image. Running out of memory is deliberately not among them.
_UNSUITED = (ValueError, TypeError, LookupError, AttributeError)
AnItem = TypeVar("AnItem")
Inputs = TypeVar("Inputs")


def problem_of_references(references: Sequence[Any]) -> str | None:
    """Return the problem of an item's right texts, or None if all are texts; empty texts are allowed."""
    if not references:
        return "it has no right text"
    if all(isinstance(text, str) for text in references):
        broken = next((text for text in references if not is_unicode(text)), None)
        return None if broken is None else f"one of its right texts is {text_of(broken)}, which holds half a character"
    wrong = next(text for text in references if not isinstance(text, str))
    return f"one of its right texts is {text_of(wrong)}, not text"


def problem_of_text(noun: str, text: Any) -> str | None:
    """Return the problem of a text to ask with, called ``noun``, or None."""
    if not isinstance(text, str):
        return f"{noun} is {text_of(text)}, not text"
    if not is_unicode(text):
        return f"{noun} is {text_of(text)}, which holds half a character"
    return f"{noun} is empty" if is_blank(text) else None


def is_unicode(text: str) -> bool:
    """Return whether no character of ``text`` is half a surrogate pair, which tokenizers and files refuse."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def is_blank(text: str) -> bool:
    """Return whether ``text`` shows nothing: blanks, and characters without a width such as U+200B."""
    return all(sign.isspace() or unicodedata.category(sign) in ("Cc", "Cf") for sign in text)


def text_of(value: Any) -> str:
    """Format ``value`` as in its JSON file, cut to 80 characters: ``null``, ``42``, ``["a"]``."""
    try:
        shown = json.dumps(value)
    except TypeError:
        shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def describe_bad(bad: Mapping[str, str], total: int) -> str:
    """Format as ``2 of 24 items cannot be used: 17: the question is null, not text, 18: the question is empty``."""
    named = ", ".join(f"{item}: {problem}" for item, problem in list(bad.items())[:SHOWN])
    return f"{len(bad)} of {total} items cannot be used: {named}" + (", ..." if len(bad) > SHOWN else "")


def bad_texts(bad: Mapping[str, str]) -> dict[str, Any]:
    """Return the record's entry on items with unusable texts: their number and the first few; empty if none."""
    return {"texts": len(bad), "first_texts": dict(list(bad.items())[:SHOWN])} if bad else {}


def left_out_for(notes: Mapping[str, Any]) -> str:
    """Return why items were left out, given a record's ``notes``: ``2 images and 1 text cannot be used``."""
    missing = notes.get("missing", {})
    counts = [(missing.get("images", 0), "image"), (missing.get("texts", 0), "text")]
    named = [f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count]
    return f"{' and '.join(named)} cannot be used"


def check_ids(split: str, named: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError if two items of ``split`` share an id; ``named`` pairs each id with its example."""
    first: dict[str, Any] = {}
    for identity, example in named:
        if identity in first:
            places = (getattr(one, "where", getattr(one, "path", one.id)) for one in (first[identity], example))
            files = " and ".join(map(str, places))
            raise ValueError(
                f"task.split={split}: two items have the id {identity!r}, of {files}; one would stand for both. Give "
                "each its own id"
            )
        first[identity] = example


def naming_the_item(prepare: Callable[[Sequence[AnItem]], Inputs]) -> Callable[[Sequence[AnItem]], Inputs]:
    """Wrap ``prepare``, which makes inputs of a batch, to raise a ValueError naming the item that fails."""

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
