"""Match a checkpoint's tensors and targets with the modules of its class, without loading weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from mmq_sweeps.models.checkpoint_checks import OLD_BUFFERS
from mmq_sweeps.models.quantized.checkpoint import StoredCheckpoint
from mmq_sweeps.models.quantized.configuration import COMPRESSED_TENSORS, Configuration, Scheme, matches
from mmq_sweeps.models.quantized.layouts import AWQ, GPTQ, QuantizedLinear
from mmq_sweeps.models.shapes import tied


@dataclass(frozen=True)
class FittedCheckpoint:
    """A checkpoint beside the modules of its class.

    * ``linears``: quantized linears by the module's name, each with the one width and symmetry that the configuration says.
    * ``missing``: weights of the model that the files do not hold, which a loader would draw at random; ``unexpected``: names
      in the files that the model has no place for.
    * ``unread``: linears that the files hold quantized and that the configuration does not say so of.
    * ``unstored``: linears that the configuration says are quantized and that the files hold otherwise.
    * ``empty_targets``: targets that match no module.
    * ``contradictions``: sentences on linears that are stored otherwise than the configuration says.
    * ``tied``: quantized linears that share their weight with another module; ``embeddings``: quantized embeddings.
    """

    checkpoint: StoredCheckpoint
    model: transformers.PreTrainedModel
    linears: Mapping[str, QuantizedLinear]
    schemes: Mapping[str, Scheme]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    unread: tuple[str, ...]
    unstored: tuple[str, ...]
    empty_targets: tuple[str, ...]
    contradictions: tuple[str, ...]
    tied: tuple[str, ...]
    embeddings: tuple[str, ...]


def fit(checkpoint: StoredCheckpoint, model: transformers.PreTrainedModel) -> FittedCheckpoint:
    """Match ``checkpoint`` with ``model``, built without weights from the checkpoint's own configuration."""
    stored = [*checkpoint.dense, *(f"{name}.weight" for name in checkpoint.linears)]
    places = _places(model, stored)
    parameters = {name: id(value) for name, value in model.state_dict(keep_vars=True).items()}
    filled = {parameters[place] for own in places.values() for place in own if place in parameters}
    missing = [name for name, own in parameters.items() if own not in filled]
    unexpected = [name for name, own in places.items() if not any(place in parameters for place in own)]
    lacking = [f"{linear.name}.{suffix}" for linear in checkpoint.linears.values() for suffix in linear.lacks]
    modules = dict(model.named_modules())
    at = {_module(places[f"{name}.weight"], modules) or name: linear for name, linear in checkpoint.linears.items()}
    schemes, unread, unstored = _by_configuration(checkpoint.configuration, modules, at)
    resolved, contradictions = _resolved(checkpoint.configuration, at, schemes)
    shared = tied(model)
    return FittedCheckpoint(
        checkpoint,
        model,
        resolved,
        schemes,
        missing=tuple(sorted([*_without(missing, model._keys_to_ignore_on_load_missing), *lacking])),
        unexpected=tuple(sorted(_without(unexpected, model._keys_to_ignore_on_load_unexpected))),
        unread=tuple(unread),
        unstored=tuple(unstored),
        empty_targets=tuple(_empty_targets(checkpoint.configuration, modules)),
        contradictions=tuple(contradictions),
        tied=tuple(name for name in at if name in shared),
        embeddings=tuple(name for name in at if isinstance(modules.get(name), nn.Embedding)),
    )


def _places(model: transformers.PreTrainedModel, names: Iterable[str]) -> dict[str, list[str]]:
    """Return the parameters that the loader of transformers would fill from each name in a checkpoint."""
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    of_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state = model.state_dict()
    found = {}
    for name in names:
        place, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if place not in state and name in state:
            place, pattern = rename_source_key(name, [], [], model.base_model_prefix, state)
        targets = of_pattern[pattern].target_patterns if pattern is not None else []
        found[name] = [place, *(place.replace(targets[0], other) for other in targets[1:])]
    return found


def _module(places: Iterable[str], modules: Mapping[str, nn.Module]) -> str | None:
    """Return the module whose weight is at one of ``places``; None for experts that share one tensor."""
    return next((name for place in places if (name := place.removesuffix(".weight")) in modules), None)


def _without(names: Iterable[str], patterns: Iterable[str] | None) -> list[str]:
    ignored = [re.compile(pattern) for pattern in patterns or ()]
    return [
        name
        for name in names
        if not name.endswith(OLD_BUFFERS) and not any(pattern.search(name) for pattern in ignored)
    ]


def _classes(module: nn.Module) -> tuple[str, ...]:
    return tuple(own.__name__ for own in type(module).__mro__)


def _by_configuration(
    configuration: Configuration | None, modules: Mapping[str, nn.Module], stored: Mapping[str, QuantizedLinear]
) -> tuple[dict[str, Scheme], list[str], list[str]]:
    """Return the scheme of each module, and the linears in which configuration and files disagree."""
    if configuration is None:
        return {}, list(stored), []
    if configuration.method != COMPRESSED_TENSORS:
        return {}, [], _left_dense(configuration, modules, stored)
    schemes = {
        name: scheme
        for name, module in modules.items()
        if isinstance(module, (nn.Linear, nn.Embedding))
        and (scheme := configuration.scheme_of(name, _classes(module))) is not None
    }
    unread = [name for name in stored if name not in schemes]
    return schemes, unread, [name for name in schemes if name not in stored]


def _left_dense(
    configuration: Configuration, modules: Mapping[str, nn.Module], stored: Mapping[str, QuantizedLinear]
) -> list[str]:
    """Return linears that an AWQ loader converts and that the files hold dense; other methods have rules of their own."""
    if configuration.method != "awq":
        return []
    kept = configuration.values.get("modules_to_not_convert") or []
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear) and name not in stored]
    # The output layer is never converted.
    return [
        name
        for name in linears
        if not name.endswith("lm_head")
        and not any(re.match(rf"{re.escape(key)}\.", name) or re.match(key, name) or name.endswith(key) for key in kept)
    ]


def _empty_targets(configuration: Configuration | None, modules: Mapping[str, nn.Module]) -> list[str]:
    if configuration is None:
        return []
    targets = dict.fromkeys(target for scheme in configuration.schemes for target in scheme.targets)
    named = {name: _classes(module) for name, module in modules.items()}
    return [target for target in targets if not any(matches(target, name, own) for name, own in named.items())]


def _resolved(
    configuration: Configuration | None, stored: Mapping[str, QuantizedLinear], schemes: Mapping[str, Scheme]
) -> tuple[dict[str, QuantizedLinear], list[str]]:
    """Return the linears with the width and symmetry of their configuration, and sentences on those that do not fit it."""
    found, problems = {}, []
    for name, linear in stored.items():
        if (scheme := schemes.get(name)) is not None:
            problems += _contradictions(name, linear, scheme)
            linear = replace(linear, widths=(scheme.bits,) if scheme.bits in linear.widths else linear.widths)
            if linear.group_size == "channel" and scheme.group_size == linear.shape[1]:
                linear = replace(linear, group_size=scheme.group_size)
        elif linear.layout in (GPTQ, AWQ) and configuration is not None:
            said = _said(configuration, name)
            if linear.widths and said is not None and said not in linear.widths:
                problems.append(f"{name}: is stored in {linear.widths[0]} bits, and {configuration.source} says {said}")
            values = configuration.values
            linear = replace(linear, symmetric=bool(values.get("sym", not values.get("zero_point", True))))
        found[name] = replace(linear, widths=linear.widths[:1])
    return found, problems


def _said(configuration: Configuration, name: str) -> int | None:
    """Return the width that a configuration of GPTQ, AWQ or AutoRound gives the linear ``name``."""
    values = configuration.values
    own = (values.get("extra_config") or {}).get(name) or {}
    for pattern, rule in (values.get("dynamic") or {}).items():
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), name):
            own = rule
    width = own.get("bits", configuration.bits)
    return int(width) if width is not None else None


def _contradictions(name: str, linear: QuantizedLinear, scheme: Scheme) -> list[str]:
    """Say in which ways a linear of compressed-tensors is stored otherwise than its scheme says."""
    found = []
    if linear.widths and scheme.bits not in linear.widths:
        widths = " or ".join(map(str, linear.widths))
        found.append(f"{name}: is stored in {widths} bits, and {scheme.name} says {scheme.bits}")
    elif linear.old_words:
        found.append(
            f"{name}: its {scheme.bits}-bit codes are packed as compressed-tensors did until 0.17.1, which later ones refuse "
            "or read as other numbers; compress it again"
        )
    one_group = linear.group_size == "channel" and scheme.group_size == linear.shape[1]
    if not linear.lacks and linear.group_size != scheme.group_size and not one_group and scheme.kind == "int":
        found.append(
            f"{name}: has a scale for every {_group(linear.group_size)}, and {scheme.name} says {_group(scheme.group_size)}"
        )
    if isinstance(scheme.group_size, int) and linear.shape[1] % scheme.group_size:
        found.append(
            f"{name}: {scheme.name} has groups of {scheme.group_size}, which do not divide its {linear.shape[1]} columns: it "
            "loads, and fails when it runs"
        )
    if linear.symmetric != scheme.symmetric and scheme.kind == "int":
        stored = "no zeros" if linear.symmetric else "zeros"
        found.append(
            f"{name}: is stored with {stored}, and {scheme.name} says symmetric={str(scheme.symmetric).lower()}"
        )
    return found


def _group(size: int | str) -> str:
    return f"{size} weights" if isinstance(size, int) else {"channel": "row", "tensor": "tensor"}.get(size, size)
