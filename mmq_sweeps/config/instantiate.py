"""Build the dataclass named by a node's ``_target_``, after checking every field against its type."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmq_sweeps.errors import ConfigError, unknown
from mmq_sweeps.identity.declared import Declared, declared

# Readers of this package may be named without their module: ``task.data._target_: HubData``.
READERS = {
    "Scenes": "mmq_sweeps.data.scenes.Scenes",
    "CocoCaptions": "mmq_sweeps.data.coco.CocoCaptions",
    "CocoKarpathy": "mmq_sweeps.data.coco.CocoKarpathy",
    "Flickr30k": "mmq_sweeps.data.flickr30k.Flickr30k",
    "VqaV2": "mmq_sweeps.data.vqav2.VqaV2",
    "Gqa": "mmq_sweeps.data.gqa.Gqa",
    "HubData": "mmq_sweeps.data.hub.HubData",
}


def build(key: str, node: Mapping[str, Any]) -> Any:
    """Build the dataclass of ``node``, at ``key`` of the configuration; raise ConfigError naming any wrong field."""
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


def declaration(key: str, target: str, read: Callable[[str], Declared] = declared) -> Declared:
    """Read the declaration of the dataclass at a dotted path; raise ConfigError if it does not exist or is no dataclass."""
    try:
        return read(_dotted(key, target))
    except TypeError as error:
        raise ConfigError(f"{key}={target}: is no dataclass") from error
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{key}={target}: {error}") from error


def find_class(key: str, target: str) -> Any:
    """Import the dataclass at a dotted path; raise ConfigError if it does not exist or is no dataclass."""
    module_name, _, class_name = _dotted(key, target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ConfigError(f"{key}={target}: {error}") from error
    if not dataclasses.is_dataclass(found):
        raise ConfigError(f"{key}={target}: is no dataclass")
    return found


def _dotted(key: str, target: str) -> str:
    """Return the dotted path of a class; raise ConfigError for a reader's name that is none of ``READERS``."""
    if "." in target or not key.endswith("data._target_"):
        return target
    if target in READERS:
        return READERS[target]
    raise ConfigError(f"{key}={target}: {unknown('reader', target, READERS)[:-1]}, or give the dotted path of a class.")
