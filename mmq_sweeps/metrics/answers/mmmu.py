"""Accuracy of MMMU (arXiv 2311.16502), of multiple choice and of open questions, read as the authors' ``eval_utils.py`` does.

- A choice: of the letters in brackets, else before a blank, else before a full stop, the last; else, in answers of more than
  five words, the option whose text is mentioned last.
- An open question, which has no options: what follows the last ``is``, ``so``, ``answer`` or the like of each line, and the
  numbers there, to two decimals. Right if it contains a right answer, or a number equals one.

The authors' script draws a letter for a choice that it cannot read; here it is wrong, and a warning tells how many there are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.answers.choice import problem_of_choice
from mmq_sweeps.metrics.base import MetricBase, RightAnswers, Scores
from mmq_sweeps.metrics.degenerate import of_unparsed

_ENDS = ",.!?;:'"
_MENTIONING = 5
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


class MmmuAccuracy(MetricBase):
    """1 if the answer is right, else 0."""

    name: ClassVar[str] = "mmmu_accuracy"
    needs: ClassVar[str] = "answers"
    definition: ClassVar[str] = "eval_utils.py of MMMU, but that nothing is guessed"

    def problem_of(self, answers: Sequence[str], options: Sequence[str], kind: str) -> str | None:  # noqa: ARG002
        """Return why a question cannot be scored: a choice needs letters of its options."""
        return problem_of_choice(answers, options) if options else None

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[tuple[Sequence[str], Sequence[str]]]:
        """Return the right answers and the options of each question."""
        known = RightAnswers.of(references)
        return list(zip(known.values(), known.choices(), strict=True))

    def score(self, prepared: list[tuple[Sequence[str], Sequence[str]]], predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        chosen = [letter_of(answer, own) if own else "" for answer, (_, own) in zip(predictions, prepared, strict=True)]
        right = [
            letter in answers if own else is_right(answer, answers)
            for letter, answer, (answers, own) in zip(chosen, predictions, prepared, strict=True)
        ]
        return Scores.mean(np.array(right, dtype=np.float64), of_unparsed(chosen.count(None), len(chosen)))


def letter_of(answer: str, options: Sequence[str]) -> str | None:
    """Return the letter of the option that ``answer`` chooses; None where the authors' script would draw one."""
    for sign in _ENDS:
        answer = answer.strip(sign)
    answer = f" {answer} "
    letters = ascii_uppercase[: len(options)]
    for shown, found_by in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in letters if shown.format(letter) in answer]:
            return _last(answer, {letter: found_by.format(letter) for letter in found})
    folded = answer.lower()
    mentioned = {letter: text.lower() for letter, text in zip(letters, options, strict=True) if text.lower() in folded}
    return _last(folded, mentioned) if mentioned and len(answer.split()) > _MENTIONING else None


def _last(answer: str, texts: Mapping[str, str]) -> str:
    """Return the letter whose text is found last; the first of them if two are found at the same place, or none at all."""
    return max(texts, key=lambda letter: answer.rfind(texts[letter]))


def is_right(answer: str, right: Sequence[str]) -> bool:
    """Return whether the answer to an open question contains one of the ``right`` answers, or its number."""
    wanted = [form for text in right for form in _forms(text)]
    texts = [form for form in wanted if isinstance(form, str)]
    said = _said(answer)
    return any(
        any(text in form for text in texts) if isinstance(form, str) else form in wanted
        for part in said
        for form in _forms(part)
    )


def _said(answer: str) -> list[str]:
    """Return the parts of an open answer that may be right, and the numbers in them."""
    folded = answer.strip().strip(".").lower()
    lines = folded.split("\n")
    tails = [_tail(line, last=place == len(lines) - 1) for place, line in enumerate(lines)]
    parts = [tail for tail in tails if tail and tail not in _TRIVIAL] or [folded]
    return parts + [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]


def _tail(line: str, last: bool) -> str:
    """Return the shortest text behind one of the words that announce an answer; in the last line also behind ``=``."""
    known = (*_INDICATORS, "=") if last else _INDICATORS
    behind = [line.rpartition(word)[2].strip() for word in known if word in line]
    # As the script: an empty one is replaced by whatever comes next.
    shortest = ""
    for text in behind:
        if not shortest or len(text) < len(shortest):
            shortest = text
    return shortest


def _forms(text: str) -> list[str | float]:
    """Return a text as it is compared: a number to two decimals, else in lower case, a single letter beside a blank."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        folded = text.lower()
        return [f" {folded}", f"{folded} "] if len(folded) == 1 else [folded]
