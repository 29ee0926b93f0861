"""One file over HTTP, in as many attempts as it takes: a broken download goes on where it broke.

The standard library does it: it follows redirects and takes proxies from the environment, and ranges are a header. httpx
is installed only because huggingface_hub wants it.
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
# Answers after which the same request may succeed.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_PAUSE = 60.0
# Left free on the disk besides the file.
_SPARE = 50_000_000


class DownloadError(OSError):
    """A file could not be had; the message names its address and what is left on the disk."""


@dataclass(frozen=True)
class Expected:
    """What is known of the file: ``size`` in bytes and ``sha256``, or None."""

    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Downloaded:
    size: int
    sha256: str


@dataclass(frozen=True)
class Patience:
    """``attempts`` in a row that bring no new byte are the end; the pause before each doubles from ``pause`` seconds."""

    attempts: int = 8
    pause: float = 1.0
    timeout: float = 60.0


# Told the bytes that are there and those of the whole file, or None where the server does not say.
Meter = Callable[[int, int | None], None]

_UNKNOWN, _PATIENT = Expected(), Patience()


def download(
    url: str,
    target: Path,
    expected: Expected = _UNKNOWN,
    meter: Meter = lambda done, total: None,
    patience: Patience = _PATIENT,
) -> Downloaded:
    """Bring ``url`` to ``target``, which appears whole or not at all.

    What arrives is kept in ``TARGET.part``, with the server's mark of the file's version (ETag or date) beside it, and
    is asked for no second time unless that mark has changed or the server serves no ranges. A file of another size or
    digest than expected ends as ``TARGET.rejected``.

    A DownloadError names the address and the reason: not enough room on the disk, the server's refusal, attempts used up,
    a wrong size or digest.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(target, keep_unmarked=expected.sha256 is not None)
    try:
        return _finish(url, part, target, _fetch(url, part, expected, meter, patience), expected)
    except _WrongContentError:
        if not part.joined:
            raise
    # Two pieces that do not belong together may be the reason: once more from the start.
    part.restart({})
    return _finish(url, part, target, _fetch(url, part, expected, meter, patience), expected)


class _WrongContentError(DownloadError):
    pass


class _Passing(Exception):
    """The attempt failed and another may not; ``pause`` is what the server asked for, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        self.pause = pause
        super().__init__(reason)


class _Part:
    """What has arrived of a file, with its running digest and the server's mark of the version that it is of.

    ``joined`` says that it has come in more than one piece.
    """

    def __init__(self, target: Path, keep_unmarked: bool) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._mark_path = target.with_name(f"{target.name}.part.json")
        self.mark = self._read_mark()
        self.size, self.digest, self.joined = 0, hashlib.sha256(), False
        if not self.mark and not keep_unmarked:
            # Of unknown version, and no digest would tell: nothing can be appended to it.
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            with self.path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    self._count(chunk)

    def restart(self, mark: Mapping[str, str]) -> None:
        """Begin anew, with a file whose version ``mark`` names."""
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
        """Become ``target``, whole and written out."""
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
    """Fill ``part``; the size of the whole file."""
    failures, furthest = 0, part.size
    while True:
        try:
            return _attempt(url, part, expected, meter, patience.timeout)
        except _Passing as passing:
            # A server that cuts and serves no ranges never gets further, however often it begins again.
            failures = failures + 1 if part.size <= furthest else 1
            furthest = max(furthest, part.size)
            if failures >= patience.attempts:
                kept = f"; {part.size:,} bytes are kept in {part.path}, run the same command again to go on"
                raise DownloadError(
                    f"{url}: {passing}; gave up after {failures} attempts in a row without progress{kept if part.size else ''}"
                ) from None
            time.sleep(min(max(patience.pause * 2 ** (failures - 1), passing.pause), _LONGEST_PAUSE))


def _attempt(url: str, part: _Part, expected: Expected, meter: Meter, timeout: float) -> int:
    """One request for what is missing; the size of the whole file once nothing is."""
    headers = {"User-Agent": f"mmq-sweeps/{__version__}", "Accept-Encoding": "identity"}
    if part.size and (part.mark or expected.sha256):
        headers |= {"Range": f"bytes={part.size}-"} | ({"If-Range": part.mark["version"]} if part.mark else {})
    try:
        # An opener of our own: the shared one keeps the proxies of the first request in the process.
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
    """Make ``part`` ready for the body that follows; the size of the whole file, or None where it is not said."""
    if status == 206:
        start, total = _range_of(headers)
        changed = part.mark and _mark(headers) and _mark(headers) != part.mark
        if start != part.size or changed:
            part.restart({})
            raise _Passing("the server sent a piece that does not fit")
        part.joined = True
    else:
        # The whole file: it is new, has changed, or the server serves no ranges.
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
    # read1 gives what has arrived, so that a connection cut later loses nothing.
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
    """The version of the file, if the server says it in a way that If-Range may repeat (RFC 9110, 13.1.5)."""
    tag = headers.get("ETag") or ""
    version = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    return {"version": version} if version else {}


def _length(headers: Message) -> int | None:
    length = headers.get("Content-Length") or ""
    return int(length) if length.isdigit() else None


def _range_of(headers: Message) -> tuple[int, int | None]:
    """Start and total of ``Content-Range: bytes 5-9/10``; a start of -1 where it is no such thing."""
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
