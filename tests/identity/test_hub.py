from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from mmq_sweeps.identity import hub
from mmq_sweeps.identity.checkpoint import commit_of, pinned_revision

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def refs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The branches of ``someone/tiny`` in a cache of the hub's layout, of which ``main`` is cached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for found in (commit_of, hub._found_reachable):
        found.cache_clear()
    folder = tmp_path / "models--someone--tiny" / "refs"
    folder.mkdir(parents=True)
    (folder / "main").write_text(COMMIT)
    return folder


def revision(named: str | None) -> str | None:
    commit_of.cache_clear()
    return pinned_revision({"checkpoint": "someone/tiny", "revision": named})


def test_a_branch_of_the_hub_is_named_by_its_commit(refs: Path) -> None:
    assert revision(None) == revision("main") == COMMIT
    (refs / "main").write_text(OTHER)
    assert revision(None) == OTHER
    assert revision(COMMIT) == COMMIT, "a commit is what it is, whatever is cached"


def test_a_branch_that_is_neither_cached_nor_to_be_had_stays(refs: Path) -> None:
    assert refs.is_dir()
    assert revision("another") == "another"
    assert pinned_revision({"checkpoint": "someone/else", "revision": None}) is None


def test_a_hub_that_can_be_asked_says_what_is_not_cached(refs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Metadata:
        commit_hash = OTHER

    assert refs.is_dir()
    monkeypatch.setattr(hub, "_found_reachable", lambda: True)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: Metadata)
    assert revision("another") == OTHER
    assert revision(None) == COMMIT, "the cache goes first, so that a sweep goes on with what it began with"
