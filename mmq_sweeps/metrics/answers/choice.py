"""Accuracy of multiple choice by the letter of an option, ``A`` to ``Z``, however the answer names it.

The first of these that decides tells the option that an answer chooses:

1. The answer is a letter and nothing else but signs, in either case: ``B``, ``b.``, ``(B)``, ``**B**``.
2. It begins with a capital letter and a full stop, colon or closing bracket: ``B. a dog``, ``(B) a dog``. A letter of no option
   chooses none.
3. It says ``answer is`` or ``answer:``, followed by a letter in either case and a sign or the end: ``The answer is B.``,
   ``Answer: (b)``. The last of them counts.
4. It is the text of exactly one option, but for case and signs at its ends.
5. Exactly one option's letter stands in it as a word of its own, in capitals. ``A`` is no letter but an article in answers of
   more than three words.
6. Exactly one option's text stands in it, in words of its own, but for case. If 5 and 6 name two options, it chooses none.

Nothing is guessed: an answer that chooses none is wrong, and ``choice_unparsed`` is the share of them. ScienceQA (arXiv
2209.09513) and MMBench (arXiv 2307.06281) leave such answers to chance and to a language model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from string import ascii_uppercase
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import MetricBase, RightAnswers, Scores
from mmq_sweeps.metrics.degenerate import of_unparsed

# Answers of more words may have ``A`` for an article.
_WORDS_WITHOUT_ARTICLE = 3
_ALONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_AHEAD = re.compile(r"[\s(\[*\"']*([A-Z])\**[.:)\]]")
_SAID = re.compile(
    r"\banswer(?:\s+is|\s*:)\s*(?:[*\"']*([A-Z])(?=[*\"')\]]*(?:[.,;:!\n]|\s*$))|\(([A-Za-z])\))", re.IGNORECASE
)
_WORD = re.compile(r"\w+")


class ChoiceAccuracy(MetricBase):
    """1 if the answer chooses the option whose letter is right, else 0."""

    name: ClassVar[str] = "choice_accuracy"
    needs: ClassVar[str] = "answers"
    definition: ClassVar[str] = "option's letter or text, nothing guessed"

    def problem_of(self, answers: Sequence[str], options: Sequence[str], kind: str) -> str | None:  # noqa: ARG002
        """Return why a question cannot be scored: its right answers must be letters of its options."""
        return problem_of_choice(answers, options)

    def prepare(self, references: RightAnswers) -> list[tuple[frozenset[str], tuple[str, ...]]]:
        """Return the right letters and the options of each question."""
        known = RightAnswers.of(references)
        return [(frozenset(right), tuple(own)) for right, own in zip(known.values(), known.choices(), strict=True)]

    def score(self, prepared: list[tuple[frozenset[str], tuple[str, ...]]], predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        chosen = [letter_of(answer, own) for answer, (_, own) in zip(predictions, prepared, strict=True)]
        right = [float(letter in letters) for letter, (letters, _) in zip(chosen, prepared, strict=True)]
        return Scores.mean(np.array(right), of_unparsed(chosen.count(None), len(chosen)))


class ChoiceUnparsed(ChoiceAccuracy):
    """1 if the answer chooses no option, else 0: how much of the accuracy is lost to answers that cannot be read."""

    name: ClassVar[str] = "choice_unparsed"
    higher_is_better: ClassVar[bool] = False

    def score(self, prepared: list[tuple[frozenset[str], tuple[str, ...]]], predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([float(letter_of(answer, own) is None) for answer, (_, own) in pairs]))


def problem_of_choice(answers: Sequence[str], options: Sequence[str]) -> str | None:
    """Return why ``answers`` are not letters of ``options``, or None."""
    if len(options) < 2:
        return f"it has {len(options)} options to choose from, and a choice needs two or more"
    if len(options) > len(ascii_uppercase):
        return f"it has {len(options)} options, and there are {len(ascii_uppercase)} letters"
    letters = ascii_uppercase[: len(options)]
    wrong = next((text for text in answers if len(text) != 1 or text not in letters), None)
    if wrong is None:
        return None
    return f"its right answer is {wrong!r}, which is no letter of its {len(options)} options, {letters[0]} to {letters[-1]}"


@lru_cache(maxsize=100_000)
def letter_of(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the letter of the option that ``answer`` chooses, as the module's page says; None if it chooses none."""
    letters = ascii_uppercase[: len(options)]
    for found in (_ALONE.fullmatch(answer), _AHEAD.match(answer)):
        if found is not None:
            return found[1].upper() if found[1].upper() in letters else None
    said = [(first or second).upper() for first, second in _SAID.findall(answer)]
    if said and said[-1] in letters:
        return said[-1]
    if (equal := _equal(answer, options)) is not None:
        return equal
    named = {_only_letter(answer, letters), _only_text(answer, options)} - {None}
    return named.pop() if len(named) == 1 else None


def _equal(answer: str, options: Sequence[str]) -> str | None:
    folded = _bare(answer)
    return _only([bool(folded) and _bare(option) == folded for option in options])


def _bare(text: str) -> str:
    return text.strip(" \t\n.,:;!?\"'*()[]").casefold()


def _only_letter(answer: str, letters: str) -> str | None:
    words = _WORD.findall(answer)
    article = len(words) > _WORDS_WITHOUT_ARTICLE
    return _only([letter in words and not (article and letter == "A") for letter in letters])


def _only_text(answer: str, options: Sequence[str]) -> str | None:
    folded = answer.casefold()
    return _only([bool(own := _bare(option)) and _holds(folded, own) for option in options])


def _holds(answer: str, text: str) -> bool:
    return text in answer and re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer) is not None


def _only(chosen: Sequence[bool]) -> str | None:
    """Return the letter of the only option that is chosen."""
    return ascii_uppercase[chosen.index(True)] if sum(chosen) == 1 else None
