"""``python -m mmq_sweeps.models [MODEL] [--bits PART=BITS ...] [--json]``: show quantizable parts and quantized sizes.

``python -m mmq_sweeps.models DIR`` shows how the checkpoint in a folder is stored, whoever quantized it, and its loaders.
Models are built without weights, so this needs neither a download nor an accelerator.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers
import yaml

from mmq_sweeps.config.assignment import EVERYTHING, Source, assign
from mmq_sweeps.config.effective import Assigned, assignment_of
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import model_names, read_model
from mmq_sweeps.config.problems import late_problems, selection_problems
from mmq_sweeps.config.widths import BITS_CHOICES
from mmq_sweeps.errors import ConfigError, Parser, one_of, output_may_close, unknown
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS, bits_label
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.loads_in import TRANSFORMERS, VLLM
from mmq_sweeps.methods.formats import check_group_size
from mmq_sweeps.models.quantized.checkpoint import read_checkpoint
from mmq_sweeps.models.quantized.loaders import Verdict
from mmq_sweeps.models.quantized.measuring import fit_class
from mmq_sweeps.models.quantized.names import FittedCheckpoint
from mmq_sweeps.models.shapes import build_on_meta, find_shape
from mmq_sweeps.quantization import elsewhere
from mmq_sweeps.quantization.requests import problems as format_problems
from mmq_sweeps.quantization.requests import requests
from mmq_sweeps.quantization.size import StoredLinear, measure_stored
from mmq_sweeps.quantization.targets import Part, find_parts, tied_problems
from mmq_sweeps.reporting.model_tables import draw_assignment, draw_folder, draw_models
from mmq_sweeps.reporting.table import line, output_console

BAD_INPUT = 2


@dataclass(frozen=True)
class Counted:
    """A model without weights, its parts, and the source of its shape."""

    config: Mapping[str, Any]
    model: transformers.PreTrainedModel
    parts: Mapping[str, Part]
    source: str

    @property
    def name(self) -> str:
        return self.config["name"]

    def label(self, part: str) -> str:
        return END_PARTS[part] if part in END_PARTS else self.config["parts"][part]["label"]


def count(model: str) -> Counted:
    """Build ``model`` (a name of ``conf/model`` or the path of a yaml) without weights and find its parts.

    Raises the errors of ``read_model``, ``find_shape``, ``build_on_meta`` and ``find_parts``.
    """
    config = read_model(model)
    shape = find_shape(config)
    built = build_on_meta(config, shape)
    return Counted(config, built, find_parts(built, config), shape.source)


def describe(counted: Counted) -> dict[str, Any]:
    """Return a model's parameters and, per part, its blocks, linears and quantizable weights.

    A head that is tied to the embeddings has no weights of its own.
    """
    size = measure_stored(counted.model, counted.parts.values(), {})
    return {
        "model": counted.name,
        "checkpoint": counted.config["checkpoint"],
        "shape": counted.source,
        "parameters": size["total"]["parameters"],
        "parts": {
            name: {
                "label": counted.label(name),
                "blocks": len(part.blocks),
                "linears": len(shapes := _linears(part)),
                "quantizable_weights": min(sum(rows * columns for rows, columns in shapes.values()), parameters),
                "parameters": parameters,
                **({"tied_to": part.tied_to} if "tied_to" in size["parts"][name] else {}),
            }
            for name, part in counted.parts.items()
            for parameters in [size["parts"][name]["parameters"]]
        },
    }


def size_of(counted: Counted, assigned: Assigned, group_size: int | str) -> dict[str, Any]:
    """Return the sizes of ``counted`` (see ``measure_stored``) with its units stored as ``assigned``.

    Raises ConfigError if a group size does not divide the columns of a linear, and for tied parts that are both quantized.
    """
    cell = Cell(
        {"parts": {}, "dtype": counted.config["dtype"]},
        {},
        assigned.parts,
        assigned.method,
        None,
        {},
        places=assigned.places,
    )
    found = requests(cell, build, counted.parts)
    problems = tied_problems(counted.parts, assigned.parts, counted.name)
    problems += format_problems(replace(request, group_size_key="--group-size") for request in found)
    if problems:
        raise ConfigError("; ".join(problems))
    stored = {
        name: StoredLinear(request.format, shape) for request in found for name, shape in request.unit.linears.items()
    }
    size = measure_stored(counted.model, counted.parts.values(), stored)
    return {
        "model": counted.name,
        "shape": counted.source,
        "group_size": group_size,
        "bits": {name: assigned_label(assigned.parts.get(name)) for name in counted.parts},
        **size,
    }


def assigned_label(selection: Mapping[str, Any] | None) -> int | str:
    """Return the bit-width of a selection, or words if it has several."""
    if selection is None:
        return FULL_PRECISION_BITS
    label = bits_label(selection)
    return int(label) if label.isdigit() else label


def _linears(part: Part) -> dict[str, tuple[int, int]]:
    return {name: shape for unit in part.units for name, shape in unit.linears.items()}


def read_assignment(arguments: Iterable[str], file: str | None, counted: Counted, group_size: int | str) -> Assigned:
    """Parse the values of ``--bits`` and ``--assignment`` as the sweep's command line does.

    ``arguments`` are such as ``vision=3``, ``language={attention: 4, mlp: 3}``, ``language.end.mlp=2`` or ``head=8``. Raises
    ConfigError with everything wrong.
    """
    component: dict[str, dict[str, Any]] = {}
    for key, value in _parsed(arguments).items():
        part, *inner = key.split(".")
        if part not in counted.parts:
            raise ConfigError(
                f"--bits {key}: {unknown('part', part, counted.parts)[:-1]}, the parts of {counted.name}."
            )
        node = component.setdefault(part, {**EVERYTHING, "bits": FULL_PRECISION_BITS, "bits_at": {}})
        *above, last = ["bits_at", *inner] if inner else ["bits"]
        for name in above:
            node = node.setdefault(name, {})
        node[last] = value
    found = [problem for part, own in component.items() for problem in selection_problems(part, own, None)]
    if found:
        raise ConfigError(re.sub(r"component\.(\w+)\.bits", r"--bits \1", problem) for problem in found)
    method = {"_target_": "mmq_sweeps.methods.rtn.RoundToNearest", "group_size": group_size, "symmetric": False}
    config: dict[str, Any] = {"model": counted.config, "component": component, "method": method, "assignment": file}
    config |= {"calibration": {}, "seed": 0, "bits": FULL_PRECISION_BITS, "task": {}}
    structures = {name: part.structure for name, part in counted.parts.items()}
    if found := assign(config, Source(structures=lambda _: structures)) or late_problems(config):
        raise ConfigError(found)
    return assignment_of(config)


def _parsed(arguments: Iterable[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE``; ConfigError for anything else and for a key that is given twice."""
    found: dict[str, Any] = {}
    for argument in arguments:
        key, separator, value = argument.partition("=")
        if not separator:
            raise ConfigError(f"--bits {argument}: is not PART=BITS")
        if key in found:
            raise ConfigError(f"--bits {argument}: {key} is given twice")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--bits {argument}: {BITS_CHOICES}") from error
    return found


def read_group_size(argument: str) -> int | str:
    group_size = int(argument) if argument.isascii() and argument.isdigit() else argument
    try:
        check_group_size(group_size)
    except ValueError as error:
        raise ConfigError(f"--group-size {argument}: {error}") from None
    return group_size


def read_folder(folder: Path) -> tuple[FittedCheckpoint, dict[str, Part], dict[str, str]]:
    """Read the checkpoint in ``folder``; return it with its parts and their labels, which are empty if no yaml fits it.

    ValueError or OSError if it cannot be read, or if transformers has no class for it.
    """
    checkpoint = read_checkpoint(folder)
    if checkpoint.class_name is None:
        raise ValueError(f"{folder}: its config.json names no class in architectures")
    fitted = fit_class(checkpoint, {"class_name": checkpoint.class_name})
    for name in model_names():
        config = read_model(name)
        if config["class_name"] == checkpoint.class_name:
            try:
                parts = find_parts(fitted.model, config)
            except ValueError:
                continue  # The model of another yaml of this class.
            return fitted, parts, {part: where["label"] for part, where in config["parts"].items()}
    return fitted, {}, {}


def folder_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines below the table of a folder: its bytes, and the loaders that take it."""
    by = f"by {told['method']} ({told['said_by']})" if told["method"] else "at full precision"
    yield f"{told['checkpoint']}: a {told['class']} {by}; its files hold {told['total']['stored_bytes']:,} bytes of weights"
    names = {TRANSFORMERS: f"transformers {transformers.__version__}", VLLM: "vLLM on a CPU"}
    for loader, verdict in told["loads_in"].items():
        said = Verdict(loader, verdict["loads"], tuple(verdict["reasons"]), tuple(verdict["needs"])).told()
        here = [f"{name} {version or 'not'} installed" for name, version in told["packages"].items()]
        shown = f" ({', '.join(here)})" if here and loader == TRANSFORMERS and verdict["loads"] else ""
        yield f"loads in {names[loader]}: {said}{shown}"
    if told["method"] and not told["faults"] and not any(own["loads"] for own in told["loads_in"].values()):
        yield "otherwise dequantized only"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mmq_sweeps.models", description="What of each model can be quantized, and to what size."
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="a name of conf/model, the path of a yaml, or a checkpoint's folder; default: all models",
    )
    parser.add_argument(
        "--bits",
        nargs="+",
        metavar="PART=BITS",
        help="2 to 8, or 16, or a mapping as in 'language={attention: 4, mlp: 3}'; a part left out has 16",
    )
    parser.add_argument("--assignment", metavar="FILE", help="a file of units, in place of --bits")
    parser.add_argument(
        "--group-size", default="channel", help="weights that share a scale: tensor, channel (default) or a number"
    )
    parser.add_argument("--json", action="store_true", help="for a program")
    parsed = parser.parse_args(arguments)
    if parsed.bits and parsed.assignment:
        parser.error("--bits and --assignment: give one of them")
    option = "--bits" if parsed.bits else "--assignment" if parsed.assignment else None
    if option and _is_folder(parsed.model):
        parser.error(f"{option}: {parsed.model} is a checkpoint, which is shown as it is stored; leave {option} out")
    if option and not parsed.model:
        parser.error(f"{option} needs a model. {one_of(model_names())}")
    return parsed


def _is_folder(model: str | None) -> bool:
    """Return True for a checkpoint's folder, or a path that should be one, rather than a model's name or yaml."""
    if not model or model.endswith(".yaml") or model in model_names():
        return False
    return os.sep in model or Path(model).is_dir()


def run(arguments: argparse.Namespace) -> None:
    console, folder = output_console(), _is_folder(arguments.model)
    told: Any
    below: Iterable[str] = ()
    group_size = "channel" if folder else read_group_size(arguments.group_size)
    if folder:
        fitted, parts, labels = read_folder(Path(arguments.model))
        told = elsewhere.describe(fitted, parts)
        table, below = draw_folder(told, labels), folder_lines(told)
    elif not (arguments.bits or arguments.assignment):
        names = [arguments.model] if arguments.model else model_names()
        models = [describe(count(name)) for name in names]
        told = models[0] if arguments.model else models
        table = draw_models(models)
    else:
        counted = count(arguments.model)
        assigned = read_assignment(arguments.bits or [], arguments.assignment, counted, group_size)
        told = size_of(counted, assigned, group_size)
        table = draw_assignment(told, {name: counted.label(name) for name in counted.parts})
    if arguments.json:
        console.out(json.dumps(told, indent=1), highlight=False)
        return
    console.print(table, crop=not folder)
    for text in below:
        line(console, text)


def main(arguments: Sequence[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    try:
        with output_may_close():
            run(parse(arguments))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(BAD_INPUT) from None


if __name__ == "__main__":
    main()
