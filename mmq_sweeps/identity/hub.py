"""Checkpoints of the hub: whether it can be reached, and what is here without it."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

PROBE_SECONDS = 5
COMMIT = re.compile(r"[0-9a-f]{40}")
# The error of the client that huggingface_hub is built on, which changes between releases, is the base of its own.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]


def hub_options(name: str, revision: str | None) -> dict[str, Any]:
    """What ``from_pretrained`` is told about ``name``; a ValueError with the ways out where it cannot be had.

    Without network a cached checkpoint is read from the cache at once: asking for each file would be tried for minutes.
    """
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    if reachable():
        return options
    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        raise ValueError(absent(name, revision))
    return {**options, "local_files_only": True}


def cached_commit(name: str, revision: str | None) -> str | None:
    """The commit that a branch, a tag or a commit is cached as; ``None`` if it is not cached."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    folder = f"models--{name.replace('/', '--')}"
    try:
        return Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main").read_text().strip() or None
    except OSError:
        return None


def current_commit(name: str, revision: str | None) -> str | None:
    """The commit that a branch or tag stands for on the hub now; ``None`` if the hub cannot be asked or does not know it."""
    if not _found_reachable():
        return None
    try:
        found = get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=PROBE_SECONDS)
    except (OSError, ValueError, TransportError):
        return None
    commit: str | None = found.commit_hash
    return commit


@lru_cache(maxsize=1)
def _found_reachable() -> bool:
    """``reachable()``, tried once a process: a sweep may name many checkpoints, and each try may take seconds."""
    return reachable()


def reachable() -> bool:
    """Whether the hub answers anything at all; one try."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except (OSError, TransportError):
        return False
    return True


def absent(name: str, revision: str | None) -> str:
    """That ``name`` is neither a folder, nor cached, nor to be had, and the two ways out."""
    why = (
        "HF_HUB_OFFLINE forbids asking the hub"
        if constants.HF_HUB_OFFLINE
        else f"{constants.ENDPOINT} cannot be reached"
    )
    what = f"{name} --revision {revision}" if revision else name
    return (
        f"model.checkpoint={name}: no folder here, not (wholly) in the cache {constants.HF_HUB_CACHE}, and {why}; either run "
        f"`hf download {what}` where there is network and set HF_HOME to the folder it fills, or give the folder that "
        "holds the checkpoint as model.checkpoint=FOLDER"
    )
