from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from mmq_sweeps.identity import hub
from mmq_sweeps.identity.checkpoint import commit_of, pinned_revision

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def refs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the branches' folder of ``someone/tiny`` in a cache of the hub's layout, in which ``main`` is cached."""
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


def test_an_adapter_in_the_cache_is_refused(refs: Path) -> None:
    """An adapter would be loaded with peft and left out without it, under the same cell ids."""
    snapshot = refs.parent / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    assert hub.hub_options("someone/tiny", None) == {"local_files_only": True}
    (snapshot / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"checkpoint=someone/tiny: holds an adapter .* folder of the merged checkpoint"
    ):
        hub.hub_options("someone/tiny", None)


def test_an_adapter_on_the_hub_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"/someone/adapted/resolve/main/adapter_config.json", "/someone/adapted/resolve/v2/adapter_config.json"}

    def metadata(url: str, timeout: float) -> None:  # noqa: ARG001
        if url.removeprefix(constants.ENDPOINT) not in there:
            raise OSError("404")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(hub, "get_hf_file_metadata", metadata)
    assert hub.hub_options("someone/tiny", "v2") == {"revision": "v2"}
    for revision in (None, "v2"):
        with pytest.raises(ValueError, match="holds an adapter"):
            hub.hub_options("someone/adapted", revision)
