"""The choices of a search: which options each part may take, read from configurations that differ in one choice."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmq_sweeps.config.assignment import Source, assign, parts_of
from mmq_sweeps.config.problems import problems
from mmq_sweeps.config.sweep import resolved
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.hashing import digest

AXES = (
    "bits",
    "method",
    "method.FIELD",
    "component.PART.bits",
    "component.PART.method",
    "component.PART.method.FIELD",
    "component.PART.group_size",
)
OF_ALL = re.compile(r"bits|method|method\.[\w.]+")
OF_PART = re.compile(r"component\.(\w+)\.(bits|group_size|method|method_fields\.[\w.]+)")
NONE = "none"


@dataclass(frozen=True)
class Chosen:
    """A setting that a part may take. ``method`` is a method's whole node; None at full precision."""

    bits: int
    method: Mapping[str, Any] | None = None
    group_size: int | str | None = None


def part_of(key: str) -> str | None:
    """Return the part whose choices the axis ``key`` has, "" for all parts; None if a search cannot use it."""
    if OF_ALL.fullmatch(key):
        return ""
    found = OF_PART.fullmatch(key)
    return found[1] if found else None


def check_axes(axes: Iterable[tuple[str, str]]) -> None:
    """Raise a ``ConfigError`` for each of ``axes``, pairs of a key and its override as written, that a search cannot use.

    Also if there are none, for then nothing is left to choose.
    """
    axes = list(axes)
    usable = f"its axes are {', '.join(AXES)}"
    if wrong := [line for key, line in axes if part_of(key) is None]:
        raise ConfigError(
            f"{line}: a search has no axis {line.partition('=')[0]}; {usable}. Give it one value, and search for each."
            for line in wrong
        )
    if not axes:
        raise ConfigError(
            f"hydra/sweeper=budget: has nothing to choose from; give bits=2,3,4,8. {usable[0].upper()}{usable[1:]}."
        )


def searched_parts(config: Mapping[str, Any]) -> list[str]:
    """Return the parts of a plain configuration that a search gives options, in the model's order."""
    found = [part for part in parts_of(config["model"]) if part in config["component"]]
    return [part for part in found if part not in END_PARTS or config["component"][part]["bits"] != FULL_PRECISION_BITS]


def read(part: str, configs: Iterable[Any], source: Source) -> list[Chosen]:
    """Return the distinct settings that ``part`` has in ``configs``; a ``ConfigError`` lists all that is wrong with them."""
    found: dict[str, Chosen] = {}
    for config in configs:
        plain = dict(config) if isinstance(config, dict) else resolved(config)
        if wrong := _unusable(part, plain) or problems(plain) or assign(plain, source):
            raise ConfigError(wrong)
        chosen = _setting(plain, part)
        found.setdefault(digest([chosen.bits, chosen.method, chosen.group_size]), chosen)
    return list(found.values())


def _unusable(part: str, config: Mapping[str, Any]) -> list[str]:
    """Return a sentence for everything that the configuration assigns by itself, where the search would."""
    if config.get("assignment") is not None:
        return [f"assignment={config['assignment']}: assigns what the search would choose; leave it out."]
    if part not in config["component"]:
        return []
    selection, key = config["component"][part], f"component.{part}"
    found = []
    if selection["bits_at"] or isinstance(selection["bits"], Mapping):
        given = selection["bits_at"] or selection["bits"]
        found.append(
            f"{key}.bits={given}: gives layers of a part their own widths, which a search chooses itself; give numbers, and "
            "hydra.sweeper.granularity=kind, group or unit."
        )
    for name, every in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
        if list(selection[name]) != list(every):
            found.append(
                f"{key}.{name}=[{', '.join(selection[name])}]: a search assigns whole parts; leave it out, and give "
                "hydra.sweeper.granularity=group with 16 among the bits."
            )
    return found


def _setting(config: Mapping[str, Any], part: str) -> Chosen:
    selection = config["component"][part]
    method = selection["method"] or config["method"]
    if selection["bits"] == FULL_PRECISION_BITS or method["_target_"] == NONE:
        return Chosen(FULL_PRECISION_BITS)
    return Chosen(selection["bits"], method, selection["group_size"])


def labels(options: Sequence[Chosen], names: Mapping[str, str]) -> list[str]:
    """Name each option: its bits, after its method if there are several, with the fields in which methods differ.

    ``names`` has the declared name of each class of methods.
    """
    methods = list({digest(one.method): one.method for one in options if one.method is not None}.values())
    apart = sorted({key for one in methods for key in one if len({digest(other.get(key)) for other in methods}) > 1})
    sizes = {digest(one.group_size) for one in options if one.method is not None}
    found = []
    for one in options:
        words = [] if one.method is None or len(methods) == 1 else [names[one.method["_target_"]]]
        if one.method is not None:
            same = [other for other in methods if other["_target_"] == one.method["_target_"]]
            words += [
                f"{key}={one.method[key]}"
                for key in apart
                if key != "_target_" and key in one.method and len({digest(other.get(key)) for other in same}) > 1
            ]
        words.append(str(one.bits))
        if len(sizes) > 1 and one.group_size is not None:
            words.append(f"g{one.group_size}" if isinstance(one.group_size, int) else str(one.group_size))
        found.append(" ".join(words))
    return found
