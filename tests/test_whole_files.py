"""Files are replaced whole, and a write that fails leaves nothing behind."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from mmq_sweeps.data.images import problems
from mmq_sweeps.data.manifest import Manifest, read_manifest, write_manifest
from mmq_sweeps.whole_files import write_whole
from tests.data.layouts import write_picture


def written_manifest(folder: Path) -> None:
    write_manifest(folder, "a.zip", Manifest("https://example.com/a.zip"))


def written_verdicts(folder: Path) -> None:
    problems([write_picture(folder / "a.jpg", 1)], folder / "images.json")


@pytest.mark.parametrize(
    ("write", "file"), [(written_manifest, "manifests/a.zip.manifest.json"), (written_verdicts, "images.json")]
)
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("stopped")])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    error: BaseException, write: Callable[[Path], None], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[:5])
        raise error

    write(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(Path, "write_text", full)
    expected = f"left on device: '{tmp_path / file}'" if isinstance(error, OSError) else "stopped"
    with pytest.raises(type(error), match=expected):
        write(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    written_manifest(tmp_path)
    assert read_manifest(tmp_path, "a.zip") == Manifest("https://example.com/a.zip")
    write_whole(tmp_path / "new" / "a.txt", "größer")
    assert [path.read_text() for path in (tmp_path / "new").iterdir()] == ["größer"]
