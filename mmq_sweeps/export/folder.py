"""A folder that comes to be when all of it is written and verified, and not before."""

from __future__ import annotations

import errno
import glob
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmq_sweeps.errors import ConfigError

logger = logging.getLogger(__name__)
# Errors of a disk, a quota or a limit that leaves no room.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_target(out: Path) -> None:
    """Raise a ConfigError unless ``out`` is the name of a folder that can be made."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out {out}: exists; name a folder that does not, or remove it first")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it, or choose another one")


@contextmanager
def folder_at(out: Path) -> Iterator[Path]:
    """Yield a folder beside ``out`` that becomes ``out`` at the end, or is removed."""
    for left in out.parent.glob(f".{glob.escape(out.name)}.exporting-*"):
        logger.warning("%s was left by an export that was killed; remove it unless one is running", left)
    folder = out.parent / f".{out.name}.exporting-{os.uname().nodename}-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot make a folder there: {error.strerror}; choose another one") from error
    try:
        yield folder
        _sync(folder)
        if out.exists():
            raise ConfigError(f"--out {out}: came to be meanwhile; name another folder")
        folder.rename(out)
        _sync(out.parent)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ConfigError(
            f"--out {out}: no room is left ({error.strerror}); make room, or choose a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def empty(folder: Path) -> None:
    """Remove everything in ``folder``."""
    shutil.rmtree(folder)
    folder.mkdir()
