"""Read and write ``sweeps/SWEEP/sweep.json``, which holds all that another process needs to run or report a sweep."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launch.planning.plan import Plan
from mmq_sweeps.config.overrides import as_written
from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.errors import StoreError
from mmq_sweeps.store.store import Store

NAME, REFUSED_NAME = "sweep.json", "refused.json"


@dataclass(frozen=True)
class SweepFile:
    """A recorded sweep and its latest launch: command, time (ISO 8601), working directory and launcher settings.

    ``redo`` and ``batches`` are those of its ``Plan``.
    """

    id: str
    command: str
    created: str
    directory: str
    launcher: dict[str, Any]
    redo: dict[str, str]
    batches: tuple[tuple[str, ...], ...]
    sweep: Sweep


def folder(root: Path, sweep_id: str) -> Path:
    """Return the folder with all files of a sweep."""
    return root / "sweeps" / sweep_id


def command(verb: str, root: Path, sweep_id: str | None = None, *flags: str) -> str:
    """Return ``python -m launch VERB ...`` for a sweep of the store at ``root``, quoted for the shell."""
    sweep = ("--sweep", sweep_id) if sweep_id is not None else ()
    return shlex.join(["python", "-m", "launch", verb, "--store", str(root), *sweep, *flags])


def typed(arguments: Sequence[str]) -> str:
    """Return a command line as a person types it: ``.../PACKAGE/__main__.py`` becomes ``python -m PACKAGE``."""
    program = Path(arguments[0])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", program.parent.name, *as_written(arguments[1:])])
    return shlex.join(arguments)


def write(store: Store, plan: Plan, command: str, launcher: Mapping[str, Any]) -> str:
    """Write the sweep of ``plan`` and return its id; ``created`` is renewed at each launch."""
    sweep_id = plan.sweep.id
    content = {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "directory": str(Path.cwd()),
        "launcher": dict(launcher),
        "redo": plan.redo,
        "plan": [list(group) for group in plan.batches],
        **plan.sweep.to_json(),
    }
    store.note(f"sweeps/{sweep_id}/{NAME}", content)
    return sweep_id


def refuse(store: Store, sweep_id: str, problems: Sequence[str]) -> None:
    """Record the ``problems`` for which the sweep's latest launch was refused before its first cell."""
    created = read(store.root, sweep_id).created
    store.note(f"sweeps/{sweep_id}/{REFUSED_NAME}", {"created": created, "problems": list(problems)})


def refused(root: Path, written: SweepFile) -> tuple[str, ...]:
    """Return why the launch of ``written`` was refused; empty if it was not."""
    path = folder(root, written.id) / REFUSED_NAME
    content = _content(path) if path.exists() else {}
    return tuple(content["problems"]) if content.get("created") == written.created else ()


def read(root: Path, sweep_id: str) -> SweepFile:
    """Read the sweep recorded by ``write``; raise a ``StoreError`` if it is missing or unreadable."""
    content = _content(folder(root, sweep_id) / NAME)
    return SweepFile(
        id=sweep_id,
        **{name: content[name] for name in ("command", "created", "directory", "launcher", "redo")},
        batches=tuple(tuple(group) for group in content["plan"]),
        sweep=Sweep.from_json(content),
    )


def listed(root: Path) -> list[str]:
    """Return the ids of the sweeps of a store, the latest launch first."""
    launches = [(_content(path)["created"], path.parent.name) for path in (root / "sweeps").glob(f"*/{NAME}")]
    return [sweep_id for _, sweep_id in sorted(launches, reverse=True)]


def find(root: Path, beginning: str | None = None) -> str:
    """Return the id of the sweep whose id starts with ``beginning``, or of the latest sweep if None.

    Raises a ``StoreError`` listing the choices if none or several match.
    """
    sweeps = listed(root)
    if not sweeps:
        raise StoreError(f"{root}: holds no sweep; give another store with --store FOLDER")
    fitting = [sweep_id for sweep_id in sweeps if sweep_id.startswith(beginning or "")]
    if beginning is None or len(fitting) == 1:
        return fitting[0]
    choices = ", ".join(fitting or sweeps)
    raise StoreError(f"sweep {beginning}: {'fits several' if fitting else 'unknown'}. Choose of {choices}")


def _content(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise StoreError(error.errno, f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"cannot read {path}: {error}") from error
    return content
