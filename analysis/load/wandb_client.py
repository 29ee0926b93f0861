"""Fetch runs from a W&B server through the client's public API, with actionable error messages.

The client finds its key in ``WANDB_API_KEY`` or in the netrc file that ``wandb login`` writes; ``WANDB_BASE_URL`` names
another server.
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

# Runs per page: listed by name, or fetched with summary and configuration.
LISTED, FETCHED = 1000, 100
# Per request, the client's own retries included.
TIMEOUT_SECONDS = 60
CONNECT_SECONDS = 10
FORBIDDEN = (401, 403, 404)


class UnreachableError(OSError):
    """The server does not answer."""


class NoProjectError(ValueError):
    """The project does not exist, or the key has no access to it."""


@dataclass(frozen=True)
class Project:
    entity: str
    name: str
    group: str | None = None

    @staticmethod
    def of(place: str) -> Project:
        """Parse ``entity/project`` or ``entity/project/group``. Raises ValueError for anything else."""
        names = place.strip("/").split("/", 2)
        if len(names) < 2 or not all(names):
            raise ValueError(
                f"--source wandb:{place}: say wandb:ENTITY/PROJECT, or wandb:ENTITY/PROJECT/GROUP for one sweep"
            )
        return Project(*names)

    @property
    def path(self) -> str:
        return f"{self.entity}/{self.name}" if self.entity else self.name

    @property
    def filters(self) -> dict[str, Any]:
        return {} if self.group is None else {"group": self.group}

    def __str__(self) -> str:
        return f"wandb:{self.path}" + ("" if self.group is None else f"/{self.group}")


@dataclass(frozen=True)
class Listed:
    """A run's id and group, with the state and heartbeat that show whether it has changed since the last pull."""

    name: str
    group: str | None
    state: str
    heartbeat: str | None


@dataclass(frozen=True)
class Fetched:
    """A run with its configuration and summary, without history and files."""

    listed: Listed
    url: str
    config: dict[str, Any]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Server:
    api: Any
    host: str

    def listed(self, project: Project) -> list[Listed]:
        """List all runs of ``project``, oldest first."""
        with explained(project, self.host):
            runs = self.api.runs(project.path, filters=project.filters, per_page=LISTED, lazy=True)
            return [_listed(run) for run in runs]

    def fetched(self, project: Project, names: Sequence[str]) -> Iterator[list[Fetched]]:
        """Yield the runs called ``names``, page by page."""
        for start in range(0, len(names), FETCHED):
            chosen = {"name": {"$in": list(names[start : start + FETCHED])}}
            with explained(project, self.host):
                page = list(self.api.runs(project.path, filters=chosen, per_page=FETCHED, lazy=False))
            yield [Fetched(_listed(run), run.url, dict(run.config), dict(run.summary_metrics)) for run in page]
            self.api.flush()  # The client caches every page.


def _listed(run: Any) -> Listed:
    return Listed(run.id, run.group, run.state, run.heartbeat_at)


@contextmanager
def connected(project: Project) -> Iterator[Server]:
    """Connect to the server that the environment names.

    Raises ValueError without a valid key, UnreachableError if the server does not answer.
    """
    import wandb

    # Otherwise the client prompts for a key on a terminal, and blocks.
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    host = str(settings.base_url).rstrip("/")
    _reach(project, host)
    with _client_folder(), explained(project, host):
        api = wandb.Api(timeout=TIMEOUT_SECONDS)
    with _client_folder():
        yield Server(api, host)


@contextmanager
def _client_folder() -> Iterator[None]:
    """Point ``WANDB_DIR`` to a temporary folder: the client creates a folder for every run that it lists."""
    before = os.environ.get("WANDB_DIR")
    with tempfile.TemporaryDirectory(prefix="mmq-wandb-") as folder:
        os.environ["WANDB_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["WANDB_DIR"]
            if before is not None:
                os.environ["WANDB_DIR"] = before


def _reach(project: Project, host: str) -> None:
    """Open and close a connection, to fail early: the client retries until its timeout and does not say why."""
    address = urlsplit(host)
    if address.scheme in getproxies() and not proxy_bypass(address.hostname or ""):
        return  # Only the proxy can reach the server.
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
    except OSError as error:
        raise _unreachable(project, host, str(error)) from error


@contextmanager
def explained(project: Project, host: str) -> Iterator[None]:
    """Convert the client's errors to UnreachableError, NoProjectError or ValueError with a remedy in the message."""
    from wandb.errors import AuthenticationError, CommError, UsageError
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except UsageError as error:
        raise ValueError(
            f"--source {project}: there is no key for {host}. Run 'wandb login', or set WANDB_API_KEY to the key that "
            f"{host}/authorize shows (WANDB_BASE_URL names another server)"
        ) from error
    except AuthenticationError as error:
        if _status(error.__cause__) is None and isinstance(error.__cause__, WandbApiFailedError):
            raise _unreachable(project, host, _line(error)) from error
        raise ValueError(
            f"--source {project}: {host} does not take the key ({_line(error)}). Run 'wandb login --relogin', or set "
            f"WANDB_API_KEY to the key that {host}/authorize shows"
        ) from error
    except ValueError as error:
        if "Could not find project" not in str(error):
            raise
        raise _no_access(project, host, _line(error)) from error
    except (CommError, WandbApiFailedError) as error:
        if _status(error) in FORBIDDEN or _status(error.__cause__) in FORBIDDEN:
            raise _no_access(project, host, _line(error)) from error
        raise _unreachable(project, host, _line(error)) from error


def _no_access(project: Project, host: str, told: str) -> NoProjectError:
    return NoProjectError(
        f"--source {project}: {host} shows no project {project.name!r} of {project.entity!r} to your key ({told}). Check "
        "both names against the project's address; if they are right, ask its owner for access, or use the key of an "
        "account that has it ('wandb login --relogin', or WANDB_API_KEY)"
    )


def _unreachable(project: Project, host: str, told: str) -> UnreachableError:
    return UnreachableError(
        f"--source {project}: {host} does not answer as it should ({told}). Check the network, and WANDB_BASE_URL if it "
        "is not the server that you mean; the same command goes on where it stopped. The store of the sweep holds the "
        "same cells"
    )


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the server's answer; ``None`` without an answer."""
    return getattr(getattr(error, "response", None), "http_status", 0) or None


def _line(error: BaseException) -> str:
    response = getattr(error, "response", None)
    text = getattr(response, "message", "") or str(error)
    return " ".join(text.split())
