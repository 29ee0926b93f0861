"""``python -m launch retry``: run the cells of a recorded sweep that are missing or failed, with its launcher."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from launch import start, sweep_file
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.store.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", help="the store's folder (runs)")
    parser.add_argument("--sweep", help="a sweep's id or the first letters of it; the latest if left out")


def run(arguments: argparse.Namespace) -> int:
    store = Store.open(arguments.store)
    written = sweep_file.read(store.root, sweep_file.find(store.root, arguments.sweep))
    if not written.sweep.configs:
        # A sweep of an earlier version, which did not keep what its cells need to run.
        raise ConfigError(
            f"sweep {written.id}: its configuration is not recorded; run its command again: {written.command}"
        )
    settings = {**written.sweep.settings, "retry": "failed"}
    # The store may have been moved, or lie under another path on this machine.
    settings["store"] = {**settings["store"], "dir": str(store.root)}
    # Data and checkpoints may be named relative to where the command was run.
    os.chdir(written.directory)
    start.check_settings(written.launcher)
    return start.start(replace(written.sweep, settings=settings), written.launcher, written.command)
