"""``python -m analysis VERB --source STORE [--json]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from analysis.pivot import markdown
from mmq_sweeps.errors import StoreError
from mmq_sweeps.record import Record
from mmq_sweeps.store import Store
from mmq_sweeps.table import output_console, rows, show

BAD_INPUT = 2


def load_rows(sources: list[Path]) -> list[dict[str, Any]]:
    """The cells of all ``sources`` as rows, each once; a FileNotFoundError where a folder is no store."""
    found: dict[str, tuple[Record, Store]] = {}
    for source in sources:
        if not (source / "cells").is_dir():
            raise FileNotFoundError(f"--source {source}: is no store (it has no folder 'cells'); run a sweep first")
        store = Store(source.absolute(), say=_warn)
        found |= {record.id: (record, store) for record in store.records()}
    return rows([record for record, _ in found.values()], lambda cell_id: found[cell_id][1].items(cell_id))


def _warn(text: str) -> None:
    sys.stderr.write(f"warning: {text}\n")


def table(arguments: argparse.Namespace) -> None:
    """Every cell of the sources as rows: the same table that a sweep ends with."""
    table_rows = load_rows(arguments.source)
    console = output_console()
    if arguments.json:
        console.out(json.dumps(table_rows, indent=1), highlight=False)
        return
    if arguments.markdown:
        console.out(markdown(table_rows), highlight=False)
        return
    show(table_rows, console)
    for row in table_rows:
        if row["status"] != "done":
            sys.stderr.write(
                f"failed: {row['id']} {row['method']}: {row['error']['class']}: {row['error']['message']}\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m analysis", description="Read finished cells back.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    reader = verbs.add_parser("table", help="all cells of one or several stores, as a table")
    reader.add_argument("--source", type=Path, nargs="+", default=[Path("runs")], help="stores; default: runs")
    shape = reader.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="rows for a program")
    shape.add_argument("--markdown", action="store_true", help="one table a metric: method and parts against bits")
    reader.set_defaults(run=table)
    arguments = parser.parse_args()
    try:
        arguments.run(arguments)
    except (OSError, StoreError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(BAD_INPUT) from None


if __name__ == "__main__":
    main()
