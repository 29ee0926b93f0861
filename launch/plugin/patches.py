"""Compose the cells of a grid as plain values, resolving references only where a value is new.

OmegaConf takes some 4 ms to copy, set and resolve a configuration, and a grid has many cells of few values. So of the jobs
that choose the same files and set the same keys, one is resolved in full, the base. For each other value of a key it is
resolved again with that value alone, and the plain values in which the two differ are what the value changes. A job is
the base with the changes of all its values.

That is what Hydra composes where no plain value depends on two keys. It holds if every reference is the whole of a value
and names its target (``${bits}``), since such a value is a copy of one other, and if the keys are set to numbers, text and
mappings that hold no reference. A value may also change which keys there are, as one of ``bits={attention: 4}`` and
``bits=4`` does; then nothing else may change below them. Jobs for which any of this cannot be told are composed in full.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.plugin.compose import Composer
from mmq_sweeps.config.sweep import resolved
from mmq_sweeps.errors import ConfigError

Plain = dict[str, Any]
# A path in plain values, and the value there.
Change = tuple[tuple[str, ...], Any]

# A reference to a fixed place; a leading dot is relative to the place of the reference.
REFERENCE = re.compile(r"\$\{[\w.]+\}")
# The environment does not change while a sweep is composed.
ENVIRONMENT = re.compile(r"\$\{oc\.env:[^${}]*\}")
FAILURES = (ConfigError, HydraException, OmegaConfBaseException)
# A section that two values change in one place.
_ENTANGLED = object()


def plain_all(composer: Composer, job_overrides: Iterable[Sequence[str]]) -> Iterator[DictConfig | Plain]:
    """Yield each job's configuration as ``composer`` composes it; for most jobs, the plain values of ``resolved``.

    Jobs share plain values, so these must not be changed. Errors are the composer's; a job that cannot be resolved is
    yielded as a ``DictConfig``, for ``plan`` to say why.
    """
    families: dict[tuple[tuple[str, bool], ...], _Family | None] = {}
    for overrides in job_overrides:
        # Jobs of a family differ in nothing but values that are simply set.
        key = tuple(map(partial(_common, composer), overrides))
        family = families.get(key)
        if family is not None and (plain := family.of(overrides)) is not None:
            yield plain
            continue
        config = composer.compose(overrides)
        if key not in families:
            family = families[key] = _Family.around(composer, overrides, config)
            yield config if family is None else family.base
        else:
            yield config


@dataclass
class _Family:
    """Jobs that choose the same files and set the same keys; ``overrides`` and ``base`` are those of the first."""

    composer: Composer
    overrides: Sequence[str]
    base: Plain
    # The changes that each override of another job makes to the base; None if they cannot be told.
    changes: dict[tuple[int, str], list[Change] | None] = field(default_factory=dict)
    # Changed sections of the configuration by the changes made, so that jobs share them.
    sections: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @staticmethod
    def around(composer: Composer, overrides: Sequence[str], config: DictConfig) -> _Family | None:
        """Return the family of a job; None if a value of its configuration may depend on two keys."""
        values = composer.values(overrides)
        # Before values are set as well, since Hydra looks at the keys that it deletes or extends with a plus.
        before, after = (OmegaConf.to_container(one, resolve=False) for one in (composer.chosen(overrides), config))
        texts = chain(_texts(before), _texts(after))
        # The order of two overrides counts if one sets a key at or below the other's.
        paths = [tuple(one.key_or_group.split(".")) for one in values]
        if not _apart(paths) or not all(map(_refers_plainly, texts)) or not _known_keys(values, after):
            return None
        try:
            return _Family(composer, overrides, resolved(config))
        except FAILURES:
            return None

    def of(self, overrides: Sequence[str]) -> Plain | None:
        """Return the plain values of a job of the family; None if it must be composed in full."""
        changed = [(at, line) for at, line in enumerate(overrides) if line != self.overrides[at]]
        by_section: dict[str, list[tuple[int, str]]] = {}
        for one in changed:
            if one not in self.changes:
                self.changes[one] = self._changes_of(*one)
            changes = self.changes[one]
            if changes is None:
                return None
            for section in dict.fromkeys(path[0] for path, _ in changes):
                by_section.setdefault(section, []).append(one)
        sections = {section: self._section(section, ones) for section, ones in by_section.items()}
        return None if any(section is _ENTANGLED for section in sections.values()) else self.base | sections

    def _changes_of(self, at: int, line: str) -> list[Change] | None:
        overrides = [*self.overrides]
        overrides[at] = line
        try:
            config = self.composer.compose(overrides)
            if not _known_keys([self.composer.read(line)[0]], OmegaConf.to_container(config, resolve=False)):
                return None
            return _changes(self.base, resolved(config))
        except FAILURES:
            return None  # Told by the job that is composed in full.

    def _section(self, name: str, ones: Sequence[tuple[int, str]]) -> Any:
        """Return a section with the changes of several overrides; ``_ENTANGLED`` if one replaces another's."""
        key = (name, *ones)
        if key not in self.sections:
            changes = [change for one in ones for change in self.changes[one] or () if change[0][0] == name]
            apart = _apart([path for path, _ in changes])
            self.sections[key] = _changed({name: self.base[name]}, changes)[name] if apart else _ENTANGLED
        return self.sections[key]


def _common(composer: Composer, line: str) -> tuple[str, bool]:
    """Return the part of an override that the jobs of a family share: its key alone if it sets that to a value."""
    override, chooses = composer.read(line)
    sets = not chooses and _sets_value(override)
    key = f"{'++' if override.is_force_add() else ''}{override.key_or_group}"
    return (key if sets else line), sets


def _sets_value(override: Override) -> bool:
    """Return True for ``KEY=VALUE`` and ``++KEY=VALUE`` with a number, text, null, or a list or mapping of these, without a
    reference. Unlike ``+`` and ``~``, neither looks at the value that is there.
    """
    if override.is_add() or override.is_delete() or override.package is not None:
        return False
    return _is_plain(override.value())


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(_is_scalar(one) for one in value)
    return _is_scalar(value)


def _is_scalar(value: Any) -> bool:
    if isinstance(value, str):
        return "${" not in value and value != "???"
    return value is None or isinstance(value, bool | int | float)


def _known_keys(values: Sequence[Override], raw: Any) -> bool:
    """Return True if no mapping that ``values`` set is merged into one whose own values refer to other keys.

    ``raw`` is the unresolved configuration with the values set. A reference that only some values of a key leave would
    depend on that key and on the one that it names.
    """
    mappings = [one for one in values if not one.is_delete() and isinstance(one.value(), dict)]
    return all("${" not in text for one in mappings for text, _ in _texts(_below(raw, one.key_or_group)))


def _below(node: Any, key: str) -> Any:
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _apart(paths: Iterable[tuple[str, ...]]) -> bool:
    """Return True if no path is at or below another."""
    return all(
        later[: len(path)] != path for path, later in pairwise(sorted(paths, key=lambda path: [*map(repr, path)]))
    )


def _texts(node: Any, in_list: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield every text of an unresolved configuration, and whether it lies in a list."""
    if isinstance(node, dict):
        for value in node.values():
            yield from _texts(value, in_list)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, in_list=True)
    elif isinstance(node, str):
        yield node, in_list


def _refers_plainly(text_in_list: tuple[str, bool]) -> bool:
    """Return True if a text is the same in all jobs, or a copy of one other value.

    A list counts as one value, which several references would make depend on several.
    """
    text, in_list = text_in_list
    return "${" not in ENVIRONMENT.sub("", text) or (not in_list and REFERENCE.fullmatch(text) is not None)


def _changes(base: Any, other: Any, path: tuple[str, ...] = ()) -> list[Change] | None:
    """List the values of ``other`` that ``base`` has otherwise; a mapping with other keys, or none, is one of them.

    None if keys of the whole, or of the model, differ: ``resolved`` drops its absent parts, so that a value there need not
    show. A change to what has no place in ``base`` would be lost.
    """
    if isinstance(base, dict) and isinstance(other, dict) and list(base) == list(other):
        found = []
        for key, value in base.items():
            below = _changes(value, other[key], (*path, key))
            if below is None:
                return None
            found += below
        return found
    if not isinstance(base, dict) and not isinstance(other, dict):
        return [] if _same(base, other) else [(path, other)]
    return None if path[:1] in ((), ("model",)) else [(path, other)]


def _same(one: Any, other: Any) -> bool:
    """Compare values and their types: 1, 1.0 and true are different."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other) and repr(one) == repr(other)


def _changed(base: Plain, changes: Sequence[Change]) -> Plain:
    """Return ``base`` with ``changes``; untouched values are shared."""
    copies: dict[tuple[str, ...], Plain] = {(): dict(base)}

    def copy(path: tuple[str, ...]) -> Plain:
        if path not in copies:
            above = copy(path[:-1])
            above[path[-1]] = copies[path] = dict(above[path[-1]])
        return copies[path]

    for path, value in changes:
        copy(path[:-1])[path[-1]] = value
    return copies[()]
