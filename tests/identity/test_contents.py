from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from mmq_sweeps.identity import contents
from mmq_sweeps.identity.contents import content_digest, content_digests, folder_digest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty cache that trusts files as soon as they are written."""
    monkeypatch.setenv("MMQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 0.0)
    contents._settled.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect the names of the files whose contents were read."""
    read: list[str] = []
    original = contents._content

    def counted(path: Path) -> str:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(contents, "_content", counted)
    return read


def files(folder: Path, **named: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, content in named.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in named]


def another_process() -> None:
    contents._settled.cache_clear()


def test_a_file_is_read_once_for_all_processes(cache: Path, reads: list[str], tmp_path: Path) -> None:
    paths = files(tmp_path / "data", a=b"one", b=b"two")
    first = content_digests(paths)
    assert first[paths[0]] == hashlib.sha256(b"one").hexdigest()
    another_process()
    assert content_digests(paths) == first
    assert sorted(reads) == ["a", "b"]
    assert len(list((cache / "contents").iterdir())) == 1


def test_a_content_of_the_same_size_and_time_is_another(cache: Path, tmp_path: Path) -> None:  # noqa: ARG001
    (path,) = files(tmp_path / "data", a=b"one")
    before, status = content_digest([path]), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert content_digest([path]) == hashlib.sha256(b"two").hexdigest()[:16] != before
    (other,) = files(tmp_path / "other", a=b"six")
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert content_digest([path]) == hashlib.sha256(b"six").hexdigest()[:16]


def test_what_has_just_been_written_is_not_kept(
    cache: Path, reads: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 3600.0)
    (path,) = files(tmp_path / "data", a=b"one")
    os.utime(path, (4e9, 4e9))
    assert content_digest([path]) == content_digest([path])
    assert reads == ["a", "a"]
    assert not cache.exists()
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 0.0)
    assert len({content_digest([path]) for _ in range(2)}) == 1
    assert reads == ["a", "a", "a"], "a time that somebody set to the future is no matter"


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"version": 1}', '{"version": 1, "files": {"a": 3}}', '{"version": 9, "files": {}}']
)
def test_a_damaged_cache_costs_a_read(cache: Path, reads: list[str], tmp_path: Path, damage: str) -> None:
    (path,) = files(tmp_path / "data", a=b"one")
    before = content_digest([path])
    (kept,) = (cache / "contents").iterdir()
    kept.write_text(damage)
    another_process()
    assert content_digest([path]) == before
    assert reads == ["a", "a"]
    assert json.loads(kept.read_text())["files"]["a"][-1][:16] == before


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    monkeypatch.setattr(contents, "SETTLED_SECONDS", 0.0)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MMQ_CACHE", str(tmp_path / "file"))
    (path,) = files(tmp_path / "data", a=b"one")
    assert content_digest([path]) == content_digest([path])
    assert reads == ["a"], "one process still reads it once"


def test_many_that_write_at_once_leave_a_whole_file(cache: Path, tmp_path: Path) -> None:
    paths = files(tmp_path / "data", **{f"f{number}": b"%d" % number for number in range(16)})
    threads = [threading.Thread(target=content_digests, args=([path],)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = (cache / "contents").iterdir()
    digests = content_digests(paths)
    assert digests == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    assert json.loads(kept.read_text())["files"].keys() == {path.name for path in paths}


def test_a_missing_file_and_a_renamed_one_have_digests_as_well(cache: Path, tmp_path: Path) -> None:  # noqa: ARG001
    one, two = files(tmp_path / "data", a=b"one", b=b"two")
    assert content_digests([one, tmp_path / "absent"])[tmp_path / "absent"] is None
    before = folder_digest(tmp_path / "data", [two, one])
    assert before == folder_digest(tmp_path / "data", [one, two])
    assert folder_digest(tmp_path / "data", [one]) != before
    renamed = two.rename(two.with_name("c"))
    assert folder_digest(tmp_path / "data", [one, renamed]) != before
