"""Checkpoints of the Hugging Face hub: check for a connection, and fall back to the local cache."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

PROBE_SECONDS = 5
# Names the base and the layers of an adapter of peft.
ADAPTER = "adapter_config.json"
COMMIT = re.compile(r"[0-9a-f]{40}")
# Base error of the HTTP client below huggingface_hub, which differs between releases.
TransportError: type[Exception] = HfHubHTTPError.__mro__[1]


def hub_options(name: str, revision: str | None) -> dict[str, Any]:
    """Return keyword arguments of ``from_pretrained`` for the checkpoint ``name``.

    Without network, a cached checkpoint gets ``local_files_only``: otherwise each file would be retried for minutes.
    Raises ValueError, with remedies, if the checkpoint is neither cached nor reachable, or holds an adapter: transformers
    would load that if peft is installed, and silently leave it out if not.
    """
    options: dict[str, Any] = {} if revision is None else {"revision": revision}
    online = reachable()
    if _has_adapter(name, revision, online):
        raise ValueError(
            f"model.checkpoint={name}: holds an adapter ({ADAPTER}), which is not measured apart from its base; merge it "
            "(merge_and_unload of peft), save that, and give the folder of the merged checkpoint"
        )
    if online:
        return options
    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        raise ValueError(absent(name, revision))
    return {**options, "local_files_only": True}


def _has_adapter(name: str, revision: str | None, online: bool) -> bool:
    """Return True if the checkpoint has an adapter, by the hub if it is ``online``, else by its cached files."""
    if not online:
        return isinstance(try_to_load_from_cache(name, ADAPTER, revision=revision), str)
    try:
        get_hf_file_metadata(hf_hub_url(name, ADAPTER, revision=revision), timeout=PROBE_SECONDS)
    except (OSError, ValueError, TransportError):
        # It has none, or the hub refuses the checkpoint itself, which loading reports.
        return False
    return True


def cached_commit(name: str, revision: str | None, kind: str = "models") -> str | None:
    """Resolve a branch, tag or commit of ``models`` or ``datasets`` from the local cache; None if it is not cached."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    folder = f"{kind}--{name.replace('/', '--')}"
    try:
        return Path(constants.HF_HUB_CACHE, folder, "refs", revision or "main").read_text().strip() or None
    except OSError:
        return None


def current_commit(name: str, revision: str | None) -> str | None:
    """Resolve a branch or tag to its current commit on the hub; None if the hub is unreachable or does not know it."""
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
    """Cache ``reachable()`` per process: a sweep may name many checkpoints, and each try may take seconds."""
    return reachable()


def reachable() -> bool:
    """Return True if the hub answers, whatever the status; tries once. False if ``HF_HUB_OFFLINE`` is set."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except (OSError, TransportError):
        return False
    return True


def absent(name: str, revision: str | None) -> str:
    """Return the error message for a checkpoint that is no folder, not cached and not reachable, with both remedies."""
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
