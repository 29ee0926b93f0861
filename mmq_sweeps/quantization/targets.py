"""Find the linears of a model that a cell quantizes.

The linears of one layer kind (attention, mlp) in one block of a part are a ``Unit``: they are selected, quantized and
stored together, so every selection of blocks and layers consists of whole units.

The token embeddings and the output layer are parts of one unit each, of one weight. Tied ones are a single weight: quantizing
either quantizes both.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from mmq_sweeps.errors import TargetError, one_of
from mmq_sweeps.identity.assignment import Structure, block_groups, rules_in, selects
from mmq_sweeps.identity.end_parts import EMBEDDINGS, END_PARTS, HEAD
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.models import experts
from mmq_sweeps.quantization.blocks import find_blocks, linears_by_kind, loose_by_kind, refuse_computed, resolve, under

# Methods of conf/method that need no calibration.
UNCALIBRATED = ("rtn", "uniform", "hqq", "normal_float")
# Key of the group size of all parts without their own.
METHOD_GROUP_SIZE = "method.group_size"


@dataclass(frozen=True)
class Unit:
    """Linears of a layer kind in a block; ``linears`` maps the full name of each to its shape ``(O, I)``.

    The token embeddings are a linear of that sense as well, ``O`` the size of the vocabulary, and so is the slice of an expert
    in a tensor of many, ``PATH.gate_up_proj[3]``. ``loose`` maps weight matrices outside linears to a description of their
    holder; it is empty if they are a small share of the unit's weights.
    """

    part: str
    block: int
    group: str
    kind: str
    linears: Mapping[str, tuple[int, int]]
    loose: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.part if self.kind == self.part else f"{self.part}.{self.block}.{self.kind}"


@dataclass(frozen=True)
class Part:
    """A part found in a model: its module's path, its blocks' paths in order, and its units.

    ``masked`` selects the linears that receive the tokens of the attention mask: all, none, or those under some names
    in a block.
    """

    name: str
    module: str
    blocks: tuple[str, ...]
    units: tuple[Unit, ...]
    masked: bool | tuple[str, ...]
    model: str = ""  # the class of the model, for messages
    # Of embeddings and head: the other one, if they are one tensor.
    tied_to: str | None = None
    # Of the head: the part whose last block's tokens it receives, and whose mask they therefore have.
    follows: Part | None = None
    # Tells vision tokens from text tokens (``vision_tokens.py``); None if linears see tokens of one kind only.
    vision_tokens: str | None = None

    @property
    def at_an_end(self) -> bool:
        """True for token embeddings and head, which have neither blocks nor layer kinds."""
        return self.name in END_PARTS

    def holds(self, name: str) -> bool:
        """Return whether the parameter or module ``name`` lies in one of the blocks."""
        return any(name.startswith(f"{block}.") for block in self.blocks)

    @cached_property
    def masked_linears(self) -> dict[str, bool]:
        """Full names of the linears that ``masked`` selects; true if they may receive only the last of the mask's tokens."""
        linears = {name: unit.block for unit in self.units for name in unit.linears}
        if isinstance(self.masked, bool):
            return dict.fromkeys(linears, False) if self.masked else {}
        inner = {name: name.removeprefix(f"{self.blocks[block]}.") for name, block in linears.items()}
        return {name: True for name in linears if under(inner[name], self.masked)}

    @property
    def structure(self) -> Structure:
        """The part's units by number, as assignments name them."""
        return Structure(len(self.blocks), tuple((unit.block, unit.kind) for unit in self.units if unit.linears))

    def select(self, selection: Mapping[str, Any]) -> list[Unit]:
        """Return the units that ``selection`` (``identity/assignment.py``) selects.

        Embeddings and head have one unit, whatever is selected. Raises TargetError if there is no linear among the units, or
        if one has weights outside linears.
        """
        chosen = [unit for rule in rules_in(selection) for unit in self.chosen(rule)]
        if not any(unit.linears for unit in chosen):
            groups = {group: f"{len(span)} blocks" for group, span in block_groups(len(self.blocks)).items()}
            rule = rules_in(selection)[0]
            where = " ".join(f"{name}={list(rule[name])}" for name in ("blocks", "layers", "units") if name in rule)
            raise TargetError(
                f"component.{self.name} with {where} selects no linear: of the {len(self.blocks)} blocks of {self.name}, "
                + ", ".join(f"{group} has {count}" for group, count in groups.items())
            )
        self._refuse_other_weights(chosen)
        return chosen

    def chosen(self, rule: Mapping[str, Any]) -> list[Unit]:
        """Return the units of one rule of a selection; there may be none, as in a part of two blocks in front."""
        if self.at_an_end:
            return list(self.units)
        return [unit for unit in self.units if selects(rule, unit.block, unit.group, unit.kind)]

    def _refuse_other_weights(self, chosen: Iterable[Unit]) -> None:
        """Raise a TargetError if much of a unit would stay at full precision although the cell says, e.g., "3 bits"."""
        wrong = [unit for unit in chosen if unit.loose or not unit.linears]
        if not wrong:
            return
        kind = wrong[0].kind
        of_kind = [unit for unit in wrong if unit.kind == kind]
        blocks, loose = [unit.block for unit in of_kind], of_kind[0].loose
        held = "; ".join(f"{self.blocks[blocks[0]]}.{name} is {what}" for name, what in loose.items())
        where = f"{len(blocks)} of {len(self.blocks)} blocks ({_spans(blocks)})"
        problem = (
            f"has {'weights outside' if loose else 'no'} linear{'s' * bool(loose)} in {where}{': ' * bool(held)}{held}"
        )
        free = [group for group, span in block_groups(len(self.blocks)).items() if not set(span) & set(blocks)]
        others = [
            other for other in (unit.kind for unit in self.units if not unit.loose and unit.linears) if other != kind
        ]
        ways = [f"component.{self.name}.layers=[{others[0]}]"] if others else []
        ways += [f"component.{self.name}.blocks=[{','.join(free)}]"] if free else []
        raise TargetError(
            f"{self.model or 'model'}: component.{self.name}: its {kind} {problem}. Only linears are quantized, and the rest "
            f"would stay at full precision; choose {' or '.join([*ways, f'no component.{self.name}'])}"
        )


def _spans(numbers: Iterable[int]) -> str:
    """Format ``[0, 1, 2, 5]`` as ``0 to 2, 5``."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in spans)


def find_parts(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Part]:
    """Return every part of ``model`` by name, embeddings and head last, as the model's ``config`` says where they are.

    Call it before the model has run, which parts tied weights that are offloaded. Raises TargetError if a path, a kind or a
    name does not resolve.
    """
    for name in END_PARTS:
        if name in config["parts"]:
            raise TargetError(
                f"model.parts.{name}: {name} is no part with blocks; give its paths as model.{name}=[PATH]"
            )
    found = {name: _find_part(model, name, where) for name, where in config["parts"].items()}
    before = _before_head(found)
    found |= {
        name: _find_end(model, name, config[name], before if name == HEAD else None)
        for name in END_PARTS
        if config.get(name)
    }
    if EMBEDDINGS in found and HEAD in found:
        embedding, head = (model.get_submodule(found[name].module) for name in (EMBEDDINGS, HEAD))
        if embedding.weight is head.weight:
            found[EMBEDDINGS] = replace(found[EMBEDDINGS], tied_to=HEAD)
            found[HEAD] = replace(found[HEAD], tied_to=EMBEDDINGS)
    _refuse_shared(
        model, [unit for part in found.values() if part.name != HEAD or not part.tied_to for unit in part.units]
    )
    return found


def tied_problems(parts: Mapping[str, Part], selected: Collection[str], model: str) -> list[str]:
    """Return a sentence if ``selected``, parts that one cell quantizes, are one weight; ``model`` is its name."""
    if not all(name in selected and name in parts and parts[name].tied_to for name in END_PARTS):
        return []
    return [
        f"component.{EMBEDDINGS} and component.{HEAD}: of {model} they are one weight ({parts[EMBEDDINGS].module} and "
        f"{parts[HEAD].module} are tied), which cannot be quantized twice; choose one, it quantizes both"
    ]


def inputs_problem(part: str, method: str) -> str | None:
    """Return a sentence if ``part`` has no inputs whose statistics the calibrated ``method``, a name, could use."""
    if part != EMBEDDINGS:
        return None
    key = f"component.{EMBEDDINGS}"
    choices = one_of(UNCALIBRATED).removeprefix("Choose ").removesuffix(".")
    return (
        f"{key}: method={method} needs statistics of a linear's inputs, and embeddings have none; choose "
        f"{key}.method={choices}"
    )


def check_format(units: Iterable[Unit], format: Format, key: str = METHOD_GROUP_SIZE) -> list[str]:
    """Return a sentence per part and width of linears whose columns the format's groups do not divide.

    ``key`` is the setting of the group size; if it is the method's, the sentence names the override for the part alone.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for unit in units:
        for name, shape in unit.linears.items():
            try:
                format.groups(shape)
            except ValueError as error:
                found.setdefault((unit.part, str(error)), []).append(name)
    problems = []
    for (part, why), names in found.items():
        override = f"; for {part} alone: component.{part}.group_size=channel" if key == METHOD_GROUP_SIZE else ""
        linears = "1 linear" if len(names) == 1 else f"{len(names)} linears"
        problems.append(f"{key}: {why} ({linears} of {part}, such as {names[0]}){override}")
    return problems


def _find_part(model: nn.Module, name: str, where: Mapping[str, Any]) -> Part:
    module_path, module = resolve(model, where["module"], f"model.parts.{name}.module")
    relative, blocks = find_blocks(module, where["blocks"], f"model.parts.{name}.blocks")
    paths = tuple(f"{module_path}.{path}" for path in blocks)
    groups = {index: group for group, span in block_groups(len(paths)).items() for index in span}
    kinds = {"attention": where["attention"], "mlp": where["mlp"]}
    units = []
    for index, (path, block) in enumerate(zip(paths, blocks.values(), strict=True)):
        by_kind = linears_by_kind(block, kinds, path)
        loose = loose_by_kind(block, kinds, by_kind, path)
        units += [
            Unit(
                name,
                index,
                groups[index],
                kind,
                {f"{path}.{inner}": shape for inner, shape in linears.items()},
                loose[kind],
            )
            for kind, linears in by_kind.items()
            if kinds[kind]
        ]
    if not any(unit.linears for unit in units):
        holders = [
            f"; of its {unit.kind}, {paths[unit.block]}.{inner} is {what}"
            for unit in units
            for inner, what in unit.loose.items()
        ]
        raise TargetError(
            f"{type(model).__name__}: model.parts.{name}: no linear lies in the blocks under "
            f"{' and '.join(f'{module_path}.{path}' for path in relative)}{''.join(holders[:1])}"
        )
    masked = _masked(where["masked"], f"model.parts.{name}.masked")
    vision_tokens = where.get("vision_tokens")
    part = Part(name, module_path, paths, tuple(units), masked, type(model).__name__, vision_tokens=vision_tokens)
    for inner in part.masked if isinstance(part.masked, tuple) else ():
        if not replace(part, masked=(inner,)).masked_linears:
            raise TargetError(f"model.parts.{name}.masked: {inner} holds no linear of a block of {name}")
    return part


def _find_end(model: nn.Module, name: str, paths: Any, follows: Part | None) -> Part:
    """Find the token embeddings, or the head behind the part ``follows``."""
    key, expected = f"model.{name}", nn.Embedding if name == EMBEDDINGS else nn.Linear
    if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
        raise TargetError(f"{key}={paths!r}: give a list of paths, which are tried in order, or null if there is none")
    path, module = resolve(model, paths, key)
    if not isinstance(module, expected):
        raise TargetError(
            f"{key}: {path} of {type(model).__name__} is a {type(module).__name__}, no {expected.__name__}"
        )
    refuse_computed(module, path)
    shape = (module.weight.shape[0], module.weight.shape[1])
    unit = Unit(name, 0, "front" if name == EMBEDDINGS else "end", name, {path: shape})
    # Without a part before it, its tokens are taken for those of the mask that the model is called with.
    masked = (path,) if name == HEAD and (follows is None or follows.masked) else False
    kinds = None if follows is None else follows.vision_tokens
    return Part(name, path, (path,), (unit,), masked, type(model).__name__, follows=follows, vision_tokens=kinds)


def _before_head(parts: Mapping[str, Part]) -> Part | None:
    """Return the part whose output the head receives: the language part, else the last one that is given the text."""
    texts = [part for part in parts.values() if part.masked is True]
    return parts.get("language") or (texts[-1] if texts else None)


def _masked(masked: Any, key: str) -> bool | tuple[str, ...]:
    if isinstance(masked, bool):
        return masked
    if isinstance(masked, str) or not all(isinstance(inner, str) for inner in masked):
        raise TargetError(f"{key}={masked}: give true, false or a list of names inside a block")
    return tuple(masked)


def _refuse_shared(model: nn.Module, units: Iterable[Unit]) -> None:
    owner: dict[tuple[int, int], str] = {}
    for unit in units:
        for name in unit.linears:
            part = experts.parse(name)
            if part is None:
                weight = (id(model.get_submodule(name).weight), 0)
            else:
                weight = (id(getattr(model.get_submodule(part.module), part.parameter)), part.index)
            if weight in owner:
                raise TargetError(
                    f"a linear is selected twice: {owner[weight]} and {unit.part}'s {name} are one weight"
                )
            owner[weight] = f"{unit.part}'s {name}"
