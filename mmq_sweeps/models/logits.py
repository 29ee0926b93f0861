"""Detect scores that are no answer, such as logits with a NaN: a flag per row, on the device until requested."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def are_answers(scores: Tensor) -> Tensor:
    """Return true for rows of ``scores`` ``[..., K]`` that are an answer: without NaN and plus infinity.

    A model may rule out tokens with minus infinity, but not all of them.
    """
    return scores.amax(dim=-1).isfinite()  # NaN if one score is, and minus infinity only if all are


class LogitsWatch:
    """Flags of rows whose logits for the next token are no answer, over the forward passes of a batch."""

    def __init__(self) -> None:
        # By number of rows: some models process a prompt once for all of its beams.
        self._wrong: dict[int, Tensor] = {}

    def rows(self, count: int) -> list[bool]:
        """Return the flag of each of ``count`` rows since the last call; a row is flagged if any of its beams is.

        Raises RuntimeError if no logits were seen, or their rows are no multiple of ``count``.
        """
        seen, self._wrong = self._wrong, {}
        if not seen or any(rows % count for rows in seen):
            raise RuntimeError(f"the model was asked for {count} rows, and its logits have {list(seen) or 'none'}")
        flags = torch.stack([wrong.reshape(count, -1).any(dim=1) for wrong in seen.values()]).any(dim=0)
        return [bool(flag) for flag in flags.tolist()]

    def look(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        """Flag rows of ``output.logits`` ``[B, T, V]``, whose last place decides the next token; a forward hook."""
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            return
        wrong = ~are_answers(logits[:, -1])
        known = self._wrong.get(len(wrong))
        self._wrong[len(wrong)] = wrong if known is None else known | wrong


@contextmanager
def watching_logits(model: nn.Module) -> Iterator[LogitsWatch]:
    """Yield a watch that every causal model inside ``model`` reports its logits to."""
    watch = LogitsWatch()
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, PreTrainedModel):
                hooks.enter_context(module.register_forward_hook(watch.look))
        yield watch
