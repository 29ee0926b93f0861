"""Find modules by path, and the linears and other weight matrices of a block, by layer kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from mmq_sweeps.errors import TargetError, one_of
from mmq_sweeps.models import experts

# Weights outside linears are ignored up to this share of a unit's weights: routers, tables of positions.
OVERLOOKED = 0.05
# A parameter is a weight matrix if two of its dimensions are at least this long; depthwise kernels are none.
MATRIX = 8


def resolve(root: nn.Module, candidates: Iterable[str], key: str) -> tuple[str, nn.Module]:
    for path in candidates:
        try:
            return path, root.get_submodule(path)
        except AttributeError:
            continue
    raise _unresolved(root, candidates, key)


def _unresolved(root: nn.Module, candidates: Iterable[str], key: str) -> TargetError:
    children = [name for name, _ in root.named_children()]
    return TargetError(
        f"{key}: none of {', '.join(candidates)} is a module of {type(root).__name__}, which has {', '.join(children)}"
    )


def find_blocks(module: nn.Module, candidates: Iterable[Any], key: str) -> tuple[list[str], dict[str, nn.Module]]:
    """Return the first of ``candidates`` that resolves, as paths, and its blocks by their paths in ``module``.

    A candidate is a path, or a list of paths whose blocks follow each other. Lists inside lists are stages: only their
    members are called, never a list.
    """
    candidates = list(candidates)
    wanted = [[path] if isinstance(path, str) else path for path in candidates]
    if not all(isinstance(paths, list) and paths and all(isinstance(path, str) for path in paths) for paths in wanted):
        raise TargetError(f"{key}={candidates}: give paths, or a list of paths whose blocks follow each other")
    for paths in wanted:
        try:
            stacks = {path: module.get_submodule(path) for path in paths}
        except AttributeError:
            continue
        return paths, {path: block for root, stack in stacks.items() for path, block in _members(root, stack)}
    raise _unresolved(module, [" and ".join(paths) for paths in wanted], key)


def _members(path: str, stack: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in stack.named_children():
        if isinstance(child, nn.ModuleList):
            yield from _members(f"{path}.{name}", child)
        else:
            yield f"{path}.{name}", child


def linears_by_kind(
    block: nn.Module, kinds: Mapping[str, list[str]], path: str
) -> dict[str, dict[str, tuple[int, int]]]:
    by_kind: dict[str, dict[str, tuple[int, int]]] = {kind: {} for kind in kinds}
    for name, module in block.named_modules():
        shapes = _targets(name, module)
        if not shapes:
            continue
        matching = [kind for kind, prefixes in kinds.items() if under(name, prefixes)]
        if len(matching) != 1:
            what = "no layer kind" if not matching else f"{len(matching)} layer kinds"
            raise TargetError(f"{path}.{name} belongs to {what}; name it under exactly one. {one_of(kinds)}")
        if isinstance(module, nn.Linear):
            refuse_computed(module, f"{path}.{name}")
        by_kind[matching[0]] |= shapes
    return by_kind


def refuse_computed(module: nn.Module, path: str) -> None:
    if "weight" not in dict(module.named_parameters(recurse=False)):
        raise TargetError(
            f"{path} computes its weight in every call (as weight_norm and pruning do), so a quantized one would be "
            "overwritten; make the weight a parameter (remove_weight_norm, prune.remove) and save the checkpoint"
        )


def _targets(name: str, module: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shapes of the weights in ``module`` to quantize: a linear, the slices of its experts, or nothing."""
    if isinstance(module, nn.Linear):
        return {name: (module.out_features, module.in_features)}
    held = experts.find(module)
    return (
        {} if held is None else {f"{name}.{inner}" if name else inner: shape for inner, shape in held.shapes().items()}
    )


def loose_by_kind(
    block: nn.Module, kinds: Mapping[str, list[str]], linears: Mapping[str, Mapping[str, tuple[int, int]]], path: str
) -> dict[str, dict[str, str]]:
    """Return the weight matrices outside linears by kind, with a description of each one's holder.

    Raises TargetError if such weights belong to no kind, as for a linear without a kind.
    """
    found: dict[str, dict[str, nn.Parameter]] = {kind: {} for kind in kinds}
    homeless: dict[str, nn.Parameter] = {}
    holders: dict[str, str] = {}
    for name, module in block.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            continue
        held = experts.find(module)
        for own, parameter in module.named_parameters(recurse=False):
            if held is not None and own in held.parameters:
                continue
            if sum(length >= MATRIX for length in parameter.shape) < 2:
                continue
            full = f"{name}.{own}" if name else own
            holders[full] = type(module).__name__
            kind = next((kind for kind, prefixes in kinds.items() if under(full, prefixes)), None)
            (homeless if kind is None else found[kind])[full] = parameter
    quantizable = {kind: sum(rows * columns for rows, columns in linears[kind].values()) for kind in kinds}

    def described(loose: Mapping[str, nn.Parameter], beside: int) -> dict[str, str]:
        weights = sum(parameter.numel() for parameter in loose.values())
        if weights <= OVERLOOKED * (weights + beside):
            return {}
        return {
            name: f"a parameter {list(parameter.shape)} of a {holders[name]}, which is no linear"
            for name, parameter in loose.items()
        }

    if none := described(homeless, sum(quantizable.values())):
        name, what = next(iter(none.items()))
        raise TargetError(
            f"{path}.{name} belongs to no layer kind; it is {what}. Name it under exactly one. {one_of(kinds)}"
        )
    return {kind: described(loose, quantizable[kind]) for kind, loose in found.items()}


def under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
