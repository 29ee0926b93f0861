"""Atomic file operations of a store; corrupt files are moved aside, and errors suggest a remedy."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mmq_sweeps.errors import StoreError

logger = logging.getLogger(__name__)

STALE_SECONDS = 24 * 3600
# Errors of file systems without hard links: FAT, some FUSE mounts and object stores.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Files:
    """Files under ``root``. Unless ``writable``, nothing is created, moved or touched."""

    root: Path
    writable: bool = True

    def prepare(self) -> None:
        """Create the folders, check that they are writable, and remove temporary files older than a day.

        Killed writers leave such files.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in ("cells", "artifacts/references", "tmp"):
            self.make_folder(self.root / folder)
        probe = self._temporary("probe")
        try:
            self._fill(probe, b"writable\n", durable=True)
        finally:
            probe.unlink(missing_ok=True)
        # Compares a server's clock with this machine's: clocks differ by less than a day, and a day's leftovers are small.
        now = time.time()
        for path in (self.root / "tmp").iterdir():
            with suppress(FileNotFoundError):  # Another process removed it.
                if now - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def write(self, path: Path, content: bytes, *, durable: bool = True) -> None:
        """Write ``content`` to ``path`` atomically; if ``durable``, also fsync it so that it survives a power loss."""
        temporary = self._temporary(path.name)
        try:
            self._fill(temporary, content, durable)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, path: Path, content: bytes) -> bool:
        """Create ``path`` with ``content`` unless it exists; True for exactly one of several concurrent callers.

        Uses a hard link, or exclusive creation if the file system has no links. The file server decides both, NFS included.
        """
        temporary = self._temporary(path.name)
        try:
            self._fill(temporary, content, durable=False)
            try:
                os.link(temporary, path)
            except FileExistsError:
                # NFS may lose the reply to a successful link and send it again: two links mean that this call made it.
                return temporary.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._create_exclusively(path, content)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def move_aside(self, path: Path, reason: str | None) -> None:
        """Move a corrupt file or folder to ``corrupt/`` and log ``reason``; in a read-only store only log it."""
        if not self.writable:
            if reason:
                logger.warning("%s: left out, and left where it is.", reason)
            return
        target = self.root / "corrupt" / f"{path.name}.{uuid.uuid4().hex[:8]}"
        with explained(target):
            self.make_folder(target.parent)
            try:
                path.replace(target)
            except FileNotFoundError:  # Another process moved it.
                return
        if reason:
            logger.warning("%s: moved to %s; it will be computed again.", reason, target)

    def make_folder(self, path: Path) -> None:
        """Create a folder and its parents, with the permissions of the store's root (see ``share``)."""
        if path.is_dir():
            return
        self.make_folder(path.parent)
        path.mkdir(exist_ok=True)
        share(path, self.root)

    def _fill(self, path: Path, content: bytes, durable: bool) -> None:
        with path.open("wb") as file:
            share(path, self.root)
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    def _create_exclusively(self, path: Path, content: bytes) -> bool:
        try:
            with path.open("xb") as file:
                share(path, self.root)
                file.write(content)
        except FileExistsError:
            return False
        return True

    def _temporary(self, name: str) -> Path:
        # File names are limited to 255 bytes.
        return self.root / "tmp" / f"{name[:100]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def share(path: Path, root: Path) -> None:
    """Grant ``path``, created by this process, the group and the permissions of the store's folder ``root``.

    With the usual umask of 022, other members of a group could not write to locks and folders, as every process must.
    Does nothing if only the owner may write to ``root``.
    """
    whole = root.stat()
    if not whole.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    own = path.stat()
    if own.st_uid != os.geteuid():  # Another user's process created it at the same moment.
        return
    if own.st_gid != whole.st_gid:
        with suppress(OSError):  # Not a member of the group, or a file system without groups.
            os.chown(path, -1, whole.st_gid)
        own = path.stat()
    of_folders = stat.S_IXGRP | stat.S_IXOTH | stat.S_ISGID
    wanted = whole.st_mode & (stat.S_IRWXG | stat.S_IRWXO | stat.S_ISGID)
    if not path.is_dir():
        wanted &= ~of_folders
    if own.st_gid != whole.st_gid:  # Another group than the store's: grant it nothing.
        wanted &= stat.S_IRWXO
    if wanted & ~own.st_mode:
        with suppress(OSError):
            path.chmod(stat.S_IMODE(own.st_mode) | wanted)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Convert an OSError in the context to a ``StoreError`` that names ``path`` and suggests a remedy."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            do = "let its owner share the store with your group (docs/store.md)"
        else:
            do = "make room"
        raise StoreError(
            error.errno,
            f"cannot write {path}: {error.strerror}. Choose another folder with store.dir=FOLDER, or {do}; "
            "what was recorded before is kept",
        ) from error
