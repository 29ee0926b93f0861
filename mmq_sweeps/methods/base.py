"""The interface of quantization methods: their inputs and results.

A method is a frozen dataclass whose fields are those of its yaml in ``conf/method/``. It does not depend on models,
hooks, devices or configuration files: it receives the weights of linears that share an input, the statistics of that
input, and a ``Format``. To add a method, write a file like ``rtn.py`` and a yaml that names it.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor

from mmq_sweeps.methods.formats import Format, QuantizedWeight, check_group_size

# Key in ``LayerStats.shared`` for the set of factorizations that several methods will request.
EXPECTED = "expected"


@dataclass(frozen=True)
class LayerStats:
    """Statistics of a linear's input over the calibration tokens.

    ``gram`` ``[I, I]`` is the mean of ``x x^T``, ``mean_abs`` ``[I]`` the mean of ``|x|``, both float32 over ``count``
    tokens without padding. ``inputs`` ``[count, I]`` are the tokens themselves, present only for methods with
    ``needs_inputs = True``. ``foldable`` is true if a scale of the input's features can be folded into the layer before, for
    methods with ``fuse = True``. ``shared`` caches results that serve every bit-width and method on this input, such as a
    factorization.
    """

    gram: Tensor
    mean_abs: Tensor
    count: int
    inputs: Tensor | None = None
    foldable: bool = False
    shared: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Solution:
    """Quantized weights in the order given, and the solver's notes for the record (damping used, ...)."""

    weights: list[QuantizedWeight]
    notes: dict[str, Any]


@runtime_checkable
class Method(Protocol):
    """A way to choose codes and grids.

    Optional members: ``quantize_many(weights, stats, formats) -> list[Solution]``, if many formats are cheaper to solve
    together; ``needs_inputs = True``, if the method needs the calibration tokens themselves; ``input_scaled = True``, if a
    scale for each input column is stored beside the codes; ``factor_key``, see ``expect``; ``fuse = True``, if the caller
    is to fold input scales into the layer before, where ``LayerStats.foldable`` says that it can. Each code of such a
    method is the nearest on its grid. A field ``vision_weight``, if it is not None, asks the caller for statistics in which
    vision tokens count that share and text tokens the rest.
    """

    needs_statistics: ClassVar[bool]

    def format(self, bits: int) -> Format:
        """Return the format of a weight at this bit-width."""
        ...

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        """Quantize ``weights`` ``[O_k, I]`` of linears that share the input described by ``stats``."""
        ...


@dataclass(frozen=True)
class GroupedMethod:
    """Base of methods with even steps whose grids are those of groups, symmetric if asked for."""

    group_size: int | str = "channel"
    symmetric: bool = False

    needs_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_group_size(self.group_size)

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, self.symmetric)


def quantize_many(
    method: Method, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
) -> list[Solution]:
    """Return ``method``'s solution for each of ``formats``, solved together if the method supports it."""
    together = getattr(method, "quantize_many", None)
    if together is not None:
        solutions: list[Solution] = together(weights, stats, formats)
        return solutions
    return [method.quantize(weights, stats, format) for format in formats]


def expect(methods: Iterable[object], stats: LayerStats) -> None:
    """Record which factorizations of ``stats`` more than one of ``methods`` will request.

    Such methods identify their factorization by ``factor_key``. A solver caches an expected factor regardless of its
    size.
    """
    keys = Counter(key for method in methods if (key := getattr(method, "factor_key", None)) is not None)
    stats.shared[EXPECTED] = {key for key, count in keys.items() if count > 1}


def check_vision_weight(weight: float | None) -> None:
    """Raise a ValueError if ``weight``, the share of vision tokens in a method's objective, is none."""
    if weight is not None and not 0 <= weight <= 1:
        raise ValueError(
            f"vision_weight={weight!r}: choose a number from 0 (text tokens only) to 1 (vision tokens only), or null for all "
            "tokens alike"
        )


def check_installed(module: str, extra: str) -> None:
    """Raise a ValueError with the pip command if ``module``, which the optional ``extra`` installs, is missing."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(
            f"the library {extra} is not installed; install it with pip install 'mmq-sweeps[{extra}]' "
            f"(in a checkout: pip install -e '.[{extra}]')"
        )
