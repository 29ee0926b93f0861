"""Procedurally drawn scenes with captions and questions: data that need no download and have exact answers.

A scene is a handful of coloured shapes and dots (``scene``), drawn in integer arithmetic (``render``) and put into
words (``words``). ``Scenes`` makes a data set of them. ``train`` is the script that trained the embedded model on them;
it and ``network`` are the only modules here that need torch or transformers.
"""

from mmq_sweeps.data.scenes.dataset import SPLITS, Example, Scenes
from mmq_sweeps.data.scenes.scene import Scene, Shape
from mmq_sweeps.data.scenes.words import Question, perfect_caption

__all__ = ["SPLITS", "Example", "Question", "Scene", "Scenes", "Shape", "perfect_caption"]
