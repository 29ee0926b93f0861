"""Experts of a mixture in one tensor: their slices as linears, and the tokens that are routed to each.

A slice is named ``PATH.gate_up_proj[3]``, where ``PATH`` is the module of the experts, and is ``[O, I]`` as the weight of a
linear, whichever way the class stores it. Two kinds of classes are known: those with transformers'
``use_experts_implementation``, which are called with the experts chosen for each token and say how they store weights, and
Llama 4's, whose inputs are multiplied by the router's score, which is 0 for the experts that are not chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmq_sweeps.grouping import grouped

# Classes whose forward takes ``[E * T, D]``: every token for every expert, zeros where it is not chosen. Stored ``[I, O]``.
SCALED_INPUTS = ("Llama4TextExperts",)
SLICE = re.compile(r"(?P<module>.+)\.(?P<parameter>[^.\[\]]+)\[(?P<index>\d+)\]")
# Tokens on which a module's own output is compared with that of its slices, and the largest relative distance: that of
# half precision is below a hundredth, that of a transposed slice or another activation above a half.
COMPARED, FARTHEST = 8, 0.1


@dataclass(frozen=True)
class Slice:
    """The weight of expert ``index`` in ``parameter`` of the module at path ``module``."""

    module: str
    parameter: str
    index: int


def parse(name: str) -> Slice | None:
    """Return the slice that ``name`` stands for; None if it is the name of a module."""
    found = SLICE.fullmatch(name)
    return None if found is None else Slice(found["module"], found["parameter"], int(found["index"]))


def module_of(name: str) -> str:
    """Return the path of the module that runs with the weight ``name``: a linear itself, or the experts of a slice."""
    found = parse(name)
    return name if found is None else found.module


@dataclass(frozen=True)
class Routed:
    """Inputs ``[N, I]`` of one expert's projections, and the rows ``[N]`` of the flattened tokens that they come from."""

    index: int
    rows: Tensor
    inputs: Mapping[str, Tensor]


@dataclass(frozen=True)
class Experts:
    """A module of experts as linears; ``transposed`` if its parameters are stored ``[E, I, O]``."""

    module: nn.Module
    transposed: bool
    first: str
    scaled_inputs: bool

    @cached_property
    def count(self) -> int:
        return int(getattr(self.module, self.first).shape[0])

    @property
    def parameters(self) -> tuple[str, str]:
        """Names of the projections, in the order in which they run."""
        return self.first, "down_proj"

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Return ``(O, I)`` of every slice by ``parameter[index]``, expert by expert."""
        sizes = {}
        for parameter in self.parameters:
            _, rows, columns = getattr(self.module, parameter).shape
            sizes[parameter] = (columns, rows) if self.transposed else (rows, columns)
        return {f"{name}[{index}]": size for index in range(self.count) for name, size in sizes.items()}

    def oriented(self, weight: Tensor) -> Tensor:
        """Return a view ``[O, I]`` of a slice as stored, or the reverse."""
        return weight.T if self.transposed else weight

    def weight(self, parameter: str, index: int) -> Tensor:
        """Return a view ``[O, I]`` of a slice."""
        return self.oriented(getattr(self.module, parameter)[index])

    def routed(self, hidden: Tensor, chosen: Tensor | None, counted: Tensor | None, second: bool) -> Iterator[Routed]:
        """Yield the inputs of each expert that was given tokens, of those tokens that ``counted`` ``[N]`` is true for.

        ``hidden`` and ``chosen`` are the module's first arguments. Inputs of the second projection only if ``second``.
        """
        for index in range(self.count):
            own, rows = self._tokens(hidden, chosen, index)
            if counted is not None:
                own, rows = own[counted[rows]], rows[counted[rows]]
            if not len(rows):
                continue
            inputs = {self.first: own}
            if second:
                inputs["down_proj"] = self._between(own, index)
            yield Routed(index, rows, inputs)

    def tokens(self, hidden: Tensor) -> int:
        """Return how many tokens a call's ``hidden`` holds, each of which every expert may be given."""
        return len(hidden) // self.count if self.scaled_inputs else len(hidden)

    def check(self, path: str, hidden: Tensor, args: Sequence[Tensor], output: Tensor) -> None:
        """Raise a RuntimeError if the module's ``output`` for the first tokens is not that of its slices."""
        few = min(COMPARED, self.tokens(hidden))
        if self.scaled_inputs:
            hidden, output = (x.view(self.count, -1, x.shape[-1])[:, :few] for x in (hidden, output))
            hidden, output = hidden.reshape(-1, hidden.shape[-1]), output.reshape(-1, output.shape[-1])
        else:
            hidden, output = hidden[:few], output[:few]
        chosen, scores = (None, None) if self.scaled_inputs else (args[0][:few], args[1][:few])
        expected = torch.zeros_like(output, dtype=torch.float32)
        for one in self.routed(hidden, chosen, None, second=True):
            own = self._linear(one.inputs["down_proj"], "down_proj", one.index)
            if getattr(self.module, "has_post_expert_norm", False):
                own = self.module.post_expert_norm(own)  # type: ignore[operator]
            if chosen is None or scores is None:
                expected[one.index * few + one.rows] = own.float()
            else:
                share = (scores[one.rows] * (chosen[one.rows] == one.index)).sum(dim=-1, keepdim=True)
                expected[one.rows] += (own * share).float()
        apart = torch.linalg.vector_norm(output.float() - expected)
        if bool(apart > FARTHEST * torch.linalg.vector_norm(expected)):
            raise RuntimeError(
                f"{path}: this {type(self.module).__name__} does not compute what the weights of its experts give one by one, "
                "so their inputs are not known; choose a method without calibration (rtn, uniform, hqq), or leave mlp out of "
                "the layers of this part"
            )

    def _tokens(self, hidden: Tensor, chosen: Tensor | None, index: int) -> tuple[Tensor, Tensor]:
        if self.scaled_inputs:
            own = hidden.view(self.count, -1, hidden.shape[-1])[index]
            rows = (own != 0).any(dim=-1).nonzero().flatten()  # A value that is not finite is no zero.
            return own[rows], rows
        assert chosen is not None
        rows = (chosen == index).any(dim=-1).nonzero().flatten()
        return hidden[rows], rows

    def _between(self, x: Tensor, index: int) -> Tensor:
        """Return the second projection's inputs, by the module's own activation."""
        first = self._linear(x, self.first, index)
        if self.scaled_inputs:
            gate, up = first.chunk(2, dim=-1)
            return up * self.module.act_fn(gate)  # type: ignore[operator]
        gated = getattr(self.module, "has_gate", True)
        return self.module._apply_gate(first) if gated else self.module.act_fn(first)  # type: ignore[operator]

    def _linear(self, x: Tensor, parameter: str, index: int) -> Tensor:
        stored = getattr(self.module, parameter)[index]
        out = x.to(stored.dtype) @ self.oriented(stored).T
        bias = getattr(self.module, f"{parameter}_bias", None)
        return out if bias is None else out + bias[index]


def find(module: nn.Module) -> Experts | None:
    """Return ``module`` as experts; None if it is something else, or of a class that is not known."""
    own = dict(module.named_parameters(recurse=False))
    first = next((name for name in ("gate_up_proj", "up_proj") if name in own), None)
    if first is None or any(own[name].dim() != 3 if name in own else True for name in (first, "down_proj")):
        return None
    if type(module).__name__ in SCALED_INPUTS:
        return Experts(module, transposed=True, first=first, scaled_inputs=True)
    # Added by use_experts_implementation to a class and its instances.
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool) and callable(getattr(module, "_apply_gate", None)):
        return Experts(module, transposed, first, scaled_inputs=False)
    return None


def at(model: nn.Module, path: str) -> Experts:
    """Return the experts at ``path``; TypeError if the module is something else."""
    module = model.get_submodule(path)
    found = find(module)
    if found is None:
        raise TypeError(f"{path} is a {type(module).__name__}, which holds no experts that are known")
    return found


def view(model: nn.Module, name: str) -> Tensor:
    """Return the weight of a slice as a view ``[O, I]`` of the module's parameter."""
    found = parse(name)
    assert found is not None
    return at(model, found.module).weight(found.parameter, found.index)


def by_module(names: Iterable[str]) -> dict[str, list[str]]:
    """Group names of slices by the path of their experts; other names are left out."""
    return grouped(filter(parse, names), module_of)


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors of a call of experts in order: hidden states, chosen experts, their scores."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]


def with_slices(
    module: nn.Module, parameter: str, own: Tensor, names: Iterable[str], weights: Mapping[str, Tensor]
) -> Tensor:
    """Return a copy of ``own``, a parameter of experts, with ``weights[name]`` ``[O, I]`` in its slices ``names``."""
    experts = find(module)
    assert experts is not None
    changed = own.clone()
    for name in names:
        found = parse(name)
        if found is not None and found.parameter == parameter:
            experts.oriented(changed[found.index]).copy_(weights[name])
    return changed
