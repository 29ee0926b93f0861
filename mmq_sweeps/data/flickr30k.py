"""Flickr30k (TACL 2014, "From image descriptions to visual denotations") in Karpathy's splits.

29,000 images for training, 1,014 for validation, 1,000 for testing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from mmq_sweeps.data.karpathy import KarpathyCaptions
from mmq_sweeps.identity.roles import LABEL


@dataclass(frozen=True, kw_only=True)
class Flickr30k(KarpathyCaptions):
    """Reader of ``dataset_flickr30k.json``: splits train, val and test, five captions per image."""

    annotations: str = field(default="dataset_flickr30k.json", metadata=LABEL)
    images: str = field(default="flickr30k-images", metadata=LABEL)

    known_as: ClassVar[str] = "flickr30k"
