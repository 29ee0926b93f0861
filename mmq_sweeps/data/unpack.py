"""Unpack archive members below a folder: never outside it, and each file whole or not at all."""

from __future__ import annotations

import fnmatch
import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from mmq_sweeps.data.catalog import Content

_CHUNK = 1 << 20
_SPARE = 50_000_000
# Raised by the standard library while it reads a damaged archive.
_DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError,
    RuntimeError, ValueError,
)  # fmt: skip


class UnpackError(OSError):
    """An archive cannot be unpacked; the message names it and the reason."""


class DamagedError(UnpackError):
    """The archive is damaged or cut short; the files unpacked before that point are intact."""


@dataclass(frozen=True)
class Unpacked:
    """A written file: its size in bytes and the CRC-32 of its content."""

    size: int
    crc: int


Member = TypeVar("Member")

# Called with the number of files done and their total.
Progress = Callable[[int, int], None]


def unpack(
    archive: Path, root: Path, contents: Sequence[Content], progress: Progress = lambda done, total: None
) -> Mapping[str, Unpacked]:
    """Write the members of a zip or tar that match ``contents`` below ``root``, and return them by path below it.

    If several contents match a member, the first wins. A file already present with the member's size and checksum is
    left alone (zip only; a tar has no checksums).

    Raises UnpackError if the archive is missing, damaged or cut short, if a member is a link or leads out of the
    archive, if two members share a name, if a content matches no member, or if the disk is too full.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                return _unpack_zip(opened, archive, root, contents, progress)
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as packed:
                return _unpack_tar(packed, archive, root, contents, progress)
    except FileNotFoundError as error:
        raise UnpackError(f"{archive}: there is no such file") from error
    except _DAMAGED as error:
        raise DamagedError(f"{archive}: is damaged or cut short ({error})") from error
    except OSError as error:
        # Only bz2 reports damage as an OSError without a number; it names no file.
        if isinstance(error, UnpackError) or error.errno is not None:
            raise
        raise DamagedError(f"{archive}: is damaged or cut short ({error})") from error
    raise DamagedError(f"{archive}: is cut short, or neither zip nor tar")


def is_there(target: Path, file: Unpacked, read: bool = True) -> bool:
    """Return whether ``target`` has the size of ``file`` and, with ``read``, its checksum."""
    try:
        if target.stat().st_size != file.size:
            return False
        if not read:
            return True
        with target.open("rb") as opened:
            return _crc(iter(lambda: opened.read(_CHUNK), b"")).crc == file.crc
    except OSError:
        return False


def _unpack_zip(
    opened: zipfile.ZipFile, archive: Path, root: Path, contents: Sequence[Content], progress: Progress
) -> dict[str, Unpacked]:
    # Not is_dir, which fails on an empty name before Python 3.12.
    members = [member for member in opened.infolist() if not member.filename.endswith("/")]
    for member in members:
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UnpackError(f"{archive}: the member {member.filename!r} is a link; nothing was unpacked")
    # orig_filename: Python cuts a name at a zero byte, and replaces a backslash on Windows only.
    wanted = _choose(archive, [(member.orig_filename, member) for member in members], contents)
    _check_room(archive, root, sum(member.file_size for _, member in wanted))
    written = {}
    for place, member in wanted:
        target = root / place
        found = Unpacked(member.file_size, member.CRC)
        if not is_there(target, found):
            with opened.open(member) as source:
                _write(source, target)
        written[place] = found
        progress(len(written), len(wanted))
    return written


def _unpack_tar(
    packed: tarfile.TarFile, archive: Path, root: Path, contents: Sequence[Content], progress: Progress
) -> dict[str, Unpacked]:
    members = [member for member in packed.getmembers() if not member.isdir()]
    # A gzip's checksum lies behind the last member, and is compared only by who reads up to it.
    while packed.fileobj is not None and packed.fileobj.read(_CHUNK):
        pass
    for member in members:
        if not member.isfile():
            raise UnpackError(f"{archive}: the member {member.name!r} is a link or a device; nothing was unpacked")
    wanted = _choose(archive, [(member.name, member) for member in members], contents)
    _check_room(archive, root, sum(member.size for _, member in wanted))
    written = {}
    for place, member in wanted:
        source = packed.extractfile(member)
        assert source is not None  # a regular file has a content
        with source:
            written[place] = _write(source, root / place)
        if written[place].size != member.size:
            raise DamagedError(f"{archive}: is damaged or cut short at {member.name}")
        progress(len(written), len(wanted))
    return written


def _choose(
    archive: Path, members: Sequence[tuple[str, Member]], contents: Sequence[Content]
) -> list[tuple[str, Member]]:
    """Return the matching members with their destinations below the root."""
    chosen: dict[str, Member] = {}
    for name, member in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if not path.parts:
            raise UnpackError(f"{archive}: has a file that is named {name!r}; nothing was unpacked")
        if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[0]:
            raise UnpackError(f"{archive}: the member {name!r} leads out of the archive; nothing was unpacked")
        # Files that macOS adds to archives are never images, even if named like them.
        if path.name.startswith("._") or "__MACOSX" in path.parts:
            continue
        fitting = next((content for content in contents if fnmatch.fnmatchcase(path.name, content.pattern)), None)
        if fitting is None:
            continue
        place = PurePosixPath(fitting.folder, path.name).as_posix()
        if place in chosen:
            raise UnpackError(f"{archive}: has two members {path.name!r}; nothing was unpacked")
        chosen[place] = member
    absent = [
        one.pattern for one in contents if not any(fnmatch.fnmatchcase(Path(at).name, one.pattern) for at in chosen)
    ]
    if absent:
        raise UnpackError(f"{archive}: has no {', '.join(absent)}; is it another archive?")
    return list(chosen.items())


def _write(source: IO[bytes], target: Path) -> Unpacked:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")

    def copied() -> Iterator[bytes]:
        with temporary.open("wb") as file:
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                yield chunk

    try:
        written = _crc(copied())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return written


def _crc(chunks: Iterator[bytes]) -> Unpacked:
    size = crc = 0
    for chunk in chunks:
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return Unpacked(size, crc)


def _check_room(archive: Path, root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed + _SPARE:
        raise UnpackError(f"{archive}: unpacks to {needed:,} bytes, but {root} has only {free:,} bytes free")
