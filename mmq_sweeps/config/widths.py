"""Read the bit-widths of a part: a number, or a mapping over block groups, layer kinds or both.

``{attention: 4, mlp: 3}`` and ``{front: 4, middle: 3, end: {attention: 4, mlp: 2}}`` are mappings. Keys given one by one on
the command line (``component.language.bits.mlp=3``) stand in ``bits_at`` and win over the number or mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmq_sweeps.errors import unknown
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS, SLOTS, Slot

BITS = (2, 3, 4, 5, 6, 7, 8, FULL_PRECISION_BITS)
BITS_CHOICES = f"choose 2 to 8, or {FULL_PRECISION_BITS} for full precision."
GROUP_SIZES = ("tensor", "channel")
ALL = (*BLOCK_GROUPS, *LAYER_KINDS)
EXAMPLE = "{attention: 4, mlp: 3} or {front: 4, middle: 3, end: {attention: 4, mlp: 2}}"


def is_width(value: Any) -> bool:
    """Return True for a bit-width that can be stored, and for full precision."""
    return isinstance(value, int) and not isinstance(value, bool) and value in BITS


def group_size_problem(size: Any) -> str | None:
    """Return the problem of a group size, or None. No group size is the method's."""
    if size is None or size in GROUP_SIZES or (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        return None
    return f"group_size={size}: choose {', '.join(GROUP_SIZES)} or a positive number of input columns."


def slots_of(selection: Mapping[str, Any]) -> list[Slot]:
    """Return the slots that the blocks and layers of a selection, or of a rule of it, name."""
    return [slot for slot in SLOTS if slot[0] in selection["blocks"] and slot[1] in selection["layers"]]


def widths(selection: Mapping[str, Any]) -> dict[Slot, int]:
    """Return the bit-width of every slot that ``selection``, which has no ``problems``, selects."""
    selected = slots_of(selection)
    bits = selection["bits"]
    given = dict(_flat(bits, "", [])) if isinstance(bits, Mapping) else dict.fromkeys(selected, bits)
    given |= dict(_flat(selection.get("bits_at") or {}, "", []))
    return {slot: given[slot] for slot in selected}


def problems(key: str, selection: Mapping[str, Any], common: Any) -> list[str]:
    """Return a sentence for everything wrong with the widths of the part at ``key``.

    ``common`` is the width that all parts take unless they have their own; it is checked elsewhere.
    """
    bits, found = selection["bits"], []
    if not isinstance(bits, Mapping):
        if not is_width(bits) and bits != common:
            found.append(f"{key}.bits={bits}: {BITS_CHOICES[:-1]}, or a mapping such as {EXAMPLE}.")
        given: dict[Slot, Any] = dict.fromkeys(SLOTS, bits)
    else:
        given = _read(f"{key}.bits", bits, found)
    finer = _read(f"{key}.bits", selection.get("bits_at") or {}, found)
    if not found:
        found += _outside(key, selection)
        missing = [slot for slot in slots_of(selection) if slot not in given | finer]
        if missing:
            named = ", ".join(dict.fromkeys(_words(missing)))
            found.append(
                f"{key}.bits={_text(bits)}: leaves {named} undefined; give a width to each, 16 for full precision."
            )
    return found


def _read(key: str, mapping: Mapping[str, Any], found: list[str]) -> dict[Slot, Any]:
    """Return the width of every slot that ``mapping`` names; add a sentence to ``found`` for everything wrong."""
    given: dict[Slot, Any] = {}
    for slot, width in _flat(mapping, key, found):
        if slot in given:
            found.append(f"{key}={_text(mapping)}: names {' '.join(slot)} twice; give each unit one width.")
        given[slot] = width
    return given


def _flat(
    node: Mapping[str, Any], key: str, found: list[str], within: tuple[str, ...] = ()
) -> Iterator[tuple[Slot, Any]]:
    """Yield every slot that ``node`` names, with its width; ``within`` holds the group or kind that it is nested in."""
    choices = LAYER_KINDS if within and within[0] in BLOCK_GROUPS else BLOCK_GROUPS if within else ALL
    for name, value in node.items():
        if name not in choices:
            found.append(f"{key}.{name}: {unknown('block group or layer kind', name, choices)}")
        elif isinstance(value, Mapping) and not within:
            yield from _flat(value, f"{key}.{name}", found, (name,))
        else:
            if not is_width(value):
                found.append(f"{key}.{name}={_text(value)}: {BITS_CHOICES}")
            yield from ((slot, value) for slot in SLOTS if {name, *within} <= set(slot))


def _outside(key: str, selection: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for every group or kind that is given a width and is not selected."""
    named = _names(selection["bits"]) | _names(selection.get("bits_at"))
    for name, every in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
        for left in (one for one in every if one in named and one not in selection[name]):
            yield f"{key}.bits.{left}: {key}.{name}=[{', '.join(selection[name])}] leaves {left} out; give it no width."


def _names(node: Any) -> set[str]:
    if not isinstance(node, Mapping):
        return set()
    return set(node) | {name for value in node.values() for name in _names(value)}


def _words(slots: list[Slot]) -> Iterator[str]:
    """Name slots: a kind or group whose slots are all there by its own name."""
    for kind in LAYER_KINDS:
        groups = [group for group, own in slots if own == kind]
        if len(groups) == len(BLOCK_GROUPS):
            yield kind
        else:
            yield from (f"{group} {kind}" for group in groups)


def _text(value: Any) -> str:
    """Format a mapping as it is written on the command line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_text(inner)}" for name, inner in value.items()) + "}"
    return str(value)
