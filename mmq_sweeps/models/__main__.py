"""``python -m mmq_sweeps.models [MODEL] [--bits PART=BITS ...] [--json]``: show quantizable parts and quantized sizes.

Models are built without weights, so this needs neither a download nor an accelerator.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import transformers
from rich import box
from rich.table import Table

from mmq_sweeps.config.model_catalog import model_names, read_model
from mmq_sweeps.config.widths import BITS, BITS_CHOICES
from mmq_sweeps.errors import ConfigError, one_of, unknown
from mmq_sweeps.identity.cell import FULL_PRECISION_BITS
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.methods.affine import Format, check_group_size
from mmq_sweeps.models.shapes import build_on_meta, find_shape
from mmq_sweeps.quantization.size import StoredLinear, measure_stored
from mmq_sweeps.quantization.targets import Part, check_format, find_parts, tied_problems
from mmq_sweeps.reporting.table import output_console

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


def assign(counted: Counted, bits: Mapping[str, int], group_size: int | str) -> dict[str, Any]:
    """Return the sizes of ``counted`` (see ``measure_stored``) with every linear of the parts in ``bits`` quantized.

    Raises ConfigError if ``group_size`` does not divide the columns of a linear, and for tied parts that are both quantized.
    """
    stored: dict[str, StoredLinear] = {}
    quantized = [name for name, width in bits.items() if width != FULL_PRECISION_BITS]
    problems = tied_problems(counted.parts, quantized, counted.name)
    for name, width in bits.items():
        if width == FULL_PRECISION_BITS:
            continue
        part, format = counted.parts[name], Format(width, group_size)
        problems += check_format(part.units, format, "--group-size")
        stored |= {linear: StoredLinear(format, shape) for linear, shape in _linears(part).items()}
    if problems:
        raise ConfigError("; ".join(problems))
    size = measure_stored(counted.model, counted.parts.values(), stored)
    return {
        "model": counted.name,
        "shape": counted.source,
        "group_size": group_size,
        "bits": {name: bits.get(name, FULL_PRECISION_BITS) for name in counted.parts},
        **size,
    }


def _linears(part: Part) -> dict[str, tuple[int, int]]:
    return {name: shape for unit in part.units for name, shape in unit.linears.items()}


def read_bits(arguments: Iterable[str], parts: Iterable[str], model: str) -> dict[str, int]:
    """Parse ``["vision=3", ...]`` to widths by part; ConfigError at the first invalid argument."""
    widths: dict[str, int] = {}
    known = list(parts)
    for argument in arguments:
        part, separator, width = argument.partition("=")
        if not separator:
            raise ConfigError(f"--bits {argument}: is not PART=BITS")
        if part not in known:
            raise ConfigError(f"--bits {argument}: {unknown('part', part, known)[:-1]}, the parts of {model}.")
        if part in widths:
            raise ConfigError(f"--bits {argument}: {part} is given twice")
        if not (width.isascii() and width.isdigit()) or int(width) not in BITS:
            raise ConfigError(f"--bits {argument}: {BITS_CHOICES}")
        widths[part] = int(width)
    return widths


def read_group_size(argument: str) -> int | str:
    group_size = int(argument) if argument.isascii() and argument.isdigit() else argument
    try:
        check_group_size(group_size)
    except ValueError as error:
        raise ConfigError(f"--group-size {argument}: {error}") from None
    return group_size


def draw_models(models: Iterable[Mapping[str, Any]]) -> Table:
    # A model and its parts share a column, so that the table fits 80 characters.
    table = _table("model", "", ">blocks", ">linears", ">quantizable\nweights", ">all\nparameters")
    for model in models:
        table.add_row(model["model"], "", "", "", "", f"{model['parameters']:,}")
        for name, part in model["parts"].items():
            counts = (part[key] for key in ("blocks", "linears", "quantizable_weights", "parameters"))
            table.add_row(f"  {name}", _shown(name, part["label"], part), *(f"{count:,}" for count in counts))
    return table


def draw_assignment(counted: Counted, told: Mapping[str, Any]) -> Table:
    table = _table(
        "part", "", ">bits", ">quantized\nweights", ">all\nparameters", ">bpw\npaper", ">bpw\nexact", ">size\nMB"
    )
    for name, width in told["bits"].items():
        size = told["parts"][name]
        table.add_row(name, _shown(name, counted.label(name), size), str(width), *_size_cells(size))
    table.add_section()
    table.add_row("all", told["model"], "", *_size_cells(told["total"]))
    return table


def _shown(part: str, label: str, counts: Mapping[str, Any]) -> str:
    """Return the label beside a part's name; the names of those at the ends need none."""
    return label if part not in END_PARTS else "tied" if "tied_to" in counts else ""


def _size_cells(size: Mapping[str, Any]) -> list[str]:
    counts = [f"{size[key]:,}" for key in ("quantized_weights", "parameters")]
    return [*counts, f"{size['bpw_paper']:.4f}", f"{size['bpw_exact']:.4f}", f"{size['size_bytes'] / 1e6:,.1f}"]


def _table(*columns: str) -> Table:
    """Return an empty table; a column whose heading opens with ``>`` is right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table


class Parser(argparse.ArgumentParser):
    """Argument parser that reports bad input on one line, as everywhere in this package."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m mmq_sweeps.models", description="What of each model can be quantized, and to what size."
    )
    parser.add_argument("model", nargs="?", help="a name of conf/model, or the path of a yaml; default: all models")
    parser.add_argument("--bits", nargs="+", metavar="PART=BITS", help="2 to 8, or 16; a part left out has 16")
    parser.add_argument(
        "--group-size", default="channel", help="weights that share a scale: tensor, channel (default) or a number"
    )
    parser.add_argument("--json", action="store_true", help="for a program")
    parsed = parser.parse_args(arguments)
    if parsed.bits and not parsed.model:
        parser.error(f"--bits needs a model. {one_of(model_names())}")
    return parsed


def run(arguments: argparse.Namespace) -> None:
    console = output_console()
    group_size = read_group_size(arguments.group_size)
    if not arguments.bits:
        names = [arguments.model] if arguments.model else model_names()
        models = [describe(count(name)) for name in names]
        told: Any = models[0] if arguments.model else models
        table = draw_models(models)
    else:
        counted = count(arguments.model)
        told = assign(counted, read_bits(arguments.bits, counted.parts, counted.name), group_size)
        table = draw_assignment(counted, told)
    if arguments.json:
        console.out(json.dumps(told, indent=1), highlight=False)
    else:
        console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    transformers.logging.set_verbosity_error()
    try:
        run(parse(arguments))
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(BAD_INPUT) from None


if __name__ == "__main__":
    main()
