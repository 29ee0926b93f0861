"""``python -m launch retry``: run the missing and failed cells of a recorded sweep, with its launcher."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from launch import start, sweep_file
from launch.commands import add_sweep
from mmq_sweeps.store.store import Store

add_arguments = add_sweep


def run(arguments: argparse.Namespace) -> int:
    store = Store.existing(arguments.store)
    written = sweep_file.read(store.root, sweep_file.find(store.root, arguments.sweep))
    settings = {**written.sweep.settings, "retry": "failed"}
    # The store may have moved, or have another path on this machine.
    settings["store"] = {**settings["store"], "dir": str(store.root)}
    # Paths of data and checkpoints may be relative to the original working directory.
    os.chdir(written.directory)
    start.check_settings(written.launcher)
    return start.start(replace(written.sweep, settings=settings), written.launcher, written.command)
