"""Which loaders take a cell's export with its weights still quantized; from the formats of its linears alone.

| loader | takes |
|---|---|
| ``transformers`` | with compressed-tensors: integer or no zeros, 2 to 8 bits in any mix, one scale a tensor, row or group |
| ``vllm`` | of these: 4 bits on disk, a scale a row or group, in vision and language; all other parts dense |

An export stores integer zeros as an extra bit of the codes: an asymmetric grid of 3 bits has 4 on disk. Real zeros,
codebooks, input scales that are not fused, slices of experts and linears of Siglip must be dequantized. Embeddings are always
stored dense, so they keep no loader from taking the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mmq_sweeps.identity.end_parts import EMBEDDINGS

TRANSFORMERS, VLLM = LOADERS = ("transformers", "vllm")
# In place of loaders: none takes the cell quantized; dequantized, any does.
DEQUANTIZED = "dequantized"
CHOICES = (*LOADERS, DEQUANTIZED)
NAMES = {VLLM: "vLLM"}
VLLM_BITS, VLLM_PARTS = 4, ("vision", "language")
# Tells who has a quantized part that its export stores dense.
DENSE_EMBEDDINGS = "an export stores quantized embeddings dense, at the checkpoint's own bits"


class Storage(Protocol):
    """The deciding fields of a weight's format (``methods.formats.Format``)."""

    @property
    def bits(self) -> int: ...
    @property
    def group_size(self) -> int | str: ...
    @property
    def symmetric(self) -> bool: ...
    @property
    def real_zero(self) -> bool: ...
    @property
    def codebook(self) -> str | None: ...


@dataclass(frozen=True)
class ExportedLinear:
    """A quantized linear of ``part``.

    ``dense_only`` is true of one that no loader takes packed: an expert's slice in a tensor of many, or a linear that
    transformers initializes by its dense weight (Siglip).
    """

    part: str
    format: Storage
    input_scaled: bool = False
    dense_only: bool = False


def loads_in(linears: Iterable[ExportedLinear]) -> list[str]:
    """Return the ``LOADERS`` that take ``linears`` quantized and everything else dense, or only ``DEQUANTIZED``.

    Without any linear, at full precision, that is all of them; with embeddings alone, nothing is left to load quantized.
    """
    given = set(linears)
    stored = {linear for linear in given if linear.part != EMBEDDINGS}
    if (given and not stored) or not all(map(_in_transformers, stored)):
        return [DEQUANTIZED]
    return [TRANSFORMERS, VLLM] if all(map(_in_vllm, stored)) else [TRANSFORMERS]


def _in_transformers(linear: ExportedLinear) -> bool:
    stored = linear.format
    return not (stored.real_zero or stored.codebook or linear.input_scaled or linear.dense_only)


def _in_vllm(linear: ExportedLinear) -> bool:
    on_disk = linear.format.bits + (0 if linear.format.symmetric else 1)
    return linear.part in VLLM_PARTS and on_disk == VLLM_BITS and linear.format.group_size != "tensor"


def joined(loaders: Sequence[str]) -> str:
    """Write ``loaders`` as one word, such as ``transformers+vllm``."""
    return "+".join(loaders)


def parsed(text: str) -> list[str]:
    """Return the loaders of ``joined``."""
    return text.split("+")


def shown(loaders: Sequence[str]) -> str:
    """Format ``loaders`` for a table: ``transformers + vLLM``."""
    return " + ".join(NAMES.get(name, name) for name in loaders)
