"""From a node with ``_target_`` to the dataclass that it names, checked field by field against the dataclass's types."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmq_sweeps.errors import ConfigError, unknown


def build(key: str, node: Mapping[str, Any]) -> Any:
    """Build ``node``; ``key`` is where it lies in the configuration. A ``ConfigError`` names the field that is wrong."""
    target = find_class(f"{key}._target_", node["_target_"])
    fields = {name: value for name, value in node.items() if name != "_target_"}
    known = [field.name for field in dataclasses.fields(target)]
    if problems := [
        f"{key}.{name}={fields[name]}: {unknown('field', name, known)}" for name in fields if name not in known
    ]:
        raise ConfigError(problems)
    try:
        checked = OmegaConf.merge(OmegaConf.structured(target), fields)
        return target(**{str(name): value for name, value in OmegaConf.to_container(checked).items()})  # type: ignore[union-attr]
    except OmegaConfBaseException as error:
        name = getattr(error, "full_key", None) or getattr(error, "key", "")
        raise ConfigError(f"{key}.{name}={fields.get(str(name))!r}: {str(error).splitlines()[0]}.") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{key}: {error}") from error


def find_class(key: str, target: str) -> Any:
    """The class at the dotted path ``target``; a ``ConfigError`` says what of it does not exist."""
    module_name, _, class_name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{key}={target}: {error}") from error
    if not dataclasses.is_dataclass(found):
        raise ConfigError(f"{key}={target}: is no dataclass")
    return found
