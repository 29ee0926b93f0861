"""``python -m analysis VERB --source SOURCE [--json]``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from analysis import loads_in
from analysis.output import json_text
from analysis.tables.flat import csv_text
from analysis.tables.latex import latex
from analysis.tables.pivot import markdown
from analysis.tables.records import as_rows, read
from mmq_sweeps.errors import BITS, COUNT, SHARE, StoreError, check_ranges, output_may_close
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.reporting.table import output_console, show, title

BAD_INPUT = 2
# Of every option that is a number.
RANGES = {"keep": SHARE, "min_quality": SHARE, "max_bpw": BITS, "items": COUNT, "samples": COUNT}
SOURCES = "stores, wandb:ENTITY/PROJECT[/GROUP], or published:FOLDER for the study's own results; default: runs"
FORMATS = {"markdown": markdown, "latex": latex, "csv": csv_text}
NEEDS_EXTRA = (
    "this verb needs the analysis extra: pip install 'mmq-sweeps[analysis]', or -e '.[analysis]' in a checkout"
)


def table(arguments: argparse.Namespace) -> None:
    """Print every cell of the sources: the same tables that a sweep ends with."""
    table_rows = as_rows(read([Path(source) for source in arguments.source], "table"))
    if arguments.loads_in:
        table_rows, told = loads_in.kept_rows(table_rows, arguments.loads_in)
        sys.stderr.write(f"note: {told}\n")
    console = output_console()
    if arguments.json:
        console.out(json_text(table_rows), highlight=False)
        return
    if not table_rows:
        sys.stderr.write(f"warning: {' '.join(arguments.source)}: no cell has finished or failed yet\n")
    for name, formatted in FORMATS.items():
        if getattr(arguments, name):
            console.out(formatted(table_rows).removesuffix("\n"), highlight=False)
            return
    show(table_rows, console)
    for row in table_rows:
        if row["status"] != "done":
            told = f"{row['error']['class']}: {row['error']['message']}"
            sys.stderr.write(f"failed: {row['id']} {title(row)}: {told}\n")


def _run(arguments: argparse.Namespace) -> None:
    """Run the verb's function in ``analysis.verbs``, imported on call since it needs pandas and scikit-learn."""
    try:
        verbs = importlib.import_module("analysis.verbs")
    except ModuleNotFoundError as error:
        raise ValueError(f"{NEEDS_EXTRA} (there is no {error.name})") from error
    getattr(verbs, arguments.verb.replace("-", "_"))(arguments)


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(prog="python -m analysis", description="Read finished cells back.")
    verbs = command.add_subparsers(required=True, metavar="VERB", dest="verb")

    def verb(name: str, help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=help, description=help)
        added.add_argument("--source", nargs="+", action="extend", help=SOURCES)
        return added

    one = verb("table", "all cells of one or several stores, as a table")
    loads_in.add_argument(one)
    shape = one.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="rows for a program")
    shape.add_argument("--markdown", action="store_true", help="one table a metric: method and parts against bits")
    shape.add_argument("--latex", action="store_true", help="the same for LaTeX, with the rules of booktabs")
    shape.add_argument("--csv", action="store_true", help="one line a cell, failed ones as well, with every figure")

    one = verb("export", "the table of cells as a file, with every column")
    one.add_argument("--out", type=Path, required=True, help="a file that ends in .parquet or .csv")
    one.add_argument(
        "--items", type=Path, help="another such file: the prediction and the scores of every cell and item"
    )

    one = verb("frontier", "the cells that no other beats in both bits per weight and quality")
    one.add_argument("--metric", help="default: each task's first")
    one.add_argument("--bpw", choices=("paper", "exact"), default="paper", help="which bits per weight")
    loads_in.add_argument(one)
    one.add_argument("--by-method", action="store_true", help="a frontier for each method")
    one.add_argument("--keep", type=float, default=0.98, help="the share of full precision to keep; default: 0.98")

    one = verb("flips", "the share of items that each cell answers otherwise than full precision")
    one.add_argument("--metric", help="which says what is right; default: each task's first")

    one = verb("importance", "how much of the score's variation each part's bit-width accounts for")
    one.add_argument("--metric", help="default: each task's first")
    one.add_argument("--fine", action="store_true", help="by part, block group and layer kind")
    one.add_argument("--all-methods", action="store_true", help="all methods in one forest; default: one a method")

    one = verb("sensitivity", "the damage of one selection, of two together, and by which method")
    one.add_argument("--metric", help="default: each task's first")

    one = verb("transfer", "how well what is best for one model or task does on another, and if they are alike")
    one.add_argument("--metric", help="default: each task's first")
    one.add_argument(
        "--max-bpw", type=float, nargs="+", action="extend", help="budgets in bits per weight; default: 3 4 5 6 8"
    )

    one = verb("recommend", "the assignment to take under a budget of bits or of quality")
    loads_in.add_argument(one)
    budget = one.add_mutually_exclusive_group(required=True)
    budget.add_argument("--max-bpw", type=float, help="the most bits per weight, by the paper's formula")
    budget.add_argument("--min-quality", type=float, help="the least share of full precision, such as 0.98")
    one.add_argument("--metric", help="default: each task's first")

    one = verb("search", "what the searches of a store found, and their pictures")
    one.add_argument("--out", type=Path, help="a folder for pictures: bits by unit, predicted and measured frontier")

    one = verb("figures", "the study's figures as PNG and PDF for a paper and as pages to point at")
    one.add_argument("--out", type=Path, default=Path("figures"), help="the folder to write to; default: figures")
    one.add_argument("--metric", help="default: each task's first")
    which = one.add_mutually_exclusive_group()
    which.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="some of them: see docs/analysis.md"
    )
    which.add_argument(
        "--experiment",
        choices=("paper",),
        help="all of the study's, and what the cells lack for those that are not drawn",
    )

    one = verb("report", "one page with all of this, that opens without network")
    one.add_argument("--out", type=Path, default=Path("report.html"), help="the file to write; default: report.html")
    loads_in.add_argument(one)
    one.add_argument("--metric", help="default: each task's first")
    one.add_argument(
        "--images", type=Path, help="the folder of a published set, whose images are shown with predictions"
    )

    one = verb("compare", "two cells: every metric's paired difference, and the items that changed most")
    one.add_argument("cells", nargs=2, metavar="CELL", help="a cell's id, or the first letters of it")
    one.add_argument("--metric", help="which metric ranks the items; default: the task's first")
    one.add_argument("--items", type=int, default=20, help="how many of the items that changed most; default: 20")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page that shows their images as well")
    one.add_argument("--images", type=Path, help="the folder of a published set, whose images and references are read")

    one = verb("audit", "cells that measured nothing, or something else than they say")
    one.add_argument("--metric", help="default: each task's first")
    one = verb("wandb-push", "send the cells of a store that a W&B project lacks")
    one.add_argument("--to", metavar="[ENTITY/]PROJECT", help="default: where the store's last sweep was logged to")
    one.add_argument("--samples", type=int, default=16, help="predictions a cell in its table of samples; default: 16")
    one = verb("dashboard", "save views of frontier and bit-widths in a W&B project")
    for name, one in verbs.choices.items():
        if name not in ("table", "export"):
            one.add_argument("--json", action="store_true")
    return command


def main() -> None:
    arguments = parser().parse_args()
    # Drop duplicates.
    arguments.source = list(dict.fromkeys(arguments.source or ["runs"]))
    try:
        with warnings_to(), output_may_close():
            check_ranges(vars(arguments), RANGES)
            (table if arguments.verb == "table" else _run)(arguments)
    except (OSError, StoreError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(BAD_INPUT) from None


if __name__ == "__main__":
    main()
