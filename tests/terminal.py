"""Commands on a real terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import command_environment


def on_a_terminal(arguments: Sequence[str], folder: Path) -> str:
    """What Python with these arguments, which has to succeed, writes to a terminal of 150 columns."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder, env=command_environment(TERM="xterm-256color", COLUMNS="150"), stdout=child, stderr=child,
    )  # fmt: skip
    os.close(child)
    shown = b""
    while True:
        try:
            data = os.read(parent, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not data:
            break
        shown += data
    os.close(parent)
    assert process.wait() == 0, shown.decode()
    return shown.decode()
