"""Members of an archive, written below a folder: nowhere else, each whole or not at all."""

from __future__ import annotations

import fnmatch
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
# What a damaged archive raises while it is read.
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


class UnpackError(OSError):
    """An archive cannot be unpacked; the message names it and the reason."""


class DamagedError(UnpackError):
    """What was unpacked so far is right, but the archive is not whole."""


@dataclass(frozen=True)
class Unpacked:
    """A written file: its size in bytes and the CRC-32 of its content."""

    size: int
    crc: int


Member = TypeVar("Member")

# Told the number of files done and of all.
Progress = Callable[[int, int], None]


def unpack(
    archive: Path, root: Path, contents: Sequence[Content], progress: Progress = lambda done, total: None
) -> Mapping[str, Unpacked]:
    """Write the members of a zip or tar that fit ``contents`` below ``root``; what was written, by path below ``root``.

    Where several contents fit, the first does. A file that is there with the member's size and checksum is left alone
    (zip; a tar has no checksums). An UnpackError: no such archive, damaged or cut short, a member that leads out of
    the archive or is a link, two members of one name, no member that fits, or no room on the disk.
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
    raise DamagedError(f"{archive}: is cut short, or neither zip nor tar")


def is_there(target: Path, file: Unpacked, read: bool = True) -> bool:
    """Whether ``target`` has the size and, if it may be read, the checksum of ``file``."""
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
    members = [member for member in opened.infolist() if not member.is_dir()]
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
    """The members that fit, with the places below the root that they go to."""
    chosen: dict[str, Member] = {}
    for name, member in members:
        path = PurePosixPath(name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[0]:
            raise UnpackError(f"{archive}: the member {name!r} leads out of the archive; nothing was unpacked")
        # What macOS adds to archives are no images, whatever their names.
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
