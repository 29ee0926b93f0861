"""Disk cache of W&B runs: JSON lines, appended page by page, so that an interrupted pull resumes.

A run that was logged again has a newer heartbeat and is fetched again. The names of the last complete pull are stored
beside, for use when the server is unreachable. Delete the files to fetch everything again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlsplit

from analysis.load import cache
from analysis.load.wandb_client import Fetched, Listed, Project


@dataclass(frozen=True)
class Cache:
    """The cache files of a project: ``runs``, shared by its groups, and ``pull``, the names of the last complete pull."""

    runs: Path
    pull: Path

    @staticmethod
    def of(project: Project, host: str) -> Cache:
        names = [quote(name, safe=" ") for name in (urlsplit(host).netloc, project.entity, project.name)]
        folder = cache.folder().parent.joinpath("wandb", *names)
        pull = "pull.json" if project.group is None else f"pull of {quote(project.group, safe=' ')}.json"
        return Cache(folder / "runs.jsonl", folder / pull)

    def read(self) -> dict[str, Fetched]:
        """Load the cached runs by name, each as last fetched.

        Lines that are cut off or have other fields than this version's are skipped: their runs are fetched again.
        """
        if not self.runs.is_file():
            return {}
        found = {}
        for line in self.runs.read_bytes().splitlines():
            try:
                content = json.loads(line)
                run = Fetched(**{**content, "listed": Listed(**content["listed"])})
            except (ValueError, TypeError, KeyError):
                continue  # A process was killed while writing this line, or another version wrote it.
            found[run.listed.name] = run
        return found

    def add(self, runs: Sequence[Fetched]) -> None:
        """Append a page of runs in one write."""
        if not runs:
            return
        self.runs.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{json.dumps(asdict(run))}\n" for run in runs)
        with self.runs.open("ab") as file:
            # The line before may have been cut off.
            file.write(f"\n{lines}".encode())

    def finish(self, runs: Sequence[Fetched]) -> None:
        """Record ``runs`` as the last complete pull."""
        self.pull.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "pulled": datetime.now(UTC).isoformat(timespec="seconds"),
            "names": [run.listed.name for run in runs],
        }
        beside = self.pull.with_name(f"{self.pull.name}.{os.getpid()}")
        beside.write_text(json.dumps(content))
        beside.replace(self.pull)

    def last(self) -> tuple[str, list[Fetched]] | None:
        """Return the time and the runs of the last complete pull; ``None`` if there was none."""
        known = self.read()
        try:
            content = json.loads(self.pull.read_text())
            return content["pulled"], [known[name] for name in content["names"]]
        except (OSError, ValueError, TypeError, KeyError):
            return None
