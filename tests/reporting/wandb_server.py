"""A local stand-in for a W&B server, enough for the real client to log runs, to list them and to save views.

It speaks HTTP on loopback and keeps everything in memory. A request that it does not know is answered with an error and
kept in ``unknown``, so that a client which starts to ask for something new is seen.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.serving import running

KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "me"


@dataclass
class Run:
    entity: str
    project: str
    name: str
    display_name: str
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    created: str = ""
    heartbeat: str = ""
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return base64.b64encode(f"Run:v1:{self.name}:{self.project}:{self.entity}".encode()).decode()


@dataclass
class Site:
    """The server's state, which tests read and change. ``failures`` are answered first, as (status, text)."""

    url: str = ""
    # (entity, project) -> run's name -> run, in the order of creation
    projects: dict[tuple[str, str], dict[str, Run]] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    # ID/PATH of an artifact's file -> its content
    stored: dict[str, bytes] = field(default_factory=dict)
    views: list[dict[str, Any]] = field(default_factory=list)
    # Entities whose projects the key may not see.
    forbidden: set[str] = field(default_factory=set)
    failures: list[tuple[int, str]] = field(default_factory=list)
    # How many answers to ``Runs`` there are before the connection is cut; None: no end.
    pages_left: int | None = None
    # Every operation of GraphQL with its variables, and every other path with {}.
    log: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    # Tracebacks of failures in this server.
    broken: list[str] = field(default_factory=list)
    ticks: int = 0

    def now(self) -> str:
        """Return a time that is later at every call."""
        self.ticks += 1
        return datetime.fromtimestamp(1_800_000_000 + self.ticks, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def operations(self, name: str) -> list[dict[str, Any]]:
        return [variables for operation, variables in self.log if operation == name]

    def add(self, project: str, name: str, summary: dict[str, Any], group: str | None = None) -> Run:
        """Add a run as if it had been logged."""
        now = self.now()
        run = Run(ENTITY, project, name, name, group, {}, summary, "finished", now, now)
        self.projects.setdefault((ENTITY, project), {})[name] = run
        return run


class GraphQLError(Exception):
    """An error that is answered as ``errors`` with HTTP status ``status``."""

    def __init__(self, message: str, status: int = 200) -> None:
        super().__init__(message)
        self.status = status


def answer(site: Site, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
    if operation not in OPERATIONS:
        site.unknown.append(operation)
        raise GraphQLError(f"unknown operation {operation}", 400)
    return OPERATIONS[operation](site, variables)


def _viewer(site: Site, variables: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    teams = {"edges": [{"node": {"id": "VGVhbTox", "name": ENTITY}}]}
    viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "me@localhost"}
    return {"viewer": {**viewer, "flags": "{}", "teams": teams, "admin": False, "apiKeys": {"edges": []}}}


def _project(site: Site, variables: dict[str, Any], name: str = "project") -> dict[str, Run] | None:
    entity = variables.get("entity") or ENTITY
    if entity in site.forbidden:
        raise GraphQLError("permission denied", 403)
    return site.projects.get((entity, variables[name]))


def _resume_status(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    runs = _project(site, variables)
    if runs is None:
        return {"model": None}
    run = runs.get(variables["name"])
    entity = {"id": "RW50OjE=", "name": variables.get("entity") or ENTITY}
    model = {"id": "UHJvajox", "name": variables["project"], "entity": entity}
    return {"model": {**model, "bucket": None if run is None else _bucket(run)}}


def _bucket(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "name": run.name,
        "displayName": run.display_name,
        "description": "",
        "summaryMetrics": json.dumps(run.summary),
        "config": json.dumps(run.config),
        "sweepName": None,
        "tags": [],
        "notes": "",
        "logLineCount": 0,
        "historyLineCount": 0,
        "eventsLineCount": 0,
        "historyTail": "[]",
        "eventsTail": "[]",
        "wandbConfig": json.dumps(_started(run)),
        "project": {"id": "UHJvajox", "name": run.project, "entity": {"id": "RW50OjE=", "name": run.entity}},
    }


def _started(run: Run) -> dict[str, Any]:
    """Answer the client's ``wandbConfig(keys: ["t"])``: it resumes a run only if the key is there."""
    own = run.config.get("_wandb", {}).get("value", {})
    return {"t": own["t"]} if "t" in own else {}


def _upsert_bucket(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    entity, project = variables.get("entity") or ENTITY, variables["project"]
    if entity in site.forbidden:
        raise GraphQLError("permission denied", 403)
    runs = site.projects.setdefault((entity, project), {})
    now = site.now()
    inserted = variables["name"] not in runs
    run = runs.setdefault(variables["name"], Run(entity, project, variables["name"], variables["name"], created=now))
    run.heartbeat = now
    run.display_name = variables.get("displayName") or run.display_name
    run.group = variables.get("groupName") or run.group
    if variables.get("config"):
        run.config = json.loads(variables["config"])
    if variables.get("summaryMetrics"):
        run.summary = json.loads(variables["summaryMetrics"])
    return {"upsertBucket": {"bucket": _bucket(run), "inserted": inserted}}


def _create_run_files(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    place = "/".join(variables[name] for name in ("entity", "project", "run"))
    files = [{"name": name, "uploadUrl": f"{site.url}/storage/{place}/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}


def _runs(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    runs = _project(site, variables)
    if runs is None:
        return {"project": None}
    if site.pages_left is not None:
        if site.pages_left == 0:
            raise GraphQLError("the server is going down", 400)
        site.pages_left -= 1
    filters = json.loads(variables.get("filters") or "{}")
    chosen = [run for run in runs.values() if _matches(run, filters)]
    order = variables.get("order") or "+created_at"
    chosen.sort(key=lambda run: getattr(run, ORDERS[order[1:]]), reverse=order.startswith("-"))
    start = int(variables.get("cursor") or 0)
    page = chosen[start : start + variables["perPage"]]
    edges = [{"node": _node(run), "cursor": str(start + index + 1)} for index, run in enumerate(page)]
    end = start + len(page)
    info = {"endCursor": str(end), "hasNextPage": end < len(chosen)}
    project = {"internalId": "UHJvajox", "runCount": len(chosen), "readOnly": False}
    return {"project": {**project, "runs": {"edges": edges, "pageInfo": info}}}


ORDERS = {"created_at": "created", "heartbeat_at": "heartbeat"}
# The fields to filter runs by, from the client's documentation.
FILTERS = {"name": "name", "group": "group", "state": "state", "displayName": "display_name"}


def _matches(run: Run, filters: dict[str, Any]) -> bool:
    for key, wanted in filters.items():
        value = getattr(run, FILTERS[key])
        if value not in (wanted["$in"] if isinstance(wanted, dict) else [wanted]):
            return False
    return True


def _node(run: Run) -> dict[str, Any]:
    """Return all fields that the client asks of a run."""
    return {
        **_bucket(run),
        "projectId": "1",
        "state": run.state,
        "group": run.group,
        "jobType": None,
        "commit": None,
        "readOnly": False,
        "createdAt": run.created,
        "heartbeatAt": run.heartbeat,
        "systemMetrics": "{}",
        "historyKeys": None,
        "user": {"name": ENTITY, "username": ENTITY},
    }


def _create_artifact(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    one = {"id": f"artifact-{len(site.artifacts)}", "state": "PENDING", **variables["input"]}
    site.artifacts.append(one)
    return {"createArtifact": {"artifact": {**_artifact(one), "artifactSequence": {"latestArtifact": None}}}}


def _artifact(one: dict[str, Any]) -> dict[str, Any]:
    return {"id": one["id"], "state": one["state"], "digest": one["digest"]}


def _manifest(site: Site, variables: dict[str, Any], name: str) -> dict[str, Any]:
    place = variables.get("artifactID") or variables["artifactManifestID"]
    file = {"id": f"file-{place}", "uploadUrl": f"{site.url}/artifacts/{place}/manifest.json", "uploadHeaders": []}
    return {name: {"artifactManifest": {"id": place, "file": file}}}


def _create_artifact_files(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    edges = [
        {
            "node": {
                "storagePath": spec["name"],
                "uploadUrl": f"{site.url}/artifacts/{spec['artifactID']}/{spec['name']}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": spec["artifactID"]},
            }
        }
        for spec in variables["input"]["artifactFiles"]
    ]
    return {"createArtifactFiles": {"files": {"edges": edges}}}


def _commit_artifact(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    (one,) = [one for one in site.artifacts if one["id"] == variables["artifactID"]]
    one["state"] = "COMMITTED"
    return {"commitArtifact": {"artifact": _artifact(one)}}


def _upsert_view(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    if _project(site, {"entity": variables["entityName"], "project": variables["projectName"]}) is None:
        raise GraphQLError("project not found", 404)
    known = [view for view in site.views if view["id"] == variables.get("id")]
    view = known[0] if known else {"id": f"view-{len(site.views)}"}
    view |= {name: variables[name] for name in ("name", "displayName", "projectName")}
    view["spec"] = json.loads(variables["spec"])
    if not known:
        site.views.append(view)
    return {"upsertView": {"view": {"id": view["id"], "name": view["name"]}, "inserted": not known}}


def _view(site: Site, variables: dict[str, Any]) -> dict[str, Any]:
    edges = [
        {"node": {"id": view["id"], "displayName": view["displayName"], "spec": json.dumps(view["spec"])}}
        for view in site.views
        if view["name"] == variables["viewName"]
    ]
    return {"project": {"allViews": {"edges": edges}}}


OPERATIONS: dict[str, Callable[[Site, dict[str, Any]], dict[str, Any]]] = {
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "RunResumeStatus": _resume_status,
    "UpsertBucket": _upsert_bucket,
    "CreateRunFiles": _create_run_files,
    "Runs": _runs,
    "UpsertView2": _upsert_view,
    "View": _view,
    # No such feature and no such artifact: the client falls back to the requests that every server answers.
    "ServerFeaturesQuery": lambda site, variables: {"serverInfo": {"features": []}},
    "ArtifactType": lambda site, variables: {"project": {"artifact": None}},
    "CreateArtifact": _create_artifact,
    "CreateArtifactManifest": lambda site, variables: _manifest(site, variables, "createArtifactManifest"),
    "UpdateArtifactManifest": lambda site, variables: _manifest(site, variables, "updateArtifactManifest"),
    "CreateArtifactFiles": _create_artifact_files,
    "CommitArtifact": _commit_artifact,
}


def _file_stream(site: Site, path: str, body: dict[str, Any]) -> None:
    _, _, entity, project, name, _ = path.split("/")
    run = site.projects[entity, project][name]
    run.heartbeat = site.now()
    for line in body.get("files", {}).get("wandb-summary.json", {}).get("content", []):
        run.summary = json.loads(line)
    if body.get("complete"):
        run.state = "finished" if body.get("exitcode") == 0 else "failed"


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

        def do_POST(self) -> None:
            body = self._body()
            if site.failures:
                status, text = site.failures.pop(0)
                return self._send(status, {"error": text})
            if self.headers.get("Authorization") != "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode():
                return self._send(401, {"errors": [{"message": "user is not logged in"}]})
            if self.path == "/graphql":
                return self._graphql(json.loads(body))
            if self.path.endswith("/file_stream"):
                site.log.append((self.path, {}))
                _file_stream(site, self.path, json.loads(body))
                return self._send(200, {})
            site.unknown.append(self.path)
            return self._send(404, {})

        def _graphql(self, request: dict[str, Any]) -> None:
            named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            operation, variables = named[1] if named else request["query"], request.get("variables") or {}
            site.log.append((operation, variables))
            try:
                self._send(200, {"data": answer(site, operation, variables)})
            except GraphQLError as error:
                self._send(error.status, {"errors": [{"message": str(error)}]})

        def do_PUT(self) -> None:
            body = self._body()
            site.log.append((self.path, {}))
            _, kind, *place = self.path.split("/", 5)
            if kind == "artifacts":
                site.stored["/".join(place)] = body
            elif kind == "storage":
                entity, project, name, path = place
                site.projects[entity, project][name].files[path] = body
            self._send(200, {})

        def _send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
            if not isinstance(sys.exc_info()[1], ConnectionError):  # The client's process may end at any moment.
                site.broken.append(traceback.format_exc())

    server = Server(("127.0.0.1", 0), Handler)
    with running(server) as site.url:
        yield site


def environment(site: Site, folder: Path) -> dict[str, str]:
    """Return the environment of a process whose W&B is ``site``, and which neither reads nor writes the home directory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**kept, **settings(site, folder)}


def settings(site: Site, folder: Path) -> dict[str, str]:
    return {
        "WANDB_BASE_URL": site.url,
        "WANDB_API_KEY": KEY,
        "WANDB_CONFIG_DIR": str(folder / "wandb-config"),
        "WANDB_CACHE_DIR": str(folder / "wandb-cache"),
        "WANDB_ERROR_REPORTING": "false",
        "NETRC": str(folder / "netrc"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }


def sync(folder: Path, site: Site, tmp_path: Path) -> None:
    """Run ``wandb sync`` on the offline runs in a tracker's ``folder``."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *map(str, sorted((folder / "wandb").glob("offline-run-*")))],
        env=environment(site, tmp_path), capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
