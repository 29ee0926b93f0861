"""Image captioning: one caption per image, scored against several references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mmq_sweeps.metrics import CaptionScorer
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.task import GenerationTask


@dataclass(frozen=True, eq=False)
class CaptionTask(GenerationTask):
    """Captioning task; the reader's examples have ``id``, ``image`` and ``references``, and all share ``prompt``."""

    known_as: ClassVar[str] = "caption"

    def items_of(self, example: Any) -> list[Item]:
        return [Item(example.id, example, self.prompt, tuple(example.references))]

    def make_scorer(self, items: Sequence[Item], cache: Path) -> CaptionScorer:
        references = {item.id: list(item.references) for item in items}
        return CaptionScorer(references, metrics=self.metrics, cache_dir=cache)
