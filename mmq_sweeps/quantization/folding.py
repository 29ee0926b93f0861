"""Fold input scales into the layer before: a norm, or a linear whose output is only multiplied or averaged on its way.

AWQ multiplies the columns of linears by a scale. If what computes their input is divided by it, nothing else of the model
changes, and no scale is stored. Where that holds is not known by names: candidates are proposed from a run of the block,
and each is proved on it. Powers of two commute with rounding, so random ones, folded into the candidate and out of the
linears, must leave the outputs of these and of the block as they are, bit for bit. A norm whose output has another reader
fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn
from torch.func import functional_call

from mmq_sweeps.methods.base import Solution
from mmq_sweeps.methods.formats import QuantizedWeight, divided_rows
from mmq_sweeps.models.loading import LoadedModel

# How many linears before another are tried as its source, and into how many parts the rows of a source may fall (query,
# key and value in one linear).
SOURCES, MOST_PARTS = 3, 3
LARGEST_POWER = 2

# Makes the arguments of a call of a block anew: a block may change them in place.
Call = Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]


@dataclass(frozen=True)
class Fold:
    """Where the input scale of ``linears`` goes that share an input.

    ``source`` is divided by it: a norm, or the rows from ``start`` of a linear.
    """

    linears: tuple[str, ...]
    source: str
    start: int | None = None


@torch.no_grad()
def find_folds(model: nn.Module, path: str, calls: Sequence[Call], units: Sequence[Collection[str]]) -> list[Fold]:
    """Return the folds that hold in every one of ``calls`` of the block at ``path``.

    Args:
        units: full names of linears, quantized together; a scale does not leave them but into a norm.
    """
    block = _Block(model, path, calls)
    proposed = [list(block.candidates(linears)) for unit in units for linears in block.sharing_input(unit)]
    block.forget_activations()
    first = (next(filter(block.holds, candidates), None) for candidates in proposed)
    return [fold for fold in first if fold is not None]


@dataclass
class _Run:
    """A call of a block: its output, and inputs and outputs by linear, in the order in which they ran, and by norm."""

    output: list[Tensor] = field(default_factory=list)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)

    def keep(
        self, name: str, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Keep the input and the output of a linear; a forward hook behind its name."""
        self.inputs[name] = args[0] if args else next(iter(kwargs.values()))
        self.outputs[name] = output

    def keep_norm(self, name: str, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Keep the output of a norm; a forward hook behind its name."""
        if isinstance(output, Tensor):
            self.norms[name] = output


class _Block:
    """A block and its calls, run in a dtype in which small powers of two lose no digit."""

    def __init__(self, model: nn.Module, path: str, calls: Sequence[Call]) -> None:
        self._path, self._block, self._calls = path, model.get_submodule(path), calls
        self._own = {
            name: tensor.float()
            for name, tensor in [*self._block.named_parameters(), *self._block.named_buffers()]
            if tensor.dtype is torch.float16  # Halves become subnormal.
        }
        self._repeated = _repeated(model)
        self._runs = [self._run(call, self._own) for call in calls]

    def sharing_input(self, unit: Collection[str]) -> list[list[str]]:
        """Group those linears of ``unit`` that ran by the input that they share."""
        groups: list[list[str]] = []
        for run in self._runs:
            grouped: dict[int, list[str]] = {}
            for name, value in run.inputs.items():
                if name in unit and not any(name in group for group in groups):
                    grouped.setdefault(id(value), []).append(name)
            groups += grouped.values()
        return groups

    def forget_activations(self) -> None:
        """Drop the tensors that only ``sharing_input`` and ``candidates`` need."""
        for run in self._runs:
            run.inputs.clear()
            run.norms.clear()

    def candidates(self, linears: Sequence[str]) -> Iterator[Fold]:
        """Yield where the input scale of ``linears``, which share an input, may go, the most probable first."""
        run = next(run for run in self._runs if linears[0] in run.inputs)
        value, names = run.inputs[linears[0]], tuple(linears)
        norms = [path for path, output in run.norms.items() if output is value]
        if norms:
            yield Fold(names, norms[-1])
        elif len(linears) == 1:
            yield from self._linears_before(run, linears[0])

    def _linears_before(self, run: _Run, name: str) -> Iterator[Fold]:
        order = list(run.inputs)
        width = self._linear(name).in_features
        before = [
            other
            for other in reversed(order[: order.index(name)])
            if self._linear(other).out_features in [width * parts for parts in range(1, MOST_PARTS + 1)]
        ]
        for source in before[:SOURCES]:
            for start in reversed(range(0, self._linear(source).out_features, width)):
                yield Fold((name,), source, start)

    def holds(self, fold: Fold) -> bool:
        """Return whether random powers of two in ``fold`` leave the outputs of every call as they are.

        Those of the linears too: beside a residual, a linear's output may vanish.
        """
        if fold.source in self._repeated:
            return False
        width = self._linear(fold.linears[0]).in_features
        exponents = torch.randint(
            -LARGEST_POWER, LARGEST_POWER + 1, (width,), generator=torch.Generator().manual_seed(width)
        )
        own = {f"{name}.weight": self._parameter(f"{name}.weight") for name in fold.linears}
        powers = (2.0**exponents).to(next(iter(own.values())).device)
        changed = {name: weight * powers.to(weight.dtype) for name, weight in own.items()}
        source = {name: self._parameter(name) for name in _parameters(self._module(fold.source), fold.source)}
        changed |= {name: _divided(tensor, powers, fold.start) for name, tensor in source.items()}
        inside = self._own | {self._inner(name): tensor for name, tensor in changed.items()}
        for call, run in zip(self._calls, self._runs, strict=True):
            folded = self._run(call, inside)
            ran = [name for name in fold.linears if name in run.outputs]
            before, after = ([*one.output, *(one.outputs[name] for name in ran)] for one in (run, folded))
            if len(before) != len(after) or not all(map(torch.equal, before, after)):
                return False
        return True

    def _run(self, call: Call, parameters: Mapping[str, Tensor]) -> _Run:
        run = _Run()
        with ExitStack() as hooks:
            for inner, module in self._block.named_modules():
                name = f"{self._path}.{inner}"
                if isinstance(module, nn.Linear):
                    hooks.enter_context(module.register_forward_hook(partial(run.keep, name), with_kwargs=True))
                elif inner and _is_norm(module):
                    hooks.enter_context(module.register_forward_hook(partial(run.keep_norm, name)))
            args, kwargs = call()
            if self._own:
                args, kwargs = recursively_apply(_single, (args, kwargs))
            run.output = list(tensors_in(functional_call(self._block, dict(parameters), args, kwargs)))
        return run

    def _inner(self, name: str) -> str:
        return name.removeprefix(f"{self._path}.")

    def _module(self, name: str) -> nn.Module:
        return self._block.get_submodule(self._inner(name))

    def _linear(self, name: str) -> nn.Linear:
        module = self._module(name)
        assert isinstance(module, nn.Linear)
        return module

    def _parameter(self, name: str) -> Tensor:
        inner = self._inner(name)
        return self._own[inner] if inner in self._own else self._block.get_parameter(inner)


def _repeated(model: nn.Module) -> set[str]:
    """Return the paths of modules that lie at several, or have the weight of another: they may run elsewhere too."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for own in (module, module._parameters.get("weight")):
            if own is not None:
                paths.setdefault(id(own), []).append(path)
    return {path for shared in paths.values() if len(shared) > 1 for path in shared}


def _is_norm(module: nn.Module) -> bool:
    """Return whether ``module`` may be a norm: one with a weight for each feature."""
    own = module._parameters.get("weight")
    return own is not None and own.dim() == 1


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors in ``output``, however nested."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (list, tuple, Mapping)):
        for value in output.values() if isinstance(output, Mapping) else output:
            yield from tensors_in(value)


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.float16 else tensor


def _parameters(module: nn.Module, path: str) -> list[str]:
    return [f"{path}.{name}" for name in ("weight", "bias") if module._parameters.get(name) is not None]


def _divided(tensor: Tensor, scale: Tensor, start: int | None) -> Tensor:
    """Return ``tensor`` with its first dimension divided by ``scale``, from ``start``; rounded once to its dtype."""
    first = start or 0
    rows = slice(first, first + len(scale))
    changed = tensor.detach().clone()
    divisor = scale.reshape(-1, *[1] * (tensor.dim() - 1)).to(tensor.device)
    changed[rows] = (changed[rows].float() / divisor).to(tensor.dtype)
    return changed


@dataclass
class FoldedScales:
    """The input scales of one unit in one format, as they are folded.

    Linears must come before their sources. ``dense`` collects, by name, the parameters beside quantized weights that take
    other values; ``rows`` the divisor of each row of a linear's own weight.
    """

    loaded: LoadedModel
    dense: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def folded(
        self, names: Sequence[str], originals: Sequence[Tensor], solution: Solution, fold: Fold | None
    ) -> tuple[Solution, list[Tensor]]:
        """Return ``solution`` without the input scale that ``fold`` takes, and with rows that take others divided by them.

        Also return the weights that it stands for, to compare with the full-precision ``originals`` ``[O, I]``.
        """
        weights, restored = [], []
        for name, original, quantized in zip(names, originals, solution.weights, strict=True):
            solved = self._with_rows(name, original, quantized)
            stands_for = solved.dequantize()
            if name in self.rows:
                stands_for *= self.rows[name][:, None]
            restored.append(stands_for)
            weights.append(solved if fold is None else replace(solved, input_scale=None))
        scale = None if fold is None else solution.weights[0].input_scale
        if fold is None or scale is None or bool((scale == 1).all()):
            return Solution(weights, solution.notes), restored
        self.fold(fold, scale.float())
        return Solution(weights, {**solution.notes, "folded_into": fold.source}), restored

    def _with_rows(self, name: str, original: Tensor, quantized: QuantizedWeight) -> QuantizedWeight:
        """Return ``quantized`` with the rows divided whose outputs have a scale folded into them."""
        if name not in self.rows:
            return quantized
        weight = original.float()
        if quantized.input_scale is not None:
            weight = weight * quantized.input_scale.float()
        return divided_rows(quantized, weight, self.rows[name])

    def fold(self, fold: Fold, scale: Tensor) -> None:
        """Divide the source of ``fold`` by ``scale``."""
        with self.loaded.onloaded(fold.source):
            module = self.loaded.model.get_submodule(fold.source)
            names = _parameters(module, fold.source)
            if fold.start is not None:
                divisor = self.rows.setdefault(fold.source, scale.new_ones(module.out_features))
                divisor[fold.start : fold.start + len(scale)] = scale
                names = [name for name in names if name.endswith(".bias")]
            for name in names:
                value = self.dense.get(name, self.loaded.model.get_parameter(name))
                self.dense[name] = _divided(value, scale, fold.start)
                if not self.dense[name].isfinite().all():
                    raise ValueError(
                        f"{name}: divided by the input scale it exceeds {value.dtype}; choose method.fuse=false"
                    )
