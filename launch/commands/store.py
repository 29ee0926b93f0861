"""``python -m launch store``: list, check or prune a store."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.commands import print_json
from mmq_sweeps.errors import COUNT, ConfigError, check_ranges
from mmq_sweeps.reporting.counts import are, counted
from mmq_sweeps.reporting.progress import warnings_to
from mmq_sweeps.reporting.table import line, output_console, plain_table
from mmq_sweeps.store import checkpoint_names
from mmq_sweeps.store.eviction import GB, KINDS, artifacts
from mmq_sweeps.store.store import Store

RANGES = {"max_gb": COUNT, "older_than": COUNT}
DAY = 24 * 3600
# Folders listed besides cells and artifacts.
FOLDERS = ("artifacts/references", "sweeps", "wandb", "corrupt", "tmp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = ("list", "check", "prune")
    parser.add_argument("action", nargs="?", choices=actions, default="list", help="default: list")
    parser.add_argument("--store", type=Path, default=Path("runs"), help="the folder of the store; default: runs")
    parser.add_argument("--json", action="store_true", help="as JSON on standard output")
    parser.add_argument("--dry-run", action="store_true", help="prune: tell what would be done")
    parser.add_argument("--max-gb", type=float, help="prune: what was used longest ago, until this is left")
    parser.add_argument("--kind", action="append", choices=KINDS, help="prune: only this kind; may be given again")
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="prune: only what was not used for so long")


def run(arguments: argparse.Namespace) -> int:
    _check_options(arguments)
    check_ranges(vars(arguments), RANGES)
    actions = {"list": _list, "check": _check, "prune": _prune}
    return actions[arguments.action](arguments)


def _check_options(arguments: argparse.Namespace) -> None:
    found = []
    for name in ("max_gb", "kind", "older_than"):
        value = getattr(arguments, name)
        if value is not None and arguments.action != "prune":
            found.append(f"--{name.replace('_', '-')}: is for prune, not for {arguments.action}")
    if arguments.dry_run and arguments.action != "prune":
        found.append(f"--dry-run: is for prune, {arguments.action} changes nothing")
    if arguments.action == "prune" and arguments.max_gb is arguments.kind is arguments.older_than is None:
        found.append("prune: say what with --max-gb GB, --older-than DAYS or --kind KIND")
    if found:
        raise ConfigError(found)


@dataclass(frozen=True)
class Kind:
    """Summary of a kind of files: number, size, and latest use (seconds since 1970), None if never used."""

    kind: str
    count: int
    size_bytes: int
    used: float | None


def _list(arguments: argparse.Namespace) -> int:
    store = Store.reading(arguments.store)
    kinds = list(_kinds(store))
    locked = {
        f"{kind.name}/{name}": owner
        for kind in sorted(path for path in (store.root / "locks").glob("*") if path.is_dir())
        for name, owner in sorted(store.locks.holders(kind.name).items())
    }
    if arguments.json:
        held = {name: asdict(owner) for name, owner in locked.items()}
        print_json({"store": str(store.root), "kinds": [asdict(kind) for kind in kinds], "locks": held})
        return 0
    table = plain_table("kind", ">count", ">MB", "last used")
    for kind in kinds:
        used = "" if kind.used is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(kind.used))
        table.add_row(kind.kind, f"{kind.count:,}", f"{kind.size_bytes / 1e6:,.1f}", used)
    console = output_console()
    console.print(table)
    for name, owner in locked.items():
        whose = f"{owner.label} on {owner.host}" if owner.label else owner.host
        line(console, f"locked: {name} by {whose} (process {owner.pid}) since {owner.since}")
    line(console, f"store: {store.root}")
    return 0


def _kinds(store: Store) -> Iterator[Kind]:
    yield _files("cells", (store.root / "cells").glob("*/*"), count="record.json")
    stored = artifacts(store.root)
    for name in reversed(KINDS):
        own = [one for one in stored if one.kind == name]
        used = max((one.used for one in own), default=None)
        yield Kind(name, len(own), sum(one.size_bytes for one in own), used)
    for folder in FOLDERS:
        yield _files(folder, (store.root / folder).rglob("*"))


def _files(name: str, paths: Iterator[Path], count: str | None = None) -> Kind:
    """Summarize all files among ``paths``; ``count`` limits the number to files of that name."""
    found = []
    for path in paths:
        try:
            if path.is_file():
                found.append((path.name, path.stat()))
        except FileNotFoundError:  # A temporary or evicted file.
            continue
    counted = sum(count in (None, name) for name, _ in found)
    used = max((status.st_mtime for _, status in found), default=None)
    return Kind(name, counted, sum(status.st_size for _, status in found), used)


def _check(arguments: argparse.Namespace) -> int:
    problems: list[str] = []
    store = Store.reading(arguments.store)
    with warnings_to(lambda text: problems.append(text.removeprefix("warning: "))):
        records = store.records()
        stored = artifacts(store.root)
        whole = [one for one in stored if store.artifacts.has(one.kind, one.key)]
        checked = sum(store.artifacts.read(one.kind, one.key) is not None for one in whole)
    unfinished = len(stored) - len(whole)
    warnings = checkpoint_names.told((record.names["model"], record.cell["model"]) for record in records)
    if unfinished:
        warnings.append(
            f"{counted(unfinished, 'artifact was', 'artifacts were')} not written completely; computed again when needed"
        )
    if arguments.json:
        told = {"store": str(store.root), "records": len(records), "artifacts": checked}
        print_json({**told, "problems": problems, "warnings": warnings})
    else:
        for text in problems:
            sys.stdout.write(f"wrong: {text}\n")
        for text in warnings:
            sys.stdout.write(f"warning: {text}\n")
        sys.stdout.write(
            f"{counted(len(records), 'record')} and {counted(checked, 'artifact')} are what was written, "
            f"{len(problems)} {are(len(problems))} not\n"
        )
    return 1 if problems else 0


def _prune(arguments: argparse.Namespace) -> int:
    store = Store.reading(arguments.store) if arguments.dry_run else Store.existing(arguments.store)
    kinds = tuple(kind for kind in KINDS if kind in (arguments.kind or KINDS))
    # This machine's clock will do: clocks differ by less than days.
    before = time.time() - arguments.older_than * DAY if arguments.older_than is not None else float("inf")
    max_bytes = int((arguments.max_gb or 0) * GB)
    evicted = store.artifacts.eviction.prune(max_bytes, kinds, lambda one: one.used <= before, arguments.dry_run)
    if evicted is None:
        sys.stderr.write("error: another process evicts from this store at the moment; try again when it is done\n")
        return 1
    if arguments.json:
        print_json({"store": str(store.root), "dry_run": arguments.dry_run, **asdict(evicted)})
        return 0
    doing = "would remove" if arguments.dry_run else "removed"
    sys.stdout.write(
        f"{doing} {len(evicted.removed)} artifacts of {evicted.freed_bytes / 1e6:,.1f} MB; "
        f"{evicted.left_bytes / 1e6:,.1f} MB are left, running jobs need {evicted.pinned_bytes / 1e6:,.1f} MB of them\n"
    )
    return 0
