"""A Hub on loopback: the files of a data set that are downloaded, and how often."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

from tests.data.hub_folders import COMMIT
from tests.serving import running

ROOT = Path(__file__).parents[2]
CARD = b"""---
configs:
- config_name: de
  data_files:
  - {split: dev, path: "de/dev*"}
  - {split: test, path: de/test.jsonl}
---
"""


class _Hub(BaseHTTPRequestHandler):
    """Answer the Hub's requests about the data set ``someone/asked`` at ``COMMIT``."""

    files: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        path, tree = unquote(self.path.partition("?")[0]), f"/api/datasets/someone/asked/tree/{COMMIT}"
        found, status, headers = b"", 404, {}
        if path == tree:
            listed = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in self.files.items()
            ]
            found, status, headers = json.dumps(listed).encode(), 200, {"Content-Type": "application/json"}
        elif (name := path.removeprefix(f"/datasets/someone/asked/resolve/{COMMIT}/")) in self.files:
            found, status = self.files[name], 200
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(found).hexdigest()}"'}
            self.asked.append(name)
        elif path == "/":
            status = 200
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(found))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(found)

    def log_message(self, *_: Any) -> None:
        pass


READ = """
import sys
from mmq_sweeps.data.hub import HubData
print([row.id for row in HubData(path="someone/asked", revision=sys.argv[1], split="dev", name="de", image=None)])
"""


def test_the_hub_is_asked_for_the_files_of_the_split_alone(tmp_path: Path) -> None:
    rows = [{"id": place, "question": "?", "answers": "a"} for place in range(2)]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    _Hub.files = {"README.md": CARD, "de/dev[1].jsonl": lines, "de/test.jsonl": lines, "en/dev.jsonl": lines}

    def read(**environment: str) -> subprocess.CompletedProcess[str]:
        own = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "", "PYTHONPATH": str(ROOT), **environment}
        return subprocess.run(
            [sys.executable, "-c", READ, COMMIT], env=own, text=True, capture_output=True, check=False
        )

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    with running(server) as url:
        first = read(HF_ENDPOINT=url)
    assert first.stdout == "['dev/0', 'dev/1']\n", first.stderr
    assert set(_Hub.asked) == {"README.md", "de/dev[1].jsonl"}
    assert read(HF_HUB_OFFLINE="1").stdout == first.stdout, "from the cache"
