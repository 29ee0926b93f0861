"""Group items by a key."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
AnItem = TypeVar("AnItem")


def grouped(items: Iterable[AnItem], key: Callable[[AnItem], Key]) -> dict[Key, list[AnItem]]:
    """Return the items of each key, in their order; a key stands where it first occurs."""
    found: dict[Key, list[AnItem]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found
