"""Choose some of a task's items: those from ``start`` to before ``stop`` of an order drawn by ``seed``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

AnItem = TypeVar("AnItem")


def drawn(items: Sequence[AnItem], sample: Mapping[str, Any] | None, split: str) -> list[AnItem]:
    """Return the items of ``sample`` (``config/sample.py``) in the drawn order; all, in their own, with None.

    The order depends on the seed and the number of items alone, so ranges that do not overlap have no item in common.

    Raises ValueError if there are fewer items than the sample ends at.
    """
    if sample is None:
        return list(items)
    if sample["stop"] > len(items):
        raise ValueError(
            f"task.sample.stop={sample['stop']}: {split} has {len(items)} items to choose from; choose at most "
            f"{len(items)}, or a larger task.limit"
        )
    order = np.random.Generator(np.random.PCG64(sample["seed"])).permutation(len(items))
    return [items[place] for place in order[sample.get("start", 0) : sample["stop"]]]
