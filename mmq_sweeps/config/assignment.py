"""Resolve the assignment of a configuration: a file of units, and methods of single parts.

The results stand in the configuration itself, ``component.PART.method`` as a full node and ``component.PART.units`` by unit,
from which ``effective.py`` makes the cell.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.widths import BITS_CHOICES, group_size_problem, is_width, slots_of
from mmq_sweeps.errors import ConfigError, one_of, unknown
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, LAYER_KINDS, SLOTS, Structure
from mmq_sweeps.identity.end_parts import END_PARTS

# Returns the units of each part of a model, given its configuration.
Structures = Callable[[Mapping[str, Any]], Mapping[str, Structure]]
SECTIONS = ("model", "method", "parts", "units")
PART_KEYS = ("bits", "blocks", "layers", "group_size", "method")
UNIT_KEYS = ("bits", "group_size", "method")
EVERYTHING = {"blocks": list(BLOCK_GROUPS), "layers": list(LAYER_KINDS), "group_size": None, "if_present": False}
RANGE = re.compile(r"(\d+)-(\d+)")
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Source:
    """Where an assignment's names are looked up: folders with ``method/NAME.yaml``, and the units of models."""

    folders: Sequence[Path] = field(default_factory=lambda: (conf_dir(),))
    structures: Structures | None = None


def assign(config: dict[str, Any], source: Source) -> list[str]:
    """Resolve the assignment of the plain ``config`` in place; return a sentence for everything wrong with it.

    Only ``config`` itself is changed, whose sections others may share.
    """
    found: list[str] = []
    config["component"] = {part: dict(selection) for part, selection in config["component"].items()}
    try:
        if (file := config.get("assignment")) is not None:
            key = f"assignment={file}"
            _take(config, _read(Path(file), key), source, key)
        for part, selection in config["component"].items():
            key = f"component.{part}.method"
            selection["method"] = _method(key, selection.get("method"), selection.get("method_fields"), config, source)
            for own in [*(selection.get("slots") or []), *(selection.get("units") or {}).values()]:
                own["method"] = _method("assignment", own.get("method"), None, config, source, selection["method"])
        found += _calibration_problems(config)
    except ConfigError as error:
        found += error.problems
    return found


def _calibration_problems(config: Mapping[str, Any]) -> list[str]:
    """Return a sentence if two methods of a cell are calibrated on different samples: a cell has one calibration."""
    given = [node["calibration"] for _, node in methods_of(config) if node.get("calibration")]
    if all(calibration == given[0] for calibration in given):
        return []
    return ["method.calibration: differs between the methods of one cell; give calibration.samples=N for all of them."]


def methods_of(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the nodes of all methods that an assigned configuration may use, each with its key; the common one first."""
    yield "method", config["method"]
    for part, selection in config["component"].items():
        finer = [*(selection.get("slots") or []), *(selection.get("units") or {}).values()]
        if selection.get("method") is not None:
            yield f"component.{part}.method", selection["method"]
        yield from (("assignment: method", own["method"]) for own in finer if own.get("method") is not None)


def calibration_of(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the calibration settings of the first method that is calibrated; None if none is."""
    return next((node["calibration"] for _, node in methods_of(config) if node.get("calibration")), None)


def _method(
    key: str,
    given: Any,
    fields: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    source: Source,
    default: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Return a method's whole node: an option's fields with ``fields`` over them; None for the cell's method."""
    fields = dict(fields or {})
    if isinstance(given, Mapping):
        given = _resolved(given, config)
    if isinstance(given, Mapping) and "_target_" not in given:
        fields = {**{name: value for name, value in given.items() if name != "name"}, **fields}
        given = given.get("name")
    if given is None and not fields:
        return None if default is None else dict(default)
    if given is None:
        node = dict(default or config["method"])
    elif isinstance(given, Mapping):
        node = dict(given)
    elif isinstance(given, str):
        node = _option(key, given, config, source)
    else:
        raise ConfigError(f"{key}={given!r}: give the name of a method. {one_of(_names(source.folders))}")
    known = [name for name in node if not name.startswith("_")]
    if wrong := [name for name in fields if name not in known]:
        raise ConfigError(f"{key}.{name}={fields[name]!r}: {unknown('field', name, known)}" for name in wrong)
    return {**node, **fields}


def _option(key: str, name: str, config: Mapping[str, Any], source: Source) -> dict[str, Any]:
    folder = next((folder for folder in source.folders if (folder / "method" / f"{name}.yaml").is_file()), None)
    if folder is None:
        raise ConfigError(f"{key}={name}: {unknown('method', name, _names(source.folders))}")
    return _resolved(_read_option(folder / "method" / f"{name}.yaml"), config)


def _resolved(node: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve interpolations such as ``${calibration}``."""
    if not any("${" in value for value in node.values() if isinstance(value, str)):
        return dict(node)
    whole = OmegaConf.create({key: config[key] for key in ("calibration", "seed", "bits", "model", "task")})
    whole["own"] = dict(node)
    resolved: Any = OmegaConf.to_container(whole, resolve=True)
    return dict(resolved["own"])


@lru_cache(maxsize=64)
def _read_option(path: Path) -> dict[str, Any]:
    return dict(yaml.load(path.read_text(), Loader))


def _names(folders: Iterable[Path]) -> list[str]:
    return sorted({path.stem for folder in folders for path in (folder / "method").glob("*.yaml")})


def assigned(config: Mapping[str, Any], content: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """Return the plain ``config`` with the assignment ``content``, as a file has it, in place of its component.

    The result is planned like any configuration. Sections that the assignment leaves alone are shared.
    """
    found = {**config, "assignment": None}
    _take(found, content, source, "assignment")
    for selection in found["component"].values():
        # Keys of a composed selection that a file does not have.
        for name, empty in (("bits_at", {}), ("method", None), ("method_fields", {})):
            selection.setdefault(name, empty)
    return found


def _take(config: dict[str, Any], content: Mapping[str, Any], source: Source, key: str) -> None:
    """Put the sections of ``content`` into ``config``; ``key`` says where they stand, for messages."""
    if wrong := [name for name in content if name not in SECTIONS]:
        raise ConfigError(f"{key}: {unknown('section', name, SECTIONS)}" for name in wrong)
    model = config["model"]
    if (named := content.get("model")) not in (None, model["name"]):
        raise ConfigError(
            f"{key}: is of the model {named}, and model={model['name']}; give model={named}, or another file."
        )
    if "method" in content:
        config["method"] = _method(f"{key}: method", content["method"], None, config, source) or config["method"]
    if "parts" in content:
        _take_parts(config, _mapping(content["parts"], f"{key}: parts"), key)
    if units := _mapping(content.get("units") or {}, f"{key}: units"):
        if source.structures is None:
            raise ConfigError(f"{key}: names units, which are known only where models can be built.")
        _take_units(config, units, source.structures(model), key)


def _read(path: Path, key: str) -> Mapping[str, Any]:
    try:
        text = path.read_text()
        is_json = path.suffix == ".json"
        content = json.loads(text, object_pairs_hook=_distinct) if is_json else yaml.load(text, _UniqueLoader)
    except OSError as error:
        raise ConfigError(f"{key}: {error.strerror}.") from error
    except _TwiceError as error:
        raise ConfigError(f"{key}: names {error} twice; give each name one value.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{key}: is no {'JSON' if path.suffix == '.json' else 'YAML'}: {error}") from error
    return _mapping(content, key)


class _TwiceError(Exception):
    """A mapping of a file names a key twice; the message is the key."""


def _distinct(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Make a mapping of ``pairs``; libraries take the last of several values of a key without a word."""
    found: dict[Any, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(name)
        found[name] = value
    return found


class _UniqueLoader(Loader):  # type: ignore[misc,valid-type]
    """Safe loader that refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _distinct((self.construct_object(name), None) for name, _ in node.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _mapping(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: is {value!r}; give a mapping, for instance {{language.0.mlp: 3}}.")
    return {str(name): inner for name, inner in value.items()}


def _take_parts(config: dict[str, Any], parts: Mapping[str, Any], key: str) -> None:
    """Let the file alone say which parts are quantized: those that it leaves out stay at full precision."""
    known = parts_of(config["model"])
    if wrong := [part for part in parts if part not in known]:
        raise ConfigError(f"{key}: parts: {unknown('part', part, known)}" for part in wrong)
    if not parts:
        raise ConfigError(f"{key}: parts: names none, so nothing would be quantized. {one_of(known)}")
    config["component"] = {}
    for part, given in parts.items():
        at = f"{key}: parts.{part}"
        if part in END_PARTS and isinstance(given, Sequence) and not isinstance(given, str):
            raise ConfigError(
                f"{at}: is one tensor, so it has no list of rules; give a width, or {{bits: 8, method: rtn}}."
            )
        if isinstance(given, Sequence) and not isinstance(given, str):
            config["component"][part] = {**EVERYTHING, "bits": 16, "slots": [_rule(rule, at) for rule in given]}
            named = [slot for rule in config["component"][part]["slots"] for slot in slots_of(rule)]
            if twice := [slot for slot in SLOTS if named.count(slot) > 1]:
                raise ConfigError(f"{at}: names {' '.join(twice[0])} twice; give each unit one setting.")
        else:
            own = dict(given) if isinstance(given, Mapping) and "bits" in given else {"bits": given}
            config["component"][part] = {**EVERYTHING, **_known(own, PART_KEYS, at)}


def _rule(given: Any, key: str) -> dict[str, Any]:
    own = _checked(_known(_mapping(given, key), PART_KEYS, key), key)
    for name, choices in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
        if wrong := [value for value in own.get(name, ()) if value not in choices]:
            raise ConfigError(f"{key}: {name}: {unknown(name[:-1], value, choices)}" for value in wrong)
    return {**EVERYTHING, **own}


def _known(own: dict[str, Any], keys: Sequence[str], at: str) -> dict[str, Any]:
    if wrong := [name for name in own if name not in keys]:
        raise ConfigError(f"{at}: {unknown('key', name, keys)}" for name in wrong)
    return own


def _checked(own: dict[str, Any], key: str) -> dict[str, Any]:
    """Return ``own`` if its bits and group size are such."""
    if not is_width(own.get("bits")):
        raise ConfigError(f"{key}: bits={own.get('bits')}: {BITS_CHOICES}")
    if problem := group_size_problem(own.get("group_size")):
        raise ConfigError(f"{key}: {problem}")
    return own


def parts_of(model: Mapping[str, Any]) -> list[str]:
    """Return the names of all parts that a model's configuration has."""
    return [*model["parts"], *(part for part in END_PARTS if model.get(part))]


def _take_units(
    config: dict[str, Any], units: Mapping[str, Any], structures: Mapping[str, Structure], key: str
) -> None:
    names = [
        name
        for part, structure in structures.items()
        for name in ([part] if part in END_PARTS else [f"{part}.{block}.{kind}" for block, kind in structure.units])
    ]
    there = set(names)
    patterns: dict[str, str] = {}
    for pattern in units:
        matched = [pattern] if pattern in there else [name for name in names if matches(pattern, name)]
        if not matched:
            raise ConfigError(f"{key}: units: {_near(pattern, names)}")
        for name in matched:
            if (before := patterns.get(name)) is None or pattern == name:
                patterns[name] = pattern
            elif before != name:
                raise ConfigError(f"{key}: units: {before} and {pattern} both name {name}; give each unit one setting.")
    plain = {
        part: {"blocks": own.blocks, "units": [list(unit) for unit in own.units]} for part, own in structures.items()
    }
    settings = {pattern: _unit(value, f"{key}: units.{pattern}") for pattern, value in units.items()}
    for name, pattern in patterns.items():
        part, _, inner = name.partition(".")
        selection = config["component"].setdefault(part, {**EVERYTHING, "bits": 16})
        if part in END_PARTS:
            selection |= {name: value for name, value in settings[pattern].items() if value is not None}
        else:
            selection.setdefault("units", {})[inner] = dict(settings[pattern])
            selection["structure"] = plain[part]


def matches(pattern: str, name: str) -> bool:
    """Return True if ``pattern`` names the unit ``name``; ``language.0-15.*`` is a range of blocks, ``*`` as in a shell.

    Embeddings and head are named in full only, so that ``*`` leaves them at full precision, as numbers do.
    """
    own, parts = pattern.split("."), name.split(".")
    if name in END_PARTS:
        return pattern == name
    if len(own) == len(parts) == 3 and (span := RANGE.fullmatch(own[1])):
        within = int(span[1]) <= int(parts[1]) <= int(span[2])
        return within and fnmatchcase(parts[0], own[0]) and fnmatchcase(parts[2], own[2])
    return fnmatchcase(name, pattern)


def _near(pattern: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(pattern, names, n=3) or [*names[:2], *names[-1:]]
    return f"{pattern} names no unit of the model. Near it: {', '.join(near)}."


def _unit(value: Any, key: str) -> dict[str, Any]:
    own = _checked(_known(dict(value) if isinstance(value, Mapping) else {"bits": value}, UNIT_KEYS, key), key)
    return {"bits": own["bits"], "group_size": own.get("group_size"), "method": own.get("method")}
