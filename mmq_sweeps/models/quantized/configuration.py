"""Read how a checkpoint's own files say that it is quantized. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmq_sweeps.identity.checkpoint import quantization_entries, quantization_file

COMPRESSED_TENSORS = "compressed-tensors"
BITSANDBYTES = "bitsandbytes"
REGEX = "re:"


@dataclass(frozen=True)
class Scheme:
    """A group of linears that compressed-tensors stores alike: ``targets`` are names, ``re:`` patterns or classes."""

    name: str
    targets: tuple[str, ...]
    bits: int
    group_size: int | str
    symmetric: bool
    kind: str = "int"
    format: str | None = None
    activations: bool = False


@dataclass(frozen=True)
class Configuration:
    """Settings in ``config.json``, or in a file beside it: ``method`` (as in ``quant_method``), and its fields in ``values``.

    ``source`` names the file and key. ``schemes`` and ``ignore`` are of compressed-tensors only.
    """

    method: str
    source: str
    values: Mapping[str, Any]
    schemes: tuple[Scheme, ...] = ()
    ignore: tuple[str, ...] = ()
    read_by_transformers: bool = True
    problems: tuple[str, ...] = ()

    @property
    def bits(self) -> int | None:
        """The width that all linears have unless the file says otherwise; None if it gives none."""
        found = self.values.get("bits", self.values.get("w_bit"))
        return int(found) if isinstance(found, int) else None

    def scheme_of(self, module: str, classes: tuple[str, ...]) -> Scheme | None:
        """Return the scheme of a module by its name and the names of its classes, as compressed-tensors matches them."""
        if any(matches(target, module, classes) for target in self.ignore):
            return None
        # Names before patterns before classes; patterns in alphabetical order.
        by_target = {target: scheme for scheme in self.schemes for target in scheme.targets}
        order = sorted(by_target, key=lambda target: (target != module, not target.startswith(REGEX), target))
        return next((by_target[target] for target in order if matches(target, module, classes)), None)


def matches(target: str, module: str, classes: tuple[str, ...]) -> bool:
    """Return True if a target of compressed-tensors names this module, or one of its classes."""
    if target.startswith(REGEX):
        return re.match(target.removeprefix(REGEX), module) is not None
    return target == module or target in classes


def read_values(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's ``config.json``; FileNotFoundError or ValueError if that is not possible."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: is not a folder")
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: holds no config.json, so it is no checkpoint")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: is not a mapping")
    return content


def read_configuration(folder: Path, values: Mapping[str, Any]) -> Configuration | None:
    """Return how the checkpoint in ``folder``, whose ``config.json`` holds ``values``, is quantized; None if not said."""
    for key, found in quantization_entries(values):
        return _configuration(found if isinstance(found, Mapping) else {}, f"{key} in config.json", "." not in key)
    name, content = quantization_file(folder)
    return _configuration(content, name, read=False) if name else None


def _configuration(values: Mapping[str, Any], source: str, read: bool) -> Configuration:
    method = _method(values)
    if method != COMPRESSED_TENSORS:
        return Configuration(method, source, values, read_by_transformers=read)
    schemes, problems = [], []
    for name, group in (values.get("config_groups") or {}).items():
        try:
            schemes.append(_scheme(str(name), group, values.get("format")))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{source}: config_groups.{name} cannot be read ({type(error).__name__}: {error})")
    if not schemes and not problems:
        problems.append(f"{source}: has no config_groups, so nothing is read as quantized")
    ignore = tuple(map(str, values.get("ignore") or ()))
    return Configuration(method, source, values, tuple(schemes), ignore, read, tuple(problems))


def _method(values: Mapping[str, Any]) -> str:
    values = {**values, **(values.get("quantization") or {})}  # modelopt's are a level below
    if values.get("load_in_4bit") or values.get("load_in_8bit"):
        return BITSANDBYTES
    named = values.get("quant_method") or values.get("quant_algo")
    if named is None and "w_bit" in values:
        return "awq"
    if named is None and {"bits", "desc_act"} <= values.keys():
        return "gptq"
    return str(named or "unknown").lower()


def _scheme(name: str, group: Mapping[str, Any], common: str | None) -> Scheme:
    weights = group["weights"]
    if weights is None:
        raise ValueError("quantizes no weights")
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy is None:
        strategy = "channel" if size == -1 else "group" if size else "tensor"
    if strategy == "group" and not (isinstance(size, int) and size > 0):
        raise ValueError(f"group_size is {size}")
    grouped = strategy in ("group", "tensor_group")
    own = group.get("format") or (common if common != "mixed-precision" else None)
    return Scheme(
        name=name,
        targets=tuple(map(str, group["targets"])),
        bits=int(weights.get("num_bits", 8)),
        group_size=int(size) if grouped else str(strategy),
        symmetric=bool(weights.get("symmetric", True)),
        kind=str(weights.get("type", "int")),
        format=own,
        activations=group.get("input_activations") is not None,
    )
