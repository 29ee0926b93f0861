"""Text to generate: an example with its prompt and right texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mmq_sweeps.models.plain_text import plain_text


@dataclass(frozen=True)
class Item:
    """Text to generate: an example's images, a prompt, the right texts (``references``), and the kind of item.

    ``question`` is the data's own text, substituted for ``{question}`` in ``template``; None if the prompt has none.
    ``options`` are those of a choice. Items with the same ``group``, such as questions about one picture, are no independent
    measurements. ``problem`` is why the data of an item cannot be used.
    """

    id: str
    example: Any
    template: str
    references: tuple[str, ...]
    kind: str = ""
    question: Any = None
    options: tuple[Any, ...] = ()
    group: str = ""
    problem: str | None = None

    @property
    def prompt(self) -> str:
        """Prompt as people read it."""
        return self._with(str(self.question))

    def prompt_for(self, processor: Any) -> str:
        """Return the prompt for a model: no part of the question is parsed as a special token of ``processor``."""
        return self.template if self.question is None else self._with(plain_text(self.question, processor))

    def _with(self, question: str) -> str:
        # Not str.format: a chat template may contain braces.
        return self.template if self.question is None else self.template.replace("{question}", question)
