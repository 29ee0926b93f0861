"""Prepare a published set in a folder: download, verify and unpack its files, and record them."""

from __future__ import annotations

import hashlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmq_sweeps.data.catalog import Archive, Content, DataSet
from mmq_sweeps.data.check import Draw
from mmq_sweeps.data.download import Downloaded, DownloadError, Expected, Patience, download
from mmq_sweeps.data.images import ImageError, open_image
from mmq_sweeps.data.manifest import Manifest, read_manifest, write_manifest
from mmq_sweeps.data.published import Pictured
from mmq_sweeps.data.unpack import DamagedError, Unpacked, unpack

if sys.platform != "win32":
    import fcntl

DOWNLOADS = "downloads"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Order:
    """Data set to prepare, its destination and its sources.

    ``mirror`` is a base URL that serves every file by name; ``urls`` gives URLs of single files. ``images`` is the
    user's folder or archive of a set whose images cannot be downloaded.
    """

    set: DataSet
    root: Path
    draw: Draw
    images: Path | None = None
    mirror: str = ""
    urls: Mapping[str, str] = field(default_factory=dict)
    keep_archives: bool = False
    # Compare checksums of existing files, not only sizes.
    thorough: bool = False
    patience: Patience = field(default_factory=Patience)

    def archives(self) -> tuple[Archive, ...]:
        return self.set.archives + (self.set.training if self.draw.count is None else ())

    def url_of(self, archive: Archive) -> str:
        if archive.file in self.urls:
            return self.urls[archive.file]
        return f"{self.mirror.rstrip('/')}/{archive.file}" if self.mirror else archive.url


@dataclass(frozen=True)
class Step:
    """Archive and its ``state``: ``download``, ``unpack`` (already downloaded) or ``there`` (nothing to do)."""

    archive: Archive
    url: str
    state: str
    # Bytes left to download.
    missing: int


@dataclass(frozen=True)
class Watch:
    """Progress callbacks: ``say`` takes a line of text.

    ``bytes`` and ``files`` take the name of the current item, the amount done and the total.
    """

    say: Callable[[str], None]
    bytes: Callable[[str, int, int | None], None]
    files: Callable[[str, int, int], None]


def plan(order: Order) -> list[Step]:
    """Return the step that ``prepare`` would take with each archive; raises OSError if the disk is too small for all of it."""
    steps = [_step(order, archive) for archive in order.archives()]
    ahead = [step for step in steps if step.state != "there"]
    # An archive and its unpacked files coexist until it is removed; JPEGs are as large unpacked.
    needed = sum(step.archive.size for step in ahead)
    kept = [step.missing for step in ahead]
    needed += sum(kept) if order.keep_archives else max(kept, default=0)
    folder = next(path for path in (order.root, *order.root.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{order.root}: needs about {needed:,} bytes, but the disk has only {free:,} free")
    return steps


def prepare(order: Order, watch: Watch) -> None:
    """Prepare all archives, skipping finished work.

    Raises DownloadError, UnpackError or another OSError if a file cannot be obtained, and ValueError if the data or
    ``order.images`` are wrong. Finished work stays, and the next call resumes from it. Blocks while another process
    prepares data in the same root.
    """
    with _alone(order.root, watch):
        for archive in order.archives():
            _prepare_archive(order, _step(order, archive), watch)
        if order.set.by_hand:
            _bring_images(order, watch)
        if order.draw.count and order.set.singles:
            _bring_singles(order, watch)


def _step(order: Order, archive: Archive) -> Step:
    manifest = read_manifest(order.root, archive.file)
    url = order.url_of(archive)
    if manifest is not None and manifest.files and not manifest.wrong(order.root, order.thorough):
        return Step(archive, url, "there", 0)
    target = order.root / DOWNLOADS / archive.file
    if target.is_file():
        return Step(archive, url, "unpack", 0)
    part = target.with_name(f"{target.name}.part")
    return Step(archive, url, "download", max(0, archive.size - (part.stat().st_size if part.is_file() else 0)))


def _prepare_archive(order: Order, step: Step, watch: Watch) -> None:
    archive, name = step.archive, step.archive.file
    if step.state == "there":
        return
    target = order.root / DOWNLOADS / name
    expected = _expected(order.root, archive)
    if step.state == "unpack":
        found = _verified(target, expected, watch)
    else:
        watch.say(f"downloading {step.url}")
        found = download(step.url, target, expected, lambda done, total: watch.bytes(name, done, total), order.patience)
    try:
        files = unpack(target, order.root, archive.contents, lambda done, total: watch.files(name, done, total))
    except DamagedError as error:
        if archive.sha256 is not None:
            raise
        rejected = target.replace(target.with_name(f"{name}.rejected"))
        raise DamagedError(f"{error}; kept as {rejected}. Run the same command again to download it anew") from error
    write_manifest(order.root, name, Manifest(step.url, found.size, found.sha256, archive.sha256 is not None, files))
    if not order.keep_archives:
        target.unlink()
    digest = "as recorded" if archive.sha256 else "of the first download" if expected.sha256 is None else "as before"
    watch.say(f"{name}: SHA-256 {digest}, {len(files):,} files unpacked and verified")


def _expected(root: Path, archive: Archive) -> Expected:
    if archive.sha256 is not None:
        return Expected(archive.size, archive.sha256)
    before = read_manifest(root, archive.file)
    return Expected(before.size, before.sha256) if before is not None else Expected()


def _verified(target: Path, expected: Expected, watch: Watch) -> Downloaded:
    """Check an archive that is already downloaded, and return its size and digest."""
    digest, done, size = hashlib.sha256(), 0, target.stat().st_size
    with target.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            watch.bytes(f"{target.name} (verifying)", done, size)
    if expected.sha256 not in (None, digest.hexdigest()):
        raise DownloadError(
            f"{target}: is not the file that is expected: {size:,} bytes with the SHA-256 {digest.hexdigest()}, expected "
            f"{expected.size:,} bytes with {expected.sha256}; remove it to download it anew"
        )
    return Downloaded(size, digest.hexdigest())


def _bring_images(order: Order, watch: Watch) -> None:
    """Link to the user's image folder, or unpack the user's archive; the user's folder is never written to."""
    images, place = order.images, order.root / order.set.by_hand_folder
    if images is None:
        return
    if images.is_dir():
        # Before the link is removed: the user may name the link itself.
        folder = _folder_with_images(order, images).resolve()
        if folder == place.resolve():
            return
        if place.exists() and not place.is_symlink():
            raise ValueError(f"{place} has files of its own; remove it to use --images {images} in its place")
        place.unlink(missing_ok=True)
        place.symlink_to(folder, target_is_directory=True)
        watch.say(f"{place} leads to {folder}")
        return
    if not images.is_file():
        raise ValueError(f"--images {images}: there is no such folder or archive")
    if place.is_symlink():
        raise ValueError(
            f"{place} leads to {place.readlink()}, where nothing is unpacked; remove that link to use --images {images} "
            "in its place"
        )
    # Another set's archive may have the same name.
    name, size = f"{order.set.name}-{images.name}", images.stat().st_size
    before = read_manifest(order.root, name)
    if before is not None and before.size == size and before.files and not before.wrong(order.root, order.thorough):
        return
    contents = [Content("*.jpg", order.set.by_hand_folder)]
    files = unpack(images, order.root, contents, lambda done, total: watch.files(images.name, done, total))
    write_manifest(order.root, name, Manifest(str(images), size, files=files))
    watch.say(f"{images}: {len(files):,} files unpacked")


def _folder_with_images(order: Order, images: Path) -> Path:
    """Return ``images``, or the folder below it that has the first image of the evaluation split."""
    first = _choose(order, order.set.evaluation_split, Draw(1))[0].path.name
    for found in (images / first, *sorted(images.rglob(first))):
        if found.is_file():
            return found.parent
    raise ValueError(f"--images {images}: has no {first}, the first image of {order.set.name}'s test split")


def _bring_singles(order: Order, watch: Watch) -> None:
    """Download the sampled calibration images one by one."""
    drawn = [example.path for example in _choose(order, order.set.training_split, order.draw)]
    name = f"{order.set.name}-{order.set.training_split}"
    before = read_manifest(order.root, name) or Manifest(order.set.singles)
    places = {path.relative_to(order.root).as_posix(): path for path in drawn}
    wrong = set(before.wrong(order.root, order.thorough))
    absent = [place for place, path in places.items() if place in wrong or not path.is_file()]
    if not absent:
        return
    base = order.mirror.rstrip("/") or order.set.singles
    watch.say(f"downloading {len(absent)} images of {order.set.training_split} from {base}")
    files = dict(before.files)
    try:
        for number, place in enumerate(absent, 1):
            files[place] = _bring_single(f"{base}/{place}", places[place], order.patience)
            watch.files(f"images of {order.set.training_split}", number, len(absent))
    finally:
        write_manifest(order.root, name, replace(before, files=files))


def _bring_single(url: str, path: Path, patience: Patience) -> Unpacked:
    found = download(url, path, patience=patience)
    try:
        open_image(path)
    except ImageError as error:
        rejected = path.replace(path.with_name(f"{path.name}.rejected"))
        raise DownloadError(f"{url}: {error.reason}; what came is kept as {rejected}") from error
    return Unpacked(found.size, zlib.crc32(path.read_bytes()))


def _choose(order: Order, split: str, draw: Draw) -> Sequence[Pictured]:
    reader = order.set.reader(root=str(order.root), split=split, count=draw.count, seed=draw.seed)
    return reader.choose()


@contextmanager
def _alone(root: Path, watch: Watch) -> Iterator[None]:
    """Hold an exclusive lock on ``root``; on a file system without locks, continue without it."""
    folder = root / DOWNLOADS
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    with (folder / ".lock").open("w") as lock:
        with suppress(OSError):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                watch.say(f"another process prepares data in {root}; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
