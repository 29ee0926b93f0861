"""Helpers of the solver benchmarks: report sections, paired timings, and layers to solve."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.against import seconds


@dataclass(frozen=True)
class Section:
    """A section of the report: ``measure(pairs)`` returns JSON-compatible figures, ``lines`` formats them as text."""

    measure: Callable[[int], dict[str, Any]]
    lines: Callable[[dict[str, Any]], Iterable[str]]


def progress(what: str) -> None:
    """Print the current step to stderr with the time of day, since some sections take minutes."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {what}\n")
    sys.stderr.flush()


def forget_peak() -> None:
    """Reset Linux's peak memory counter of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> float:
    """Return a field of this process's status on Linux, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def in_pairs(ours: Callable[[], object], theirs: Callable[[], object], pairs: int) -> dict[str, Any]:
    """Time both functions in pairs of alternating order.

    Returns median seconds of both, and as ``ratio`` the median of the pairs' ratios of theirs to ours.
    """
    found: list[tuple[float, float]] = []
    for pair in range(pairs):
        if pair % 2:
            their_seconds, our_seconds = seconds(theirs), seconds(ours)
        else:
            our_seconds, their_seconds = seconds(ours), seconds(theirs)
        found.append((our_seconds, their_seconds))
        progress(f"pair {pair + 1} of {pairs}: {our_seconds:.2f} s and {their_seconds:.2f} s")
    ratios = [theirs / ours for ours, theirs in found]
    return {
        "ours_seconds": statistics.median(ours for ours, _ in found),
        "theirs_seconds": statistics.median(theirs for _, theirs in found),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def correlated_inputs(columns: int, batches: int, tokens: int, seed: int = 0) -> list[Tensor]:
    """Return batches ``[1, tokens, columns]`` of an input whose channels differ in size and share a few directions."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(0.7 * torch.randn(columns, generator=generator))
    shared = torch.randn(32, columns, generator=generator) / 4
    return [
        (
            torch.randn(1, tokens, columns, generator=generator)
            + torch.randn(1, tokens, 32, generator=generator) @ shared
        )
        * size
        for _ in range(batches)
    ]


def random_weight(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Return a weight ``[rows, columns]`` with entries as large as trained weights."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5
