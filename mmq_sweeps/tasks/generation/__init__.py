"""Tasks whose answers are generated text: captions, answers, benchmarks."""

from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.generation.task import GenerationTask, Scorer

__all__ = ["GenerationTask", "Item", "Scorer"]
