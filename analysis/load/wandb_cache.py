"""What was read of W&B runs, kept on disk: a line of JSON a run, added as pages come, so that a pull that ends early goes on.

A run that is logged again has a later heartbeat, and is read again. Which runs a whole pull had is kept beside it, for the
time when the server cannot be asked. Deleting the files reads everything anew.
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
    """``runs`` has a project's runs, which its groups share; ``pull`` says which of them the last whole pull had."""

    runs: Path
    pull: Path

    @staticmethod
    def of(project: Project, host: str) -> Cache:
        names = [quote(name, safe=" ") for name in (urlsplit(host).netloc, project.entity, project.name)]
        folder = cache.folder().parent.joinpath("wandb", *names)
        pull = "pull.json" if project.group is None else f"pull of {quote(project.group, safe=' ')}.json"
        return Cache(folder / "runs.jsonl", folder / pull)

    def read(self) -> dict[str, Fetched]:
        """Runs by name, as they were last read."""
        if not self.runs.is_file():
            return {}
        found = {}
        for line in self.runs.read_bytes().splitlines():
            try:
                content = json.loads(line)
            except ValueError:
                continue  # A process was killed while it wrote this line: the run is read again.
            run = Fetched(**{**content, "listed": Listed(**content["listed"])})
            found[run.listed.name] = run
        return found

    def add(self, runs: Sequence[Fetched]) -> None:
        """Add a page, in one write."""
        if not runs:
            return
        self.runs.parent.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{json.dumps(asdict(run))}\n" for run in runs)
        with self.runs.open("ab") as file:
            # The line before may have been cut off.
            file.write(f"\n{lines}".encode())

    def finish(self, runs: Sequence[Fetched]) -> None:
        """Note that a pull is whole: it had ``runs``."""
        self.pull.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "pulled": datetime.now(UTC).isoformat(timespec="seconds"),
            "names": [run.listed.name for run in runs],
        }
        beside = self.pull.with_name(f"{self.pull.name}.{os.getpid()}")
        beside.write_text(json.dumps(content))
        beside.replace(self.pull)

    def last(self) -> tuple[str, list[Fetched]] | None:
        """When the last whole pull was, and its runs; ``None`` where there was none."""
        known = self.read()
        try:
            content = json.loads(self.pull.read_text())
            return content["pulled"], [known[name] for name in content["names"]]
        except (OSError, ValueError, KeyError):
            return None
