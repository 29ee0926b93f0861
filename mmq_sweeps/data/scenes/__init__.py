"""Procedurally drawn scenes with captions and questions: no download, and exact answers.

A scene is a handful of coloured shapes and dots (``scene``), drawn in integer arithmetic (``render``) and described in
``words``; the data set is ``Scenes``. ``train`` trains the embedded models on them; ``network``, ``quality`` and the
``tiny_*`` models need torch and transformers, as it does.
"""

from mmq_sweeps.data.scenes.dataset import SPLITS, Example, Scenes
from mmq_sweeps.data.scenes.scene import Scene, Shape
from mmq_sweeps.data.scenes.words import Question, perfect_caption

__all__ = ["SPLITS", "Example", "Question", "Scene", "Scenes", "Shape", "perfect_caption"]
