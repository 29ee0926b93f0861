"""From a record's configuration back to the command line that measures it.

Only what differs from the options' own yaml files is said, read without Hydra's composition. What a configuration holds
beyond fields of those files (digests of data and weights) cannot be said, and follows from the fields that can.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmq_sweeps.config.paths import conf_dir

# Fields that a yaml may leave to its defaults.
MODEL_FIELDS = {"model.dtype": "float32", "model.revision": None, "model.inherit_generation": False}
# Mappings that refer to another place and that a user may add fields to: said as a whole, or not at all.
WHOLE = ("task.generation",)
# Text that the command line takes for what it is; all else is quoted.
PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*")
NOT_TEXT = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")


def overrides(cell: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """``model=m task=t task.limit=8 method=gptq method.group_size=64 calibration.samples=2``: all but the parts' bits."""
    model = _model_option(names["model"], json.dumps(_of_model(cell["model"]), sort_keys=True))
    method = names["method"]
    defaults = _defaults(model, names["task"], method)
    told = [f"model={model}"]
    told += [f"model.name={value_text(names['model'])}"] if model != names["model"] else []
    told += _differing("model", cell["model"], defaults)
    told += [f"task={names['task']}", *_differing("task", cell["task"], defaults)]
    told += [f"method={method}", *_differing("method", cell.get("method") or {}, defaults)]
    told += _differing("calibration", cell.get("calibration") or {}, defaults)
    return " ".join(map(shlex.quote, told))


def _differing(section: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    for key, value in _leaves(section, values):
        if key not in defaults or key.endswith("._target_"):
            continue
        if key == "model.revision" and str(value).startswith("sha256:"):
            continue  # Of a folder: taken from its weights.
        if not _alike(value, defaults[key]):
            yield f"{key}={value_text(value)}"


def _alike(value: Any, default: Any) -> bool:
    if isinstance(value, list) and isinstance(default, list):
        return sorted(map(str, value)) == sorted(map(str, default))
    return bool(value == default)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and key not in WHOLE:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


def value_text(value: Any) -> str:
    """``value`` as Hydra's command line reads it back."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(value_text, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{value_text(inner)}" for key, inner in value.items()) + "}"
    text = str(value)
    if PLAIN.fullmatch(text) and text.lower() not in NOT_TEXT and not text.endswith(":"):
        return text
    # Backslashes are taken as they are, but for those right before a quote.
    quoted = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    trailing = len(quoted) - len(quoted.rstrip("\\"))
    return "'" + quoted + "\\" * trailing + "'"


@functools.lru_cache(maxsize=64)
def _defaults(model: str, task: str, method: str) -> dict[str, Any]:
    """What the options' yaml files say, by the command line's names, with references between them resolved."""
    config = _read(conf_dir() / "config.yaml")
    merged = OmegaConf.create(
        {
            "seed": config.get("seed"),
            "calibration": config.get("calibration"),
            "model": _read(conf_dir() / "model" / f"{model}.yaml"),
            "task": _read(conf_dir() / "task" / f"{task}.yaml"),
            "method": _read(conf_dir() / "method" / f"{method}.yaml"),
        }
    )
    found: dict[str, Any] = dict(MODEL_FIELDS)
    for section in ("calibration", "model", "task", "method"):
        for name in merged[section] or ():
            try:
                value = merged[section][name]
            except OmegaConfBaseException:
                continue  # It refers to something that this model does not have.
            if OmegaConf.is_config(value):
                value = OmegaConf.to_container(value, resolve=True)
            found |= dict(_leaves(f"{section}.{name}", value))
    return found


def _read(path: Path) -> Any:
    """An option's own fields; none if the package has no such option, since it is then of the user's own."""
    try:
        return OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, YAMLError):
        return OmegaConf.create({})


@functools.lru_cache(maxsize=64)
def _model_option(name: str, told: str) -> str:
    """The option behind a model that was given another name: one with the same class and parts; else ``name`` itself."""
    folder = conf_dir() / "model"
    if (folder / f"{name}.yaml").is_file():
        return name
    for path in sorted(folder.glob("*.yaml")):
        if json.dumps(_of_model(OmegaConf.to_container(_read(path))), sort_keys=True) == told:
            return path.stem
    return name


def _of_model(model: Any) -> Any:
    """What a model's class and parts are, apart from its checkpoint."""
    parts = model.get("parts") or {}
    return {
        "class_name": model.get("class_name"),
        "parts": {
            name: {key: where.get(key) for key in ("module", "blocks", "attention", "mlp")}
            for name, where in parts.items()
        },
    }
