"""Size of a quantized model: the study's bits per weight, and the exact ones.

The paper's (arXiv 2601.15287) are ``(bits x quantized linear weights + 16 x every other parameter) / all parameters``.
The exact ones count the stored bits: packed codes, scales, zeros and input scales, and 16 bits for everything else.

A part's size is that of its module with the part's own linears quantized, so that the language part's does not depend on
embeddings and head, though both may lie inside its module.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from mmq_sweeps.identity.cell import FULL_PRECISION_BITS
from mmq_sweeps.identity.end_parts import EMBEDDINGS, END_PARTS, HEAD
from mmq_sweeps.methods.formats import Format, QuantizedWeight
from mmq_sweeps.quantization.targets import Part


class Stored(Protocol):
    """A stored weight: its number of weights, their bit-width, and all bits that it takes with scales and zeros."""

    @property
    def weights(self) -> int: ...

    @property
    def width(self) -> float: ...

    @property
    def bits(self) -> int: ...


@dataclass(frozen=True)
class StoredLinear:
    """Storage of a weight ``[O, I]``: everything its size depends on.

    All but ``exponents`` is known before quantizing. ``exponents`` counts the powers of two beside scales that no half
    can hold; few weights have any.
    """

    format: Format
    shape: tuple[int, int]
    input_scaled: bool = False
    exponents: int = 0

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def width(self) -> float:
        return self.format.bits

    @property
    def bits(self) -> int:
        return self.format.stored_bits(self.shape, self.input_scaled, self.exponents)


def measure(model: nn.Module, parts: Iterable[Part], quantized: Mapping[str, QuantizedWeight]) -> dict[str, Any]:
    """Return parameters, quantized weights, both bits per weight and bytes, in total and per part's module.

    Tied embeddings and head are one weight, counted at the one that is quantized, else at the embeddings; the other has no
    parameters of its own and names the one that it is ``tied_to``.
    """
    return measure_stored(model, parts, stored_linears(quantized))


def stored_linears(quantized: Mapping[str, QuantizedWeight]) -> dict[str, StoredLinear]:
    """Return the storage of every quantized weight."""
    return {
        name: StoredLinear(weight.format, weight.shape, weight.input_scale is not None, weight.exponents)
        for name, weight in quantized.items()
    }


def measure_stored(model: nn.Module, parts: Iterable[Part], stored: Mapping[str, Stored]) -> dict[str, Any]:
    """Return the sizes of ``measure`` for linears stored as in ``stored``; ``model`` may lie on the meta device."""
    parts = list(parts)
    same = _tied_weights(parts)
    sizes = {part.name: _part_size(model, part, stored, same) for part in parts}
    for part in parts:
        if part.tied_to is not None and part.name != _carrier(parts, stored):
            # The bits per weight are those of the one weight.
            nothing = {"parameters": 0, "quantized_weights": 0, "size_bytes": 0}
            sizes[part.name] = sizes[part.tied_to] | nothing | {"tied_to": part.tied_to}
    return {"total": _size(_parameters(model, "", same), stored.values()), "parts": sizes}


def larger_parts(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the exact bits per weight of the parts of ``measure`` whose quantized weights take more than full precision."""
    return {
        name: part["bpw_exact"]
        for name, part in measured["parts"].items()
        if part["quantized_weights"] and part["bpw_exact"] > FULL_PRECISION_BITS
    }


def _tied_weights(parts: Iterable[Part]) -> dict[str, str]:
    """Return the name of the embeddings' weight by that of a head tied to it."""
    modules = {part.name: part.module for part in parts if part.tied_to is not None}
    return {f"{modules[HEAD]}.weight": f"{modules[EMBEDDINGS]}.weight"} if len(modules) == len(END_PARTS) else {}


def _carrier(parts: Iterable[Part], stored: Mapping[str, Stored]) -> str:
    """Return which of the tied parts their weight is counted at."""
    quantized = [own.name for own in parts if own.tied_to is not None and own.module in stored]
    return quantized[0] if quantized else EMBEDDINGS


def _part_size(model: nn.Module, part: Part, stored: Mapping[str, Stored], same: Mapping[str, str]) -> dict[str, Any]:
    own = [stored[name] for unit in part.units for name in unit.linears if name in stored]
    return _size(_parameters(model.get_submodule(part.module), f"{part.module}.", same), own)


def _parameters(module: nn.Module, prefix: str, same: Mapping[str, str]) -> int:
    """Count the parameters of ``module``, each once; ``same`` tells of weights that are one although they are two objects.

    An offloaded module has an object of its own after its first call.
    """
    # named_parameters() yields shared parameters once, as they are stored once.
    sizes = {f"{prefix}{name}": parameter.numel() for name, parameter in module.named_parameters()}
    return sum({same.get(name, name): size for name, size in sizes.items()}.values())


def _size(parameters: int, stored: Iterable[Stored]) -> dict[str, Any]:
    inside = list(stored)
    weights = sum(linear.weights for linear in inside)
    rest = FULL_PRECISION_BITS * (parameters - weights)
    paper_bits = rest + sum(linear.width * linear.weights for linear in inside)
    exact_bits = rest + sum(linear.bits for linear in inside)
    return {
        "parameters": parameters,
        "quantized_weights": weights,
        "bpw_paper": paper_bits / parameters,
        "bpw_exact": exact_bits / parameters,
        "size_bytes": exact_bits // 8,
    }
