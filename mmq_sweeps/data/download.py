"""Download a file over HTTP with retries; a broken download resumes from the last byte.

Uses the standard library, which follows redirects and takes proxies from the environment; ranges are a header. httpx is
installed only because huggingface_hub wants it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

from mmq_sweeps import __version__

_CHUNK = 1 << 20
# Status codes worth a retry.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0
# Left free on the disk besides the file.
_SPARE = 50_000_000


class DownloadError(OSError):
    """A file could not be downloaded; the message names its URL and any partial file on the disk."""


@dataclass(frozen=True)
class Expected:
    """Known ``size`` in bytes and ``sha256`` of the file, or None."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Downloaded:
    size: int
    sha256: str


@dataclass(frozen=True)
class Patience:
    """Retry limits: give up after ``attempts`` in a row without a new byte.

    The pause before each retry doubles from ``pause`` seconds; ``timeout`` is in seconds.
    """

    attempts: int = 8
    pause: float = 1.0
    timeout: float = 60.0


# Called with the bytes present and the size of the whole file, or None if the server omits it.
Meter = Callable[[int, int | None], None]

_UNKNOWN, _PATIENT = Expected(), Patience()


def download(
    url: str,
    target: Path,
    expected: Expected = _UNKNOWN,
    meter: Meter = lambda done, total: None,
    patience: Patience = _PATIENT,
) -> Downloaded:
    """Download ``url`` to ``target``, which appears whole or not at all.

    Partial data stay in ``TARGET.part``, with the server's version mark (ETag or date) beside it. They are reused
    unless that mark has changed or the server does not serve ranges. A file of unexpected size or digest is moved to
    ``TARGET.rejected``.

    Raises DownloadError with the URL and the reason: disk too full, refused by the server, attempts used up, wrong size
    or digest.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, keep_unmarked=expected.sha256 is not None)
    try:
        return _finish(url, part, target, _fetch(url, part, expected, meter, patience), expected)
    except _WrongContentError:
        if not part.joined:
            raise
    # Two pieces of different versions may be the reason: retry from the start.
    part.restart({})
    return _finish(url, part, target, _fetch(url, part, expected, meter, patience), expected)


class _WrongContentError(DownloadError):
    pass


class _Passing(Exception):
    """Transient failure to retry; ``pause`` is the delay that the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        self.pause = pause
        super().__init__(reason)


class _Part:
    """Partial file with its running digest and the server's mark of its version.

    ``joined`` is true if it came in more than one piece.
    """

    def __init__(self, target: Path, keep_unmarked: bool) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._mark_path = target.with_name(f"{target.name}.part.json")
        self.mark = self._read_mark()
        self.size, self.digest, self.joined = 0, hashlib.sha256(), False
        if not self.mark and not keep_unmarked:
            # Its version is unknown and no digest would expose a mix, so nothing can be appended.
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            with self.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self._count(chunk)

    def restart(self, mark: Mapping[str, str]) -> None:
        """Discard the data and start over with the version that ``mark`` names."""
        self.path.unlink(missing_ok=True)
        self.size, self.digest, self.mark, self.joined = 0, hashlib.sha256(), dict(mark), False
        if mark:
            self._mark_path.write_text(json.dumps(self.mark))
        else:
            self._mark_path.unlink(missing_ok=True)

    def append(self, chunks: Iterator[bytes]) -> None:
        with self.path.open("ab", buffering=0) as file:
            for chunk in chunks:
                rest = memoryview(chunk)
                while rest:
                    try:
                        rest = rest[file.write(rest) :]
                    except OSError as error:
                        raise DownloadError(f"{self.path}: {error.strerror}; {self.size:,} bytes are kept") from error
                self._count(chunk)

    def move(self, target: Path) -> None:
        """Flush to disk and rename to ``target``."""
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
        self.path.replace(target)
        self._mark_path.unlink(missing_ok=True)

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size += len(chunk)

    def _read_mark(self) -> dict[str, str]:
        try:
            mark = json.loads(self._mark_path.read_text())
        except (OSError, ValueError):
            return {}
        return mark if isinstance(mark, dict) else {}


def _fetch(url: str, part: _Part, expected: Expected, meter: Meter, patience: Patience) -> int:
    """Fill ``part``, retrying; return the size of the whole file."""
    failures, furthest = 0, part.size
    while True:
        try:
            return _attempt(url, part, expected, meter, patience.timeout)
        except _Passing as passing:
            # Without ranges, a server that cuts connections never gets further, however often it starts over.
            failures = failures + 1 if part.size <= furthest else 1
            furthest = max(furthest, part.size)
            if failures >= patience.attempts:
                kept = f"; {part.size:,} bytes are kept in {part.path}, run the same command again to go on"
                raise DownloadError(
                    f"{url}: {passing}; gave up after {failures} attempts in a row without progress{kept if part.size else ''}"
                ) from None
            time.sleep(min(max(patience.pause * 2 ** (failures - 1), passing.pause), _LONGEST_PAUSE))


def _attempt(url: str, part: _Part, expected: Expected, meter: Meter, timeout: float) -> int:
    """Request the missing bytes once; return the size of the whole file, or raise _Passing to retry."""
    headers = {"User-Agent": f"mmq-sweeps/{__version__}", "Accept-Encoding": "identity"}
    if part.size and (part.mark or expected.sha256):
        headers |= {"Range": f"bytes={part.size}-"} | ({"If-Range": part.mark["version"]} if part.mark else {})
    try:
        # The shared opener would reuse the proxies of the process's first request.
        opener = urllib.request.build_opener()
        with opener.open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
            total = _begin(url, part, response.status, response.headers, expected)
            part.append(_chunks(response, part, total, meter))
    except urllib.error.HTTPError as error:
        with error:
            return _refused(url, part, error)
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DownloadError(f"{url}: {reason}") from error
        raise _Passing(f"{str(reason) or type(reason).__name__}") from error
    if total is not None and part.size < total:
        raise _Passing(f"the connection closed at {part.size:,} of {total:,} bytes")
    return part.size


def _begin(url: str, part: _Part, status: int, headers: Message, expected: Expected) -> int | None:
    """Prepare ``part`` for the response body; return the size of the whole file, or None if the server omits it."""
    if status == 206:
        start, total = _range_of(headers)
        changed = part.mark and _mark(headers) and _mark(headers) != part.mark
        if start != part.size or changed:
            part.restart({})
            raise _Passing("the server sent a piece that does not fit")
        part.joined = True
    else:
        # The whole file: it is new, it changed, or the server serves no ranges.
        total = _length(headers)
        part.restart(_mark(headers))
    if expected.size is not None and total is not None and total != expected.size:
        part.restart({})
        raise _WrongContentError(
            f"{url}: not the file that is expected: the server has {total:,} bytes of it, expected {expected.size:,}"
        )
    if total is not None:
        _check_room(url, part.path.parent, total - part.size)
    return total


def _chunks(response: Any, part: _Part, total: int | None, meter: Meter) -> Iterator[bytes]:
    meter(part.size, total)
    # read1 returns the bytes that have arrived, so a connection cut later loses nothing.
    while chunk := response.read1(_CHUNK):
        yield chunk
        meter(part.size, total)


def _refused(url: str, part: _Part, error: urllib.error.HTTPError) -> int:
    if error.code == 416:
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(part.size):
            return part.size
        part.restart({})
        raise _Passing("the server has less than what is there")
    if error.code in _PASSING:
        asked = error.headers.get("Retry-After") or ""
        raise _Passing(f"{error.code} {error.reason}", float(asked) if asked.isdigit() else 0.0)
    raise DownloadError(f"{url}: {error.code} {error.reason}")


def _finish(url: str, part: _Part, target: Path, size: int, expected: Expected) -> Downloaded:
    digest = part.digest.hexdigest()
    wrong = None
    if expected.size not in (None, size):
        wrong = f"it has {size:,} bytes, expected {expected.size:,}"
    elif expected.sha256 not in (None, digest):
        wrong = f"its SHA-256 is {digest}, expected {expected.sha256}"
    if wrong:
        rejected = target.with_name(f"{target.name}.rejected")
        part.move(rejected)
        raise _WrongContentError(f"{url}: not the file that is expected: {wrong}. What came is kept as {rejected}")
    part.move(target)
    return Downloaded(size, digest)


def _mark(headers: Message) -> dict[str, str]:
    """Return the file's version if the server gives it in a form valid for If-Range (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag") or ""
    version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    return {"version": version} if version else {}


def _length(headers: Message) -> int | None:
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdigit() else None


def _range_of(headers: Message) -> tuple[int, int | None]:
    """Return start and total of ``Content-Range: bytes 5-9/10``; a start of -1 if malformed."""
    span, _, total = (headers.get("Content-Range") or "").removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    if not start.isdigit():
        return -1, None
    length = _length(headers)
    return int(start), int(total) if total.isdigit() else length if length is None else int(start) + length


def _check_room(url: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise DownloadError(f"{url}: {needed:,} bytes are to come, but {folder} has only {free:,} bytes free")
