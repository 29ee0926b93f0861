"""Files of a store: written whole or not at all, moved aside when they turn out wrong, errors told with what can be done."""

from __future__ import annotations

import errno
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mmq_sweeps.errors import StoreError

STALE_SECONDS = 24 * 3600
# What file systems without hard links answer: FAT, some of FUSE and of object stores.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True)
class Files:
    """The files under ``root``. One that is not ``writable`` is only read: nothing is moved, made or touched."""

    root: Path
    say: Callable[[str], None] = field(compare=False)
    writable: bool = True

    def prepare(self) -> None:
        """Create the folders, prove that they can be written, and remove what killed writers left behind a day ago."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in ("cells", "artifacts/references", "tmp"):
            self.make_folder(self.root / folder)
        probe = self._temporary("probe")
        try:
            self._fill(probe, b"writable\n", durable=True)
        finally:
            probe.unlink(missing_ok=True)
        # Compared on this machine's clock; a day is more than clocks differ by, and less than matters for space.
        now = time.time()
        for path in (self.root / "tmp").iterdir():
            with suppress(FileNotFoundError):  # Another process was first.
                if now - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def write(self, path: Path, content: bytes, *, durable: bool = True) -> None:
        """Put ``content`` under ``path`` in one step; ``durable`` ones outlast a machine that loses power."""
        temporary = self._temporary(path.name)
        try:
            self._fill(temporary, content, durable)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def create(self, path: Path, content: bytes) -> bool:
        """Put ``content`` under ``path`` unless something is there; of all who try at once, one is told True.

        A link, and where there are none an exclusive creation, is decided by the file server, on NFS as well.
        """
        temporary = self._temporary(path.name)
        try:
            self._fill(temporary, content, durable=False)
            try:
                os.link(temporary, path)
            except FileExistsError:
                # The answer to a link that was made may get lost on NFS; sent again, it finds itself there.
                return temporary.stat().st_nlink == 2
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return self._create_exclusively(path, content)
            return True
        finally:
            temporary.unlink(missing_ok=True)

    def move_aside(self, path: Path, reason: str | None) -> None:
        """Move what is wrong to ``corrupt/`` and tell ``reason``; in a store that is only read, leave it and tell."""
        if not self.writable:
            if reason:
                self.say(f"{reason}: left out, and left where it is.")
            return
        target = self.root / "corrupt" / f"{path.name}.{uuid.uuid4().hex[:8]}"
        with explained(target):
            self.make_folder(target.parent)
            try:
                path.replace(target)
            except FileNotFoundError:  # Another process was first.
                return
        if reason:
            self.say(f"{reason}: moved to {target}; it will be computed again.")

    def make_folder(self, path: Path) -> None:
        """Create a folder, and those above it, as open as the store's own folder."""
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
        # Names are cut, since a file name holds 255 bytes at most.
        return self.root / "tmp" / f"{name[:100]}.{os.getpid()}.{uuid.uuid4().hex[:8]}"


def share(path: Path, root: Path) -> None:
    """Open ``path``, which this process has made, to those who may write to the store's folder ``root``.

    The usual umask of 022 would keep the others of a group from locks and folders, which every process has to write to.
    Nothing happens in a store whose folder only its owner may write to.
    """
    whole = root.stat()
    if not whole.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return
    own = path.stat()
    if own.st_uid != os.geteuid():  # Another process has made it at the same moment.
        return
    if own.st_gid != whole.st_gid:
        with suppress(OSError):  # Only members may give a file to a group, and some file systems have none.
            os.chown(path, -1, whole.st_gid)
        own = path.stat()
    of_folders = stat.S_IXGRP | stat.S_IXOTH | stat.S_ISGID
    wanted = whole.st_mode & (stat.S_IRWXG | stat.S_IRWXO | stat.S_ISGID)
    if not path.is_dir():
        wanted &= ~of_folders
    if own.st_gid != whole.st_gid:  # What the group may is not meant for this one.
        wanted &= stat.S_IRWXO
    if wanted & ~own.st_mode:
        with suppress(OSError):
            path.chmod(stat.S_IMODE(own.st_mode) | wanted)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """An OSError inside becomes a ``StoreError`` that names ``path`` and what can be done."""
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
