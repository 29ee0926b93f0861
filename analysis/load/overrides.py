"""Recover the command line that measures a cell from its record's configuration.

Only values that differ from the options' own yaml files are listed; the files are read without Hydra's composition. Fields
that no yaml file has (digests of data and weights) are skipped: they follow from the others.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.identity.assignment import (
    BLOCK_GROUPS,
    FULL_PRECISION_BITS,
    LAYER_KINDS,
    SLOTS,
    method_name,
    rules_in,
)
from mmq_sweeps.identity.cell import digest, is_quantized_elsewhere

# Defaults of fields that a model's yaml may omit.
MODEL_FIELDS = {"model.dtype": "float32", "model.revision": None, "model.inherit_generation": False}
# Mappings that are interpolated as a whole and that a user may extend: overridden as a whole, or not at all.
WHOLE = ("task.generation",)
# Options named as their class is known, of which each value of a field is a task with a name of its own.
OPTIONS_OF_MANY = ("lmms_eval",)
# Text that needs no quotes on Hydra's command line.
PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*")
NOT_TEXT = ("null", "true", "false", "yes", "no", "on", "off", "nan", "inf")


def overrides(cell: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the overrides of ``cell`` without those of ``assigned``, quoted for a shell.

    Example: ``model=m task=t task.limit=8 method=gptq method.group_size=64 calibration.samples=2``.
    """
    model = _model_option(names["model"], json.dumps(_of_model(cell["model"]), sort_keys=True))
    # The name of several methods is no option; the parts that have another one say so themselves.
    method = _option(cell.get("method")) if "), " in names["method"] else names["method"]
    method = "none" if is_quantized_elsewhere(cell) else method
    task = _task_option(names["task"], str(cell["task"].get("_target_", "")))
    defaults = _defaults(model, task, method)
    told = [f"model={model}"]
    told += [f"model.name={value_text(names['model'])}"] if model != names["model"] else []
    told += _differing("model", cell["model"], defaults)
    told += [f"task={task}", *_differing("task", cell["task"], defaults)]
    if task != names["task"] not in cell["task"].values():
        told.append(f"task.name={value_text(names['task'])}")
    told += [f"method={method}", *_differing("method", cell.get("method") or {}, defaults)]
    told += _differing("calibration", cell.get("calibration") or {}, defaults)
    return " ".join(map(shlex.quote, [*told, *_part_methods(cell, task, model)]))


def assigned(cell_id: str, cell: Mapping[str, Any]) -> str:
    """Return the overrides that assign the bits of all parts of ``cell``, quoted for a shell; empty at full precision.

    An assignment that no overrides express is ``assignment=ID.yaml``, a file that
    ``python -m mmq_sweeps.assignment ID --out ID.yaml`` writes.
    """
    if not cell["parts"]:
        return ""
    if not _expressible(cell):
        return f"assignment={shlex.quote(f'{cell_id}.yaml')}"
    told: list[str] = []
    for part in dict.fromkeys([*cell["model"]["parts"], *cell["parts"]]):
        told += _of_part(f"component.{part}", cell["parts"].get(part))
    return " ".join(map(shlex.quote, told))


def _expressible(cell: Mapping[str, Any]) -> bool:
    """Return true if ``component.PART`` can say every selection: one method and group size in a part, no unit by number."""
    return all(
        all("units" not in rule for rule in rules_in(selection))
        and len({digest([rule.get(key) for key in ("method", "group_size")]) for rule in rules_in(selection)}) == 1
        for selection in cell["parts"].values()
    )


def _of_part(key: str, selection: Mapping[str, Any] | None) -> Iterator[str]:
    if selection is None:
        yield f"{key}.bits={FULL_PRECISION_BITS}"
        return
    rules = rules_in(selection)
    if size := rules[0].get("group_size"):
        yield f"{key}.group_size={value_text(size)}"
    if len(rules) > 1:
        yield f"{key}.bits={value_text(_widths(rules))}"
        return
    yield f"{key}.bits={rules[0]['bits']}"
    for name, everything in (("blocks", BLOCK_GROUPS), ("layers", LAYER_KINDS)):
        if name in rules[0] and len(rules[0][name]) < len(everything):
            yield f"{key}.{name}={value_text(rules[0][name])}"


def _widths(rules: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the bits of all block groups and layer kinds, by kind or group alone where that says it all."""
    width = dict.fromkeys(SLOTS, FULL_PRECISION_BITS)
    for rule in rules:
        width |= {(group, kind): rule["bits"] for group in rule["blocks"] for kind in rule["layers"]}
    by_kind = {kind: {width[group, kind] for group in BLOCK_GROUPS} for kind in LAYER_KINDS}
    if all(len(widths) == 1 for widths in by_kind.values()):
        return {kind: widths.pop() for kind, widths in by_kind.items()}
    by_group = {group: {kind: width[group, kind] for kind in LAYER_KINDS} for group in BLOCK_GROUPS}
    return {group: own if len({*own.values()}) > 1 else own[LAYER_KINDS[0]] for group, own in by_group.items()}


def _part_methods(cell: Mapping[str, Any], task: str, model: str) -> Iterator[str]:
    """Yield the overrides of the methods of single parts, unless a file says them."""
    if not _expressible(cell):
        return
    for part, selection in cell["parts"].items():
        method = rules_in(selection)[0].get("method")
        if method is not None:
            name = _option(method)
            fields = {key: value for key, value in method.items() if not key.startswith("_")}
            yield f"component.{part}.method={name}"
            for told in _differing("method", fields, _defaults(model, task, name)):
                yield f"component.{part}.{told}"


def _option(method: Mapping[str, Any] | None) -> str:
    """Return the option of a method, which its class is declared as; empty if it is not known."""
    return method_name(str((method or {}).get("_target_", "")))


def _differing(section: str, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    for key, value in _leaves(section, values):
        if key not in defaults or key.endswith("._target_"):
            continue
        if key == "model.revision" and str(value).startswith("sha256:"):
            continue  # The revision of a local folder is the digest of its weights.
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
    """Format ``value`` so that Hydra's command line parses it back."""
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
    # Hydra takes backslashes literally, except right before a quote.
    quoted = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", text)
    trailing = len(quoted) - len(quoted.rstrip("\\"))
    return "'" + quoted + "\\" * trailing + "'"


@functools.lru_cache(maxsize=64)
def _defaults(model: str, task: str, method: str) -> dict[str, Any]:
    """Return the values of the options' yaml files, flattened to command-line keys, with interpolations resolved."""
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
            if OmegaConf.is_missing(merged[section], name):
                found[f"{section}.{name}"] = None  # Whoever chooses the option gives it.
                continue
            try:
                value = merged[section][name]
                if OmegaConf.is_config(value):
                    value = OmegaConf.to_container(value, resolve=True)
            except OmegaConfBaseException:
                continue  # It interpolates a field that this model lacks, or that whoever chooses the option gives.
            found |= dict(_leaves(f"{section}.{name}", value))
    return found


def _read(path: Path) -> Any:
    """Load an option's yaml; empty if the package has none, since the option is then the user's own."""
    try:
        return OmegaConf.load(path)
    except (OSError, OmegaConfBaseException, YAMLError):
        return OmegaConf.create({})


@functools.lru_cache(maxsize=64)
def _model_option(name: str, told: str) -> str:
    """Find the option of a renamed model by its class and parts; ``name`` itself if there is none."""
    folder = conf_dir() / "model"
    if (folder / f"{name}.yaml").is_file():
        return name
    for path in sorted(folder.glob("*.yaml")):
        if json.dumps(_of_model(OmegaConf.to_container(_read(path))), sort_keys=True) == told:
            return path.stem
    return name


@functools.lru_cache(maxsize=64)
def _task_option(name: str, known_as: str) -> str:
    """Return the option of a task that is named after a field, by its class; ``name`` itself if it is no such task.

    Not by the name first: lmms-eval's task ``mme`` is not this package's.
    """
    folder = conf_dir() / "task"
    return known_as if known_as in OPTIONS_OF_MANY and (folder / f"{known_as}.yaml").is_file() else name


def _of_model(model: Any) -> Any:
    """Reduce a model's configuration to its class and parts, without the checkpoint."""
    parts = model.get("parts") or {}
    return {
        "class_name": model.get("class_name"),
        "parts": {
            name: {key: where.get(key) for key in ("module", "blocks", "attention", "mlp")}
            for name, where in parts.items()
        },
    }
