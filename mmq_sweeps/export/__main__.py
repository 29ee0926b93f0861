"""``python -m mmq_sweeps.export CELL --out DIR``: write a finished cell as a checkpoint that others load.

``--best --max-bpw 4`` in place of CELL takes what ``python -m analysis recommend`` names.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch import sweep_file
from mmq_sweeps.assignment import find
from mmq_sweeps.errors import BITS, SHARE, ConfigError, Parser, StoreError, check_ranges, one_of
from mmq_sweeps.identity.cell import is_quantized_elsewhere
from mmq_sweeps.identity.loads_in import CHOICES
from mmq_sweeps.reporting.progress import Progress, warnings_to
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store

if TYPE_CHECKING:
    from mmq_sweeps.export.source import Source

FAILED, INTERRUPTED = 1, 130
RANGES = {"max_bpw": BITS, "min_quality": SHARE}
PROGRAM = "python -m mmq_sweeps.export"
# First arguments that are no cells, and the modules whose ``main(arguments)`` runs them.
SUBCOMMANDS = {"check": "mmq_sweeps.export.check"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Exit status: 0 exported, 1 what was written is not what was measured, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in SUBCOMMANDS:
        importlib.import_module(SUBCOMMANDS[given[0]]).main(given[1:])
        return
    parser = _arguments()
    options = parser.parse_args(given)
    try:
        status = _run(options, shlex.join([*PROGRAM.split(), *given]))
    except (ConfigError, StoreError) as error:
        parser.error(str(error.strerror or error) if isinstance(error, StoreError) else str(error))
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, "interrupted; nothing was exported\n")
    raise SystemExit(status)


def _arguments() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Write a finished cell as a checkpoint that others load.")
    parser.add_argument("cell", nargs="?", help="the cell's id, or its unique beginning")
    parser.add_argument("--best", action="store_true", help="in place of CELL: what python -m analysis recommend names")
    parser.add_argument("--max-bpw", type=float, metavar="BITS", help="of --best: bits per weight at most")
    parser.add_argument(
        "--min-quality", type=float, metavar="SHARE", help="of --best: share of full precision at least"
    )
    parser.add_argument("--metric", help="of --best: default the task's first")
    parser.add_argument("--loads-in", choices=CHOICES, help="of --best: only cells that it loads, still quantized")
    parser.add_argument("--source", type=Path, default=Path("runs"), metavar="STORE", help="the store; default: runs")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder that does not exist")
    parser.add_argument("--format", help="default: compressed-tensors if it can hold the cell, else dequantized")
    parser.add_argument("--dtype", help="default: the cell's model.dtype")
    parser.add_argument("--evaluate", action="store_true", help="the task's metrics must equal the record's")
    return parser


def _run(options: argparse.Namespace, command: str) -> int:
    with warnings_to():
        record = find(_cell(options), options.source)
        if record.baseline and options.best:
            raise ConfigError(
                f"--best: no quantized cell keeps that share; what does is full precision ({record.id}), which its checkpoint "
                "already is; lower --min-quality, or raise --max-bpw"
            )
        if record.baseline:
            raise ConfigError(
                f"{record.id}: is at full precision, which its checkpoint already is; choose a quantized cell"
            )
        if is_quantized_elsewhere(record.cell):
            checkpoint = record.cell["model"]["checkpoint"]
            raise ConfigError(f"{record.id}: was quantized elsewhere; its checkpoint {checkpoint} is what others load")
        # Imported here because it loads torch, which bad input need not wait for.
        from mmq_sweeps.export.choice import DTYPES, Asked
        from mmq_sweeps.export.export import Order, export
        from mmq_sweeps.export.formats.names import FORMATS
        from mmq_sweeps.export.verify import VerificationError

        for option, choices in (("format", FORMATS), ("dtype", DTYPES)):
            if (value := getattr(options, option)) is not None and value not in choices:
                raise ConfigError(f"--{option} {value}: {one_of(choices)}")
        own_dtype = record.cell["model"].get("dtype")
        if options.evaluate and options.dtype not in (None, own_dtype):
            raise ConfigError(
                f"--evaluate: metrics are comparable in the cell's own dtype only; leave out --dtype {options.dtype}"
            )
        source = _source(record, options.source)
    order = Order(options.out, Asked(options.format, options.dtype), options.evaluate, command)
    try:
        with Progress(1) as progress, warnings_to(progress.say):
            done = export(source, order, progress)
    except VerificationError as error:
        sys.stderr.write(f"error: --out {options.out}: not exported, because {error}\n")
        return FAILED
    found = ", ".join(f"{name} {value:.4f}" for name, value in done.verified.metrics.items())
    sys.stdout.write(
        f"{done.folder}: {done.choice.format.name}, {done.bytes:,} bytes of weights; reloaded, "
        f"{done.verified.outputs:,} outputs equal{f'; {found}, equal to the record' if found else ''}\n"
    )
    return 0


def _cell(options: argparse.Namespace) -> str:
    if options.best == (options.cell is not None):
        raise ConfigError("CELL: give a cell's id, or --best with --max-bpw or --min-quality; not both")
    check_ranges(vars(options), RANGES)
    if not options.best:
        for name in ("max_bpw", "min_quality", "metric", "loads_in"):
            if getattr(options, name) is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')}: belongs to --best, which chooses a cell; leave it out or add --best"
                )
        return str(options.cell)
    return _best(options)


def _best(options: argparse.Namespace) -> str:
    """Return the cell that ``python -m analysis recommend`` names."""
    try:
        from analysis.load import load
        from analysis.measures.recommend import recommend
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--best: needs the analysis extra: pip install 'mmq-sweeps[analysis]' (there is no {error.name})"
        ) from error
    try:
        cells = load([str(options.source)])
        cells = cells if options.loads_in is None else cells.loading_in(options.loads_in)
        found = recommend(cells, options.max_bpw, options.min_quality, options.metric)
    except ValueError as error:
        raise ConfigError(f"--best: {error}") from error
    quantized = {str(one.best["id"]): one.title for one in found}
    if len(quantized) > 1:
        named = "; ".join(f"{cell} for {title}" for cell, title in quantized.items())
        raise ConfigError(f"--best: the store has several models or tasks; give one of these cells: {named}")
    return next(iter(quantized))


def _source(record: Record, root: Path) -> Source:
    """Find the sweep that planned the cell of ``record``, which holds its configuration."""
    from mmq_sweeps.export.source import Source, only

    store = Store.existing(root)
    for sweep_id in sweep_file.listed(store.root):
        written = sweep_file.read(store.root, sweep_id)
        if record.id in written.sweep.configs:
            commands = {"the sweep": written.command, **_alone(record)}
            return Source(store, record, only(written.sweep, record), commands)
    raise ConfigError(
        f"{record.id}: no sweep of the store {root} has it, so its configuration is not known; run its command again on this "
        "store, which measures nothing twice"
    )


def _alone(record: Record) -> dict[str, str]:
    """Return the command of the cell alone; empty without the analysis extra."""
    try:
        from analysis.load.overrides import assigned, overrides
    except ModuleNotFoundError:
        return {}
    said = [overrides(record.cell, record.names), assigned(record.id, record.cell)]
    return {"this cell alone": " ".join(["python -m mmq_sweeps", *said])}


if __name__ == "__main__":
    main()
