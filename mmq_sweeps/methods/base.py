"""What a method is given and what it gives back.

A method is a frozen dataclass whose fields are those of its yaml in ``conf/method/``. It knows nothing of models, hooks,
devices or configuration files: it sees the weights of linears that share one input, the statistics of that input, and a
``Format``. To add one, write a file like ``rtn.py`` and a yaml that names it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from mmq_sweeps.affine import Format, QuantizedWeight


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one linear input over the calibration tokens.

    ``gram`` ``[I, I]`` is the mean of ``x x^T``, ``mean_abs`` ``[I]`` the mean of ``|x|``, both float32 over ``count``
    tokens; padding does not count.
    """

    gram: Tensor
    mean_abs: Tensor
    count: int


@dataclass(frozen=True)
class Solution:
    """Quantized weights in the order given, and what the solver did that a record should say (damping used, ...)."""

    weights: list[QuantizedWeight]
    notes: dict[str, Any]


@runtime_checkable
class Method(Protocol):
    """A way to choose codes and grids."""

    needs_statistics: ClassVar[bool]

    def format(self, bits: int) -> Format:
        """The format of a weight at this bit-width."""
        ...

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        """Quantize ``weights`` ``[O_k, I]``, the linears that share the input that ``stats`` describe."""
        ...
