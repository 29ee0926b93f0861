"""Scenes in words: five captions each, the caption of a perfect captioner, and questions with one-word answers.

All texts are lower case, with a space around every word and mark, as the embedded models' word-level tokenizer reads
them. ``VOCABULARY`` lists every word that can occur.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from mmq_sweeps.data.scenes.scene import COLOURS, KINDS, SIZES, TONES, Scene, Shape

NUMBERS = ("zero", "one", "two", "three", "four", "five")
_CONVERSE = {"left of": "right of", "above": "below", "below": "above"}
_OTHER = (
    "a there is are and with the , : ; ? dot dots shape shapes left right of above below from to top bottom then"
    " you can see picture shows beside question short answer how many what color size which bigger or yes no"
)
VOCABULARY = tuple(dict.fromkeys((*SIZES, *TONES, *COLOURS, *KINDS, *NUMBERS, *_OTHER.split())))


@dataclass(frozen=True)
class Question:
    """Question about one image, its one-word answer, and its topic ``kind``: count, colour, size, ..."""

    question: str
    answer: str
    kind: str

    @property
    def answers(self) -> tuple[str, ...]:
        """All right answers, as other data sets have them."""
        return (self.answer,)


def perfect_caption(scene: Scene) -> str:
    """Return the caption of a captioner that sees everything and sticks to the first wording: the ceiling for captions.

    It is the first reference, as in 'a tiny dark red ring left of a huge pale blue cross with two dots', so it does not guess
    at the other four wordings.
    """
    parts = [f"a {_noun(scene.shapes[0])}"]
    for one, other in pairwise(scene.shapes):
        parts.append(f"{relation(one, other)} a {_noun(other)}")
    return f"{' '.join(parts)} with {_dots(scene)}"


def references(scene: Scene) -> tuple[str, str, str, str, str]:
    """Return the five reference captions, each worded differently; each says everything a caption can say."""
    return perfect_caption(scene), _reverse_chain(scene), _listing(scene), _column(scene), _dots_first(scene)


def _noun(shape: Shape) -> str:
    return f"{_looks(shape)} {shape.kind}"


def _looks(shape: Shape) -> str:
    return f"{shape.size} {shape.tone} {shape.colour}"


def _dots(scene: Scene) -> str:
    count = len(scene.dots)
    return f"{NUMBERS[count]} dot{'s' if count > 1 else ''}"


def _shapes(scene: Scene) -> str:
    count = len(scene.shapes)
    return f"{NUMBERS[count]} shape{'s' if count > 1 else ''}"


def relation(one: Shape, other: Shape) -> str:
    """Return the position of ``one`` relative to ``other``, which is mentioned later.

    The larger of the horizontal and vertical distances decides.
    """
    if other.column - one.column >= abs(other.row - one.row):
        return "left of"
    return "above" if one.row < other.row else "below"


def _reverse_chain(scene: Scene) -> str:
    """Build e.g. 'there is a huge pale blue cross right of a tiny dark red ring , and two dots'."""
    shapes = scene.shapes[::-1]
    parts = [f"there is a {_noun(shapes[0])}"]
    for one, other in pairwise(shapes):
        parts.append(f"{_CONVERSE[relation(other, one)]} a {_noun(other)}")
    return f"{' '.join(parts)} , and {_dots(scene)}"


def _listing(scene: Scene) -> str:
    """Build e.g. 'you can see a tiny dark red ring , a huge pale blue cross and two dots'."""
    return f"you can see {' , '.join(f'a {_noun(shape)}' for shape in scene.shapes)} and {_dots(scene)}"


def _column(scene: Scene) -> str:
    """Build e.g. 'from top to bottom : a huge pale blue cross , then a tiny dark red ring ; two dots'."""
    shapes = sorted(scene.shapes, key=lambda shape: (shape.row, shape.column))
    return f"from top to bottom : {' , then '.join(f'a {_noun(shape)}' for shape in shapes)} ; {_dots(scene)}"


def _dots_first(scene: Scene) -> str:
    """Build e.g. 'the picture shows two dots beside two shapes : tiny dark red ring , huge pale blue cross'."""
    nouns = " , ".join(_noun(shape) for shape in scene.shapes)
    return f"the picture shows {_dots(scene)} beside {_shapes(scene)} : {nouns}"


def questions(scene: Scene) -> tuple[Question, ...]:
    """Return every question that the scene answers: counts, each shape's look, and comparisons of neighbours."""
    return tuple(_questions(scene))


def _questions(scene: Scene) -> Iterator[Question]:
    yield Question("how many dots are there ?", NUMBERS[len(scene.dots)], "count")
    yield Question("how many shapes are there ?", NUMBERS[len(scene.shapes)], "count")
    for shape in scene.shapes:
        yield Question(f"what color is the {shape.kind} ?", shape.colour, "colour")
        yield Question(f"what size is the {shape.kind} ?", shape.size, "size")
        # Shapes that differ in kind alone cannot be told apart by their looks.
        if [_looks(other) for other in scene.shapes].count(_looks(shape)) == 1:
            yield Question(f"what is the {_looks(shape)} shape ?", shape.kind, "shape")
    for one, other in pairwise(scene.shapes):
        bigger = one if one.radius > other.radius else other
        if abs(one.radius - other.radius) >= 3:
            yield Question(f"which is bigger , the {one.kind} or the {other.kind} ?", bigger.kind, "comparison")
        truth = relation(one, other)
        yield Question(f"is the {one.kind} {truth} the {other.kind} ?", "yes", "relation")
        yield Question(f"is the {one.kind} {_CONVERSE[truth]} the {other.kind} ?", "no", "relation")
