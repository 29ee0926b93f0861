"""Kinds of artifacts, each a folder of the store."""

from __future__ import annotations

from enum import StrEnum


class ArtifactKind(StrEnum):
    """In the order of eviction: the cheapest to compute again goes first."""

    OUTPUTS = "outputs"
    STATISTICS = "statistics"
    QUANTIZED = "quantized"
