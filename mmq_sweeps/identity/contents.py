"""Digests of files' contents, each read once: what was read is kept by size, times of change and inode.

Kept in a folder of the user's own, ``MMQ_CACHE``, else ``mmq-sweeps`` in ``XDG_CACHE_HOME`` or ``~/.cache``: a digest
decides which records count, so nobody else may write it, and one that serves many stores is read once for all of them.
One JSON file for each folder of files, replaced in one step. Of two processes that write at once one may win, which costs
the other's files another read; a file that is damaged or cannot be written costs the same and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

VERSION = 1
READERS = 8
# A file changed so recently may change again without another time of change: file systems count as coarsely as this. The
# inode's time says when, since it cannot be set.
SETTLED_SECONDS = 2.0
# Size, times of change of content and of inode in nanoseconds, and inode. A content put in place with an old time of
# change still changes the inode or its own time. Devices are left out: they differ between the machines of a cluster.
Stamp = tuple[int, int, int, int]


def content_digests(paths: Iterable[Path]) -> dict[Path, str | None]:
    """The SHA-256, in hexadecimal, of each file's content; ``None`` for a file that is not there or cannot be read."""
    found: dict[Path, str | None] = {}
    folders: dict[Path, dict[str, Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(path.absolute().parent, {})[path.name] = path
    for folder, files in folders.items():
        digests = _of_folder(folder, files)
        found |= {path: digests[name] for name, path in files.items()}
    return found


def content_digest(paths: Iterable[Path]) -> str:
    """Sixteen hexadecimal digits for the contents of several files in their order, of one file those of its SHA-256."""
    digests = [digest or "missing" for digest in content_digests(paths).values()]
    return digests[0][:16] if len(digests) == 1 else _together(digests)


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """Sixteen hexadecimal digits for the contents of ``files`` and their names in ``folder``."""
    digests = content_digests(sorted(files))
    return _together(
        f"{path.relative_to(folder).as_posix()}\0{digest or 'missing'}" for path, digest in digests.items()
    )


def _together(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _of_folder(folder: Path, names: Iterable[str]) -> dict[str, str | None]:
    stamps = {name: _stamp(folder / name) for name in names}
    place = _place(folder)
    kept = _read(place)
    found: dict[str, str | None] = {}
    unknown: dict[str, Stamp] = {}
    for name, stamp in stamps.items():
        entry = kept.get(name)
        if stamp is None:
            found[name] = None
        elif entry is not None and entry[0] == stamp:
            found[name] = entry[1]
        else:
            unknown[name] = stamp
    if not unknown:
        return found
    # Digests are taken outside the interpreter's lock.
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1, len(unknown))) as pool:
        found |= dict(zip(unknown, pool.map(lambda name: _digest(folder / name, unknown[name]), unknown), strict=True))
    settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
    new = {
        name: (stamp, digest)
        for name, stamp in unknown.items()
        # One that changed while it was read is read again next time.
        if (digest := found[name]) is not None and stamp[2] < settled and _stamp(folder / name) == stamp
    }
    if new and place is not None:
        _write(place, folder, {**_read(place), **new})
    return found


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _digest(path: Path, stamp: Stamp) -> str | None:
    try:
        if stamp[2] > time.time_ns() - int(SETTLED_SECONDS * 1e9):
            return _content(path)
        return _settled(path, stamp)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _settled(path: Path, stamp: Stamp) -> str:  # noqa: ARG001 - what the cache goes by, if none can be written
    return _content(path)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(folder: Path) -> Path | None:
    """Where the digests of the files in ``folder`` are kept; ``None`` for a user without a home."""
    if own := os.environ.get("MMQ_CACHE"):
        root = Path(own)
    else:
        try:
            root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmq-sweeps"
        except RuntimeError:
            return None
    return root / "contents" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:24]}.json"


def _read(place: Path | None) -> dict[str, tuple[Stamp, str]]:
    if place is None:
        return {}
    try:
        content = json.loads(place.read_bytes())
        if content["version"] != VERSION:
            return {}
        return {
            name: ((size, changed, inode_changed, inode), digest)
            for name, (size, changed, inode_changed, inode, digest) in content["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(place: Path, folder: Path, files: Mapping[str, tuple[Stamp, str]]) -> None:
    content = {
        "version": VERSION,
        "folder": str(folder),
        "files": {name: [*stamp, digest] for name, (stamp, digest) in files.items()},
    }
    temporary = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(content))
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
