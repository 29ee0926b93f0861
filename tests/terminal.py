"""Run commands on a real terminal."""

from __future__ import annotations

import os
import pty
import select
from collections.abc import Sequence
from pathlib import Path

from tests.commands import Forked
from tests.conftest import command_environment


def on_a_terminal(module: str, arguments: Sequence[str], folder: Path) -> str:
    """Run ``python -m module arguments`` on a terminal of 150 columns, expect success, and return its output."""
    parent, child = pty.openpty()
    environment = command_environment(TERM="xterm-256color", COLUMNS="150")
    process = Forked(module, arguments, folder, environment, os.ttyname(child))
    shown = bytearray()
    os.set_blocking(parent, False)
    while (running := process.poll() is None) or select.select([parent], [], [], 0)[0]:
        if select.select([parent], [], [], 0.05)[0]:
            shown += os.read(parent, 65536)
        elif not running:
            break
    os.close(child)
    os.close(parent)
    process.communicate()
    assert process.returncode == 0, shown.decode()
    return shown.decode()
