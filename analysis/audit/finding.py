"""A finding of the audit, and how it lists names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmq_sweeps.reporting.table import metric_label

# Cells that a finding lists by name.
SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """A defect: its kind, a sentence, and the number of ``cells`` affected out of ``of``."""

    family: str
    defect: str
    sentence: str
    cells: int
    of: int


# A finding without its family: ``(defect, sentence, cells, of)``.
Told = tuple[str, str, int, int]


def joined(names: Sequence[str]) -> str:
    """Return ``cider, bleu and wer``."""
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def labels(metrics: Sequence[str]) -> str:
    """Return ``CIDEr, BLEU-4 and wer``: the names by which people know ``metrics``."""
    return joined([metric_label(name) for name in metrics])


def listed(told: Sequence[str]) -> str:
    """Return the first few of ``told``, and how many there are besides."""
    return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")
