"""Canonical form of an assignment: bits, group size and method of every unit, by part.

An assignment can be written in many ways (a number, a mapping over block groups and layer kinds, a file of units), and each
gives the same *selections* here, so that a cell has one id. The selection of a part is a rule, or several::

    {"bits": 4, "blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
    {"rules": [{"bits": 4, "blocks": [...], "layers": ["attention"]}, {"bits": 3, "units": ["0.mlp", "5.mlp"]}]}

A rule selects whole block groups and layer kinds, or units by number; a part of a single tensor (embeddings, head) has one
rule that selects it as a whole. A rule has ``group_size`` and ``method`` only if they differ from the cell's method.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.identity.hashing import digest

FULL_PRECISION_BITS = 16
BLOCK_GROUPS = ("front", "middle", "end")
LAYER_KINDS = ("attention", "mlp")
# The order of parts in tables, figures and titles; a model's other parts follow by name.
PART_ORDER = ("vision", "connector", "embeddings", "language", "head")
SLOTS = tuple((group, kind) for group in BLOCK_GROUPS for kind in LAYER_KINDS)
# The target of a setting: a block group's layer kind, or a unit by block number and layer kind.
Slot = tuple[str, str]
Numbered = tuple[int, str]


def block_groups(count: int) -> dict[str, range]:
    """Return thirds of ``count`` blocks: ``front`` ``[0, n//3)``, ``middle`` ``[n//3, 2n//3)``, ``end`` ``[2n//3, n)``."""
    first, second = count // 3, 2 * count // 3
    return {"front": range(first), "middle": range(first, second), "end": range(second, count)}


@dataclass(frozen=True)
class Setting:
    """How a unit is quantized. ``method`` is a key of the caller's table of methods."""

    bits: int
    method: str
    group_size: int | str | None = None  # of a method that has no such field


@dataclass(frozen=True)
class Structure:
    """Units of a part: its number of blocks, and the layer kinds that each block has linears of."""

    blocks: int
    units: tuple[Numbered, ...]

    def slots(self) -> dict[Slot, list[Numbered]]:
        """Return the units of every slot, in order; a slot without units is empty."""
        group_of = {index: group for group, span in block_groups(self.blocks).items() for index in span}
        found: dict[Slot, list[Numbered]] = {slot: [] for slot in SLOTS}
        for block, kind in self.units:
            found[group_of[block], kind].append((block, kind))
        return found


@dataclass(frozen=True)
class Rule:
    """Units of a part with the same setting: ``units`` by number, or every unit of ``blocks`` and ``layers``."""

    setting: Setting
    blocks: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    units: tuple[Numbered, ...] = ()

    def where(self) -> dict[str, Any]:
        """Return the fields of a selection that name the units of the rule; empty for a part of a single tensor."""
        if self.units:
            return {"units": [unit_label(unit) for unit in self.units]}
        return {"blocks": list(self.blocks), "layers": list(self.layers)} if self.blocks else {}


def unit_label(unit: Numbered) -> str:
    """Format a unit inside its part, as ``17.mlp``."""
    return f"{unit[0]}.{unit[1]}"


def rules_of_slots(settings: Mapping[Slot, Setting]) -> list[Rule]:
    """Return the canonical rules of settings by slot; slots that are left out stay at full precision."""
    by_setting: dict[Setting, list[Slot]] = {}
    for slot in SLOTS:
        if slot in settings:
            by_setting.setdefault(settings[slot], []).append(slot)
    rules = [
        Rule(setting, groups, layers) for setting, slots in by_setting.items() for groups, layers in _products(slots)
    ]
    return sorted(rules, key=lambda rule: (BLOCK_GROUPS.index(rule.blocks[0]), LAYER_KINDS.index(rule.layers[0])))


def _products(slots: Collection[Slot]) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Split ``slots`` into products of groups and kinds: one if all kinds have the same groups, else one a kind."""
    groups = {kind: tuple(group for group in BLOCK_GROUPS if (group, kind) in slots) for kind in LAYER_KINDS}
    there = [kind for kind in LAYER_KINDS if groups[kind]]
    if len({groups[kind] for kind in there}) == 1:
        yield groups[there[0]], tuple(there)
    else:
        for kind in there:
            yield groups[kind], (kind,)


def rules_of_units(settings: Mapping[Numbered, Setting], structure: Structure) -> list[Rule]:
    """Return the canonical rules of settings by unit; units that are left out stay at full precision.

    Slots whose units all have one setting become rules by block group and layer kind, as if they had been written so.
    """
    slots: dict[Slot, Setting] = {}
    numbered: dict[Setting, list[Numbered]] = {}
    mixed: set[Slot] = set()
    members = structure.slots()
    for slot, units in members.items():
        own = {settings.get(unit) for unit in units}
        if len(own) > 1:
            mixed.add(slot)
            for unit in units:
                if unit in settings:
                    numbered.setdefault(settings[unit], []).append(unit)
        elif units and (setting := own.pop()) is not None:
            slots[slot] = setting
    _fill_empty(slots, {slot for slot, units in members.items() if not units}, mixed)
    by_number = [Rule(setting, units=tuple(sorted(units))) for setting, units in numbered.items()]
    return [*rules_of_slots(slots), *sorted(by_number, key=lambda rule: rule.units)]


def _fill_empty(slots: dict[Slot, Setting], empty: Collection[Slot], mixed: Collection[Slot]) -> None:
    """Give slots without units the setting of a neighbour, so that a part with few blocks has one form."""
    held = {kind: [group for group in BLOCK_GROUPS if (group, kind) not in empty] for kind in LAYER_KINDS}
    # A kind that the part lacks follows the other kind, so it comes last.
    for kind in sorted(LAYER_KINDS, key=lambda kind: not held[kind]):
        other = LAYER_KINDS[LAYER_KINDS[0] == kind]
        for place, group in enumerate(BLOCK_GROUPS):
            if (group, kind) in empty:
                near = [group for group in held[kind] if BLOCK_GROUPS.index(group) > place] or held[kind][-1:]
                source = (near[0], kind) if near else (group, other)
                if source not in mixed and source in slots:
                    slots[group, kind] = slots[source]


def rules_in(selection: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the rules of a selection, as they stand in it."""
    rules: Sequence[Mapping[str, Any]] = selection.get("rules") or [selection]
    return rules


def selects(rule: Mapping[str, Any], block: int, group: str, kind: str) -> bool:
    """Return True if ``rule`` of a selection selects the unit ``kind`` of block ``block``, which lies in ``group``."""
    if "units" in rule:
        return unit_label((block, kind)) in rule["units"]
    return "blocks" not in rule or (group in rule["blocks"] and kind in rule["layers"])


def bits_in(selection: Mapping[str, Any]) -> set[int]:
    """Return the bit-widths that a selection assigns."""
    return {rule["bits"] for rule in rules_in(selection)}


def covers_part(selection: Mapping[str, Any]) -> bool:
    """Return True if a selection gives every unit of its part one setting."""
    return "rules" not in selection and "units" not in selection and not _narrowed(selection)


def part_order(part: str) -> tuple[int, str]:
    """Return a key that sorts parts: in the order in which they run, then those that only one model has."""
    return (PART_ORDER.index(part) if part in PART_ORDER else len(PART_ORDER)), part


def is_mixed(selection: Mapping[str, Any]) -> bool:
    """Return True if block groups and layer kinds with one setting cannot describe a selection."""
    return "rules" in selection or "units" in selection


def mean_bits(selection: Mapping[str, Any], size: Mapping[str, Any] | None) -> float | None:
    """Return the bits of a part's quantized linears: their mean, weighted by their weights, if they differ.

    ``size`` is the part's, from the record; None, as of a failed cell, leaves a mean unknown.
    """
    widths = bits_in(selection)
    if len(widths) == 1:
        return next(iter(widths))
    return mean_width(size)


def mean_width(size: Mapping[str, Any] | None) -> float | None:
    """Return the mean bits of a part's quantized weights from its size in a record; None if it has none."""
    if not size or not size["quantized_weights"]:
        return None
    weights, every = size["quantized_weights"], size["parameters"]
    quantized = size["bpw_paper"] * every - FULL_PRECISION_BITS * (every - weights)
    # Few digits are wrong after the division by all parameters.
    return round(quantized / weights, 6)


def method_name(known_as: str) -> str:
    """Return a method's display name: ``mine`` for ``lab.mine.Mine``, otherwise ``known_as`` unchanged."""
    module, _, name = known_as.rpartition(".")
    last = module.rpartition(".")[2]
    return last if last.replace("_", "").lower() == name.lower() else known_as


def bits_label(selection: Mapping[str, Any]) -> str:
    """Format a selection for a person.

    ``3``; ``3 g64`` with its own group size; ``3 (front attention)`` for a subset of the part; ``attention 4, mlp 3``;
    ``attention 4, mlp 3 gptq`` if rules differ in method, with each method that is not the cell's own;
    ``2 to 4 by unit (81c0)`` for units by number, with the first digits of a digest to tell assignments apart.
    """
    rules = rules_in(selection)
    if len(rules) == 1 and "units" not in rules[0]:
        narrowed = _narrowed(rules[0])
        return f"{_width(rules[0])} ({' '.join(narrowed)})" if narrowed else _width(rules[0])
    by_number = [rule for rule in rules if "units" in rule]
    if not by_number:
        several = len({digest(rule.get("method")) for rule in rules}) > 1
        return ", ".join(" ".join([*_narrowed(rule), _width(rule), *_own_method(rule, several)]) for rule in rules)
    widths = sorted(bits_in(selection))
    span = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else str(widths[0])
    return f"{span} by unit ({digest(selection)[:4]})"


def _own_method(rule: Mapping[str, Any], told: bool) -> list[str]:
    return [method_name(rule["method"]["_target_"])] if told and "method" in rule else []


def _width(rule: Mapping[str, Any]) -> str:
    size = rule.get("group_size")
    text = str(rule["bits"])
    return f"{text} g{size}" if isinstance(size, int) else f"{text} {size}" if size else text


def _narrowed(rule: Mapping[str, Any]) -> list[str]:
    """Name the units of a part that a rule selects; empty if it selects all of it."""
    return [
        "+".join(rule[name])
        for name, everything in (("blocks", len(BLOCK_GROUPS)), ("layers", len(LAYER_KINDS)))
        if name in rule and len(rule[name]) < everything
    ]


def numbered_of(labels: Iterable[str]) -> tuple[Numbered, ...]:
    """Parse labels such as ``17.mlp``."""
    return tuple((int(label.partition(".")[0]), label.partition(".")[2]) for label in labels)
