"""Write a text file whole or not at all, in folders that other processes and machines read and write."""

from __future__ import annotations

import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``; if that fails, nothing is left behind and the OSError names ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the process id: two machines that share the folder may have the same.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
