"""What a method is given and what it gives back.

A method is a frozen dataclass whose fields are those of its yaml in ``conf/method/``. It knows nothing of models, hooks,
devices or configuration files: it sees the weights of linears that share one input, the statistics of that input, and a
``Format``. To add one, write a file like ``rtn.py`` and a yaml that names it.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from mmq_sweeps.methods.affine import Format, QuantizedWeight

# Where ``LayerStats.shared`` says which factorizations several methods will ask for.
EXPECTED = "expected"


@dataclass(frozen=True)
class LayerStats:
    """Statistics of one linear input over the calibration tokens.

    ``gram`` ``[I, I]`` is the mean of ``x x^T``, ``mean_abs`` ``[I]`` the mean of ``|x|``, both float32 over ``count``
    tokens; padding does not count. ``inputs`` ``[count, I]`` are the tokens themselves, kept only for a method that says
    ``needs_inputs = True``. ``shared`` is where solvers leave what serves every bit-width and method on this input, such
    as a factorization.
    """

    gram: Tensor
    mean_abs: Tensor
    count: int
    inputs: Tensor | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Solution:
    """Quantized weights in the order given, and what the solver did that a record should say (damping used, ...)."""

    weights: list[QuantizedWeight]
    notes: dict[str, Any]


@runtime_checkable
class Method(Protocol):
    """A way to choose codes and grids.

    A method that solves many formats cheaper together than one by one also has ``quantize_many(weights, stats, formats)
    -> list[Solution]``; one that needs the calibration tokens themselves sets ``needs_inputs = True``.
    """

    needs_statistics: ClassVar[bool]

    def format(self, bits: int) -> Format:
        """The format of a weight at this bit-width."""
        ...

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        """Quantize ``weights`` ``[O_k, I]``, the linears that share the input that ``stats`` describe."""
        ...


def quantize_many(
    method: Method, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
) -> list[Solution]:
    """``method``'s solution for each of ``formats``, together where it can, else one by one."""
    together = getattr(method, "quantize_many", None)
    if together is not None:
        solutions: list[Solution] = together(weights, stats, formats)
        return solutions
    return [method.quantize(weights, stats, format) for format in formats]


def expect(methods: Iterable[object], stats: LayerStats) -> None:
    """Tell the solvers which factorizations of ``stats`` more than one of ``methods`` will ask for.

    Such a method names what it factors by ``factor_key``; one that knows that it is not the last keeps the factor, whatever
    its size.
    """
    keys = Counter(key for method in methods if (key := getattr(method, "factor_key", None)) is not None)
    stats.shared[EXPECTED] = {key for key, count in keys.items() if count > 1}


def check_installed(module: str, extra: str) -> None:
    """A ValueError that names the pip command unless the published library of the optional ``extra`` is installed."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"the library {extra} is not installed; install it with pip install 'mmq-sweeps[{extra}]' "
            f"(in a checkout: pip install -e '.[{extra}]')"
        )
