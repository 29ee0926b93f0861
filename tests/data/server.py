"""A local HTTP server that fails the way that official download sites do on a bad day."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.serving import running


@dataclass
class Site:
    """A site's files by path, and the faults with which they are served.

    ``cut`` ends each answer after so many bytes of body, ``cuts`` says how often (None: always). ``failures`` are
    answered in turn before any file is; ``slow`` is a pause in seconds after every ``chunk`` bytes.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    marks: tuple[str, ...] = ("ETag",)
    respects_if_range: bool = True
    length: bool = True
    cut: int | None = None
    cuts: int | None = None
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    slow: float = 0.0
    chunk: int = 10_000

    url: str = ""
    # Of every answer the path and the Range header or "", written down before a byte is sent.
    log: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0

    @property
    def ranges_asked(self) -> list[str]:
        return [asked for _, asked in self.log]


def marks_of(content: bytes) -> dict[str, str]:
    digest = hashlib.sha256(content).digest()
    return {
        "ETag": f'"{digest.hex()[:16]}"',
        "Last-Modified": f"Mon, 23 Nov 2020 10:{digest[0] % 60:02}:{digest[1] % 60:02} GMT",
    }


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range") or ""
            name = self.path.partition("://")[2].partition("/")[2] if "://" in self.path else self.path.lstrip("/")
            entry = (name, asked)
            if site.failures:
                status, headers = site.failures.pop(0)
                return self.answer(status, headers, b"", entry)
            if name not in site.files:
                return self.answer(404, {}, b"", entry)
            content = site.files[name]
            marks = marks_of(content)
            headers = {key: marks[key] for key in site.marks}
            wanted = self.headers.get("If-Range")
            changed = site.respects_if_range and wanted is not None and wanted not in headers.values()
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and site.ranges and not changed else 0
            if start >= len(content) > 0:
                return self.answer(416, {"Content-Range": f"bytes */{len(content)}"}, b"", entry)
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.answer(206 if start else 200, headers, content[start:], entry)

        def answer(self, status: int, headers: dict[str, str], body: bytes, entry: tuple[str, str]) -> None:
            site.log.append(entry)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if site.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if site.cut is not None and len(body) > site.cut and site.cuts != 0:
                body = body[: site.cut]
                site.cuts = None if site.cuts is None else site.cuts - 1
            self.close_connection = True
            try:
                for start in range(0, len(body), site.chunk):
                    piece = body[start : start + site.chunk]
                    site.bytes_sent += len(piece)
                    self.wfile.write(piece)
                    self.wfile.flush()
                    time.sleep(site.slow)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the process at the other end was killed, as some tests do

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    with running(server) as site.url:
        yield site
