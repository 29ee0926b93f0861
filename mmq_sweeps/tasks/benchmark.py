"""Benchmarks: questions with an instruction of their own, options, a context, and right answers as their data write them."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any, ClassVar

from mmq_sweeps.errors import unknown
from mmq_sweeps.tasks.generation.item import Item
from mmq_sweeps.tasks.items import is_blank, text_of
from mmq_sweeps.tasks.vqa import VqaTask

AS_TEXT, AS_LETTER, AS_INDEX = "text", "letter", "index"
NOTATIONS = (AS_TEXT, AS_LETTER, AS_INDEX)
_NEEDED = (("instruction", "question"), ("open_instruction", "question"), ("choice", "letter"), ("choice", "text"))
_OFFERED = {
    "instruction": ("question", "choices", "context"),
    "open_instruction": ("question", "choices", "context"),
    "choice": ("letter", "text"),
    "context": ("context",),
}
# Not the argument of a command of LaTeX, as in an instruction to answer in ``\\boxed{answer}``.
_PLACE = re.compile(r"(?<![\\\w])\{(\w+)\}")
_PLACES = re.compile(r"\{(question|choices|context)\}")


@dataclass(frozen=True, eq=False)
class BenchmarkTask(VqaTask):
    """Question answering as a benchmark asks; a question may also have ``options`` and a ``context``, an example a ``group``.

    ``instruction`` stands in place of ``{question}`` in ``prompt``, with ``{question}``, ``{choices}`` and ``{context}``;
    questions without options have ``open_instruction``, if there is one. An option is written as ``choice`` says, a line each,
    and a context, if there is one, as ``context`` says.

    ``answers_as`` says how the data write the right option: as its ``letter``, its ``index`` from 0, or its ``text``; the
    item's right answer is its letter. Without options answers are texts; with ``lists_as_text`` one that is a list as Python
    writes it is several. ``capitalized`` begins a question with its only capital, as some benchmarks ask.
    """

    instruction: str = "{question}"
    open_instruction: str | None = None
    choice: str = "{letter}. {text}"
    context: str = "{context}\n"
    answers_as: str = AS_TEXT
    lists_as_text: bool = False
    capitalized: bool = False

    known_as: ClassVar[str] = "benchmark"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.answers_as not in NOTATIONS:
            raise ValueError(f"task.answers_as={self.answers_as!r}: {unknown('notation', self.answers_as, NOTATIONS)}")
        for key, place in _NEEDED:
            if (given := getattr(self, key)) is not None and f"{{{place}}}" not in given:
                raise ValueError(f"task.{key}={given!r}: has no {{{place}}} in it")
        for key, offered in _OFFERED.items():
            for name in _PLACE.findall(getattr(self, key) or ""):
                if name not in offered:
                    raise ValueError(f"task.{key}={getattr(self, key)!r}: {unknown('place', name, offered)}")

    def items_of(self, example: Any) -> list[Item]:
        pairs = zip(super().items_of(example), example.questions, strict=True)
        return [self._asked_as(item, getattr(asked, "context", None)) for item, asked in pairs]

    def problem_of(self, item: Item) -> str | None:
        return item.problem or super().problem_of(item)

    def _asked_as(self, item: Item, context: Any) -> Item:
        """Return ``item`` with the benchmark's text for the question, and letters for right options."""
        try:
            options = self._options(item.options)
            references = self._references(item.references, options)
        except ValueError as error:
            return replace(item, problem=str(error))
        question = item.question
        if isinstance(question, str) and not is_blank(question):
            question = self._text(question, options, context)
        return replace(item, options=options, references=references, question=question)

    def _text(self, question: str, options: Sequence[str], context: Any) -> str:
        shown = zip(ascii_uppercase, options, strict=False)
        written = [self.choice.replace("{letter}", letter).replace("{text}", text) for letter, text in shown]
        parts = {
            "question": question.capitalize() if self.capitalized else question,
            "choices": "\n".join(written),
            "context": self.context.replace("{context}", context) if context else "",
        }
        template = self.instruction if options or self.open_instruction is None else self.open_instruction
        # In one go: a question may hold the name of another place.
        return _PLACES.sub(lambda place: parts[place[1]], template)

    def _options(self, given: Sequence[Any]) -> tuple[str, ...]:
        options = tuple(given)
        if wrong := [option for option in options if not isinstance(option, str)]:
            raise ValueError(f"one of its options is {text_of(wrong[0])}, not text")
        if len(options) > len(ascii_uppercase):
            raise ValueError(f"it has {len(options)} options, and there are {len(ascii_uppercase)} letters")
        return options

    def _references(self, given: Sequence[Any], options: Sequence[str]) -> tuple[Any, ...]:
        if options:
            return tuple(_letter(answer, options, self.answers_as) for answer in given)
        return _listed(given) if self.lists_as_text else tuple(given)


def _listed(given: Sequence[Any]) -> tuple[Any, ...]:
    """Return ``given``, or the items of the list that its only text holds."""
    if len(given) != 1 or not isinstance(given[0], str) or not given[0].lstrip().startswith("["):
        return tuple(given)
    try:
        found = ast.literal_eval(given[0].strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"its right answers are {text_of(given[0])}, which is no list as Python writes it") from error
    return tuple(one if isinstance(one, str) else str(one) for one in found)


def _letter(answer: Any, options: Sequence[str], written: str) -> str:
    """Return the letter of the right option; a ValueError names an answer that is none of them, or two."""
    letters, text = ascii_uppercase[: len(options)], str(answer).strip()
    which = f"none of its {len(options)} options"
    if written == AS_INDEX:
        if text.isdecimal() and int(text) < len(options):
            return letters[int(text)]
        raise ValueError(f"its right answer is {text_of(answer)}, which is {which} by index, 0 to {len(options) - 1}")
    if written == AS_LETTER:
        if len(text) == 1 and text.upper() in letters:
            return text.upper()
        raise ValueError(f"its right answer is {text_of(answer)}, which is {which} by letter, A to {letters[-1]}")
    same = [letter for letter, option in zip(letters, options, strict=True) if option.strip() == text]
    if len(same) == 1:
        return same[0]
    several = f"the text of options {' and '.join(same)}" if same else f"{which} by text"
    raise ValueError(
        f"its right answer is {text_of(answer)}, which is {several}; task.answers_as says how it is written"
    )
