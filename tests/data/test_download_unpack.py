"""Unpacking an archive writes nothing outside the folder, and each file whole."""

from __future__ import annotations

import io
import random
import shutil
import stat
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from mmq_sweeps.data.catalog import Content
from mmq_sweeps.data.unpack import DamagedError, Unpacked, UnpackError, unpack

PICTURES = (Content("*.jpg", "val2017"),)
FILES = {"val2017/a.jpg": b"A" * 5000, "val2017/b.jpg": b"B" * 70, "readme.txt": b"hello"}


def write_zip(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("val2017/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: dict[str, bytes] = FILES, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_that_fit_are_written(method: int, tmp_path: Path, root: Path) -> None:
    told: list[tuple[int, int]] = []
    archive = write_zip(tmp_path / "a.zip", method=method)
    written = unpack(archive, root, PICTURES, lambda done, total: told.append((done, total)))
    assert tree(root) == {"val2017/a.jpg": b"A" * 5000, "val2017/b.jpg": b"B" * 70}
    assert written == {
        "val2017/a.jpg": Unpacked(5000, zlib.crc32(b"A" * 5000)),
        "val2017/b.jpg": Unpacked(70, zlib.crc32(b"B" * 70)),
    }
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_tar(mode: str, tmp_path: Path, root: Path) -> None:
    files = {"./data/deep/a.jpg": b"A", "._a.jpg": b"macOS", "__MACOSX/data/b.jpg": b"macOS", "data/b.png": b"B"}
    archive = write_tar(tmp_path / "a.tar", files, mode)
    contents = (Content("*.jpg", "pictures"), Content("*.png"))
    assert unpack(archive, root, contents) == {
        "pictures/a.jpg": Unpacked(1, zlib.crc32(b"A")),
        "b.png": Unpacked(1, zlib.crc32(b"B")),
    }
    assert tree(root) == {"pictures/a.jpg": b"A", "b.png": b"B"}


def test_what_is_there_is_left_alone_and_what_is_wrong_is_written_again(tmp_path: Path, root: Path) -> None:
    archive = write_zip(tmp_path / "a.zip")
    unpack(archive, root, PICTURES)
    before = (root / "val2017" / "a.jpg").stat().st_ino
    (root / "val2017" / "b.jpg").write_bytes(b"C" * 70)  # the right size, another content
    unpack(archive, root, PICTURES)
    assert (root / "val2017" / "a.jpg").stat().st_ino == before
    assert tree(root)["val2017/b.jpg"] == b"B" * 70


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "val2017/../../evil.jpg", "/tmp/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_a_member_that_leads_out(write, name: str, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "a.zip", {"val2017/a.jpg": b"A", name: b"evil"})
    with pytest.raises(UnpackError, match=r"evil.jpg' leads out of the archive; nothing was unpacked"):
        unpack(archive, root, PICTURES)
    assert tree(tmp_path).keys() == {"a.zip"}


@pytest.mark.parametrize(("write", "name"), [(write_zip, "."), (write_zip, "./."), (write_tar, "."), (write_tar, "")])
def test_a_file_without_a_name_is_refused(write, name: str, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "archive", {"val2017/a.jpg": b"A", name: b"B"})
    with pytest.raises(UnpackError, match=rf"archive: has a file that is named '{name}'; nothing was unpacked"):
        unpack(archive, root, PICTURES)
    assert tree(root) == {}


def test_a_file_of_a_zip_with_an_empty_name_is_refused(tmp_path: Path, root: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("val2017/a.jpg", b"A")
        archive.infolist()[0].filename = ""
    with pytest.raises(UnpackError, match=r"a\.zip: has a file that is named ''; nothing was unpacked"):
        unpack(tmp_path / "a.zip", root, PICTURES)


def test_links_are_refused(tmp_path: Path, root: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("val2017/a.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(UnpackError, match=r"a\.jpg' is a link or a device; nothing was unpacked"):
        unpack(tmp_path / "a.tar", root, PICTURES)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        info = zipfile.ZipInfo("val2017/a.jpg")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(UnpackError, match=r"a\.jpg' is a link; nothing was unpacked"):
        unpack(tmp_path / "a.zip", root, PICTURES)
    assert tree(root) == {}


def test_two_members_of_one_name(tmp_path: Path, root: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", {"one/a.jpg": b"1", "two/a.jpg": b"2"})
    with pytest.raises(UnpackError, match=r"has two members 'a\.jpg'; nothing was unpacked"):
        unpack(archive, root, PICTURES)


def test_another_archive(tmp_path: Path, root: Path) -> None:
    archive = write_zip(tmp_path / "a.zip")
    with pytest.raises(UnpackError, match=r"has no captions_\*\.json; is it another archive"):
        unpack(archive, root, (*PICTURES, Content("captions_*.json")))
    assert tree(root) == {}
    with pytest.raises(UnpackError, match="there is no such file"):
        unpack(tmp_path / "absent.zip", root, PICTURES)


@pytest.mark.parametrize("keep", [0.3, 0.95])
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_an_archive_that_is_cut_short(write, keep: float, tmp_path: Path, root: Path) -> None:
    archive = write(tmp_path / "a.zip", {f"val2017/{number}.jpg": bytes([number]) * 900 for number in range(40)})
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DamagedError, match="cut short"):
        unpack(archive, root, PICTURES)


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("place", [0.05, 0.3, 0.5, 0.7, 0.95])
def test_a_compressed_tar_with_wrong_bytes_is_named(mode: str, place: float, tmp_path: Path, root: Path) -> None:
    noise = random.Random(0).randbytes
    archive = write_tar(tmp_path / "a.tar", {f"val2017/{number}.jpg": noise(3000) for number in range(40)}, mode)
    content = bytearray(archive.read_bytes())
    at = int(len(content) * place)
    content[at : at + 9] = b"\xff\0" * 4 + b"\xff"
    archive.write_bytes(content)
    with pytest.raises(DamagedError, match=r"a\.tar: is (damaged or )?cut short"):
        unpack(archive, root, PICTURES)


def test_a_member_with_a_wrong_checksum(tmp_path: Path, root: Path) -> None:
    archive = write_zip(tmp_path / "a.zip")
    content = bytearray(archive.read_bytes())
    content[content.index(b"BBBB")] ^= 1
    archive.write_bytes(content)
    with pytest.raises(DamagedError, match=r"is damaged or cut short \(Bad CRC-32"):
        unpack(archive, root, PICTURES)
    assert tree(root).keys() == {"val2017/a.jpg"}  # whole, and nothing of the other


def test_a_disk_without_room(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_zip(tmp_path / "a.zip")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(UnpackError, match=r"unpacks to 5,070 bytes, but .* has only 1,000 bytes free"):
        unpack(archive, root, PICTURES)
