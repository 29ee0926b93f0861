"""Digests of files, cached by size, modification times and inode, so that each file is read once.

The cache is the folder ``MMQ_CACHE``, else ``mmq-sweeps`` in ``XDG_CACHE_HOME`` or ``~/.cache``. It belongs to the user and
not to a store for two reasons: digests decide which records are valid, so nobody else may write them, and several stores
can share it.

It has a JSON file per folder of files, replaced atomically. If two processes write at once, either may win, and the
other's files are digested again; a damaged or unwritable cache file costs the same, nothing more.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from mmq_sweeps.whole_files import write_whole

VERSION = 1
READERS = 8
# Timestamps of file systems may be as coarse as this, so a file changed more recently could change again unnoticed.
# Measured by the inode's change time, which programs cannot set.
SETTLED_SECONDS = 2.0
# Size, mtime and ctime in nanoseconds, and inode. Content that is put in place with an old mtime still changes the ctime
# or the inode. The device is left out because it differs between the machines of a cluster.
Stamp = tuple[int, int, int, int]


def content_digests(paths: Iterable[Path]) -> dict[Path, str | None]:
    """Return the hexadecimal SHA-256 of each file; None for a file that is absent or unreadable."""
    found: dict[Path, str | None] = {}
    folders: dict[Path, dict[str, Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(path.absolute().parent, {})[path.name] = path
    for folder, files in folders.items():
        digests = _of_folder(folder, files)
        found |= {path: digests[name] for name, path in files.items()}
    return found


def content_digest(paths: Iterable[Path]) -> str:
    """Digest files, in order, to sixteen hexadecimal digits; a single file gives the start of its SHA-256."""
    digests = [digest or "missing" for digest in content_digests(paths).values()]
    return digests[0][:16] if len(digests) == 1 else _together(digests)


def folder_digest(folder: Path, files: Iterable[Path]) -> str:
    """Digest the contents of ``files`` and their paths relative to ``folder`` to sixteen hexadecimal digits."""
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
    # hashlib releases the GIL.
    with ThreadPoolExecutor(min(READERS, os.cpu_count() or 1, len(unknown))) as pool:
        found |= dict(zip(unknown, pool.map(lambda name: _digest(folder / name, unknown[name]), unknown), strict=True))
    settled = time.time_ns() - int(SETTLED_SECONDS * 1e9)
    new = {
        name: (stamp, digest)
        for name, stamp in unknown.items()
        # A file that changed during the read is not cached.
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


# Serves when the cache folder cannot be written.
@lru_cache(maxsize=4096)
def _settled(path: Path, stamp: Stamp) -> str:  # noqa: ARG001 - cache key
    return _content(path)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(folder: Path) -> Path | None:
    """Return the cache file for ``folder``; None for a user without a home."""
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
    with suppress(OSError):
        write_whole(place, json.dumps(content))
