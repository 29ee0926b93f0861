"""``--loads-in``: restrict cells to those whose export a loader takes quantized (``mmq_sweeps/identity/loads_in.py``)."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmq_sweeps.identity.loads_in import CHOICES, DEQUANTIZED


def add_argument(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--loads-in",
        choices=CHOICES,
        help=f"only cells that this takes with their weights quantized; {DEQUANTIZED}: cells that none takes so. Full "
        "precision stays, to compare with",
    )


def kept_rows(rows: Sequence[dict[str, Any]], loader: str) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a sweep's table that ``loader`` takes, and a sentence on the others; see ``kept``."""
    finished = [row["status"] == "done" and row["method"] != "none" for row in rows]
    mask, told = kept(loader, finished, [row.get("loads_in") for row in rows])
    return [row for row, stays in zip(rows, mask, strict=True) if stays], told


def kept(loader: str, finished: Sequence[bool], loaders: Sequence[Sequence[str] | None]) -> tuple[list[bool], str]:
    """Return which cells stay, and a sentence on those left out.

    ``finished`` marks the quantized cells with a result, which are judged by their ``loaders``, None if unknown; all others
    stay. Raises ValueError if no quantized cell stays.
    """
    judged = [own for done, own in zip(finished, loaders, strict=True) if done]
    stays = sum(loader in own for own in judged if own)
    unknown = sum(not own for own in judged)
    told = f"; unknown for {unknown} (of an earlier version or other software), left out" if unknown else ""
    if judged and not stays:
        counts = Counter(name for own in judged for name in own or ())
        others = f" ({', '.join(f'{counts[name]} {name}' for name in CHOICES if counts[name])})" if counts else ""
        raise ValueError(f"--loads-in {loader}: fits none of {len(judged)} quantized cells{others}{told}")
    mask = [not done or loader in (own or ()) for done, own in zip(finished, loaders, strict=True)]
    return mask, f"--loads-in {loader}: {stays} of {len(judged)} quantized cells{told}"
