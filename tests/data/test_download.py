"""Downloads from a local server that cuts connections, changes its files, sends wrong files and refuses ranges."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmq_sweeps.data.download import DownloadError, Expected, Patience, download
from tests.conftest import command_environment
from tests.data.server import Site, marks_of, serve

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
KNOWN = Expected(len(CONTENT), SHA256)
# No waiting between attempts in these tests.
QUICK = Patience(attempts=4, pause=0.0, timeout=10)


@pytest.fixture
def site() -> Iterator[Site]:
    with serve(Site({"big.zip": CONTENT})) as running:
        yield running


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "mit Leerzeichen, größer" / "big.zip"


def fetch(site: Site, target: Path, expected: Expected = KNOWN) -> None:
    found = download(f"{site.url}/big.zip", target, expected, patience=QUICK)
    assert (found.size, found.sha256) == (target.stat().st_size, hashlib.sha256(target.read_bytes()).hexdigest())


def beside(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir())


def test_a_whole_file(site: Site, target: Path) -> None:
    told: list[tuple[int, int | None]] = []
    download(f"{site.url}/big.zip", target, KNOWN, lambda done, total: told.append((done, total)), QUICK)
    assert target.read_bytes() == CONTENT
    assert beside(target) == ["big.zip"]
    assert (told[0], told[-1]) == ((0, 300_000), (300_000, 300_000))
    assert site.ranges_asked == [""]


@pytest.mark.parametrize("expected", [KNOWN, Expected()])
@pytest.mark.parametrize("marks", [("ETag",), ("Last-Modified",), ("ETag", "Last-Modified")])
def test_a_cut_connection_is_continued(expected: Expected, marks: tuple[str, ...], site: Site, target: Path) -> None:
    site.cut, site.marks = 70_000, marks
    fetch(site, target, expected)
    assert target.read_bytes() == CONTENT
    assert site.ranges_asked == ["", "bytes=70000-", "bytes=140000-", "bytes=210000-", "bytes=280000-"]
    assert site.bytes_sent == len(CONTENT)  # nothing was sent twice


def test_a_broken_download_is_continued_by_the_next_call(site: Site, target: Path) -> None:
    site.cut, site.cuts = 90_000, 1

    def go_down(done: int, total: int | None) -> None:  # noqa: ARG001
        if done and not site.failures:
            site.failures = [(503, {})] * QUICK.attempts

    told = r"503 .*gave up after 4 attempts in a row without progress; 90,000 bytes are kept in .*big\.zip\.part"
    with pytest.raises(DownloadError, match=told):
        download(f"{site.url}/big.zip", target, KNOWN, go_down, QUICK)
    assert (target.parent / "big.zip.part").read_bytes() == CONTENT[:90_000]
    site.failures = []
    fetch(site, target)
    assert target.read_bytes() == CONTENT
    assert site.ranges_asked[-1] == "bytes=90000-"
    assert beside(target) == ["big.zip"]


def test_a_server_that_refuses_ranges(site: Site, target: Path) -> None:
    site.ranges, site.cut, site.cuts = False, 100_000, 2
    fetch(site, target)
    assert target.read_bytes() == CONTENT
    assert site.bytes_sent == 500_000


def test_a_server_that_refuses_ranges_and_always_cuts(site: Site, target: Path) -> None:
    site.ranges, site.cut = False, 100_000
    with pytest.raises(DownloadError, match=r"closed at 100,000 of 300,000 bytes; gave up after 4 .*big.zip.part"):
        fetch(site, target)
    assert not target.exists()


@pytest.mark.parametrize("respects", [True, False])
def test_a_file_that_changes_between_two_parts(respects: bool, site: Site, target: Path) -> None:
    site.cut, site.cuts, site.respects_if_range = 100_000, 1, respects

    def change(done: int, total: int | None) -> None:  # noqa: ARG001
        if done:
            site.files = {"big.zip": OTHER}

    download(f"{site.url}/big.zip", target, Expected(), change, QUICK)
    assert target.read_bytes() == OTHER


def test_a_server_that_marks_no_versions(site: Site, target: Path) -> None:
    site.cut, site.cuts, site.marks = 100_000, 1, ()
    fetch(site, target)  # the digest is known: it would tell
    assert site.ranges_asked == ["", "bytes=100000-"]
    target.unlink()
    site.cuts = 1
    fetch(site, target, Expected())
    assert site.ranges_asked[2:] == ["", ""]
    assert target.read_bytes() == CONTENT


def test_a_part_that_was_damaged_is_thrown_away(site: Site, target: Path) -> None:
    target.parent.mkdir()
    part = target.parent / "big.zip.part"
    part.write_bytes(OTHER[:120_000])
    (target.parent / "big.zip.part.json").write_text(json.dumps({"version": marks(site)}))
    fetch(site, target)
    assert target.read_bytes() == CONTENT
    assert site.ranges_asked == ["bytes=120000-", ""]


def marks(site: Site) -> str:
    return marks_of(site.files["big.zip"])["ETag"]


@pytest.mark.parametrize("mark", ["{", "[]", None])
def test_a_part_of_unknown_version_is_not_appended_to(mark: str | None, site: Site, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "big.zip.part").write_bytes(OTHER[:120_000])
    if mark:
        (target.parent / "big.zip.part.json").write_text(mark)
    fetch(site, target, Expected())
    assert target.read_bytes() == CONTENT
    assert site.ranges_asked == [""]


def test_a_part_that_is_whole_already(site: Site, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "big.zip.part").write_bytes(CONTENT)
    (target.parent / "big.zip.part.json").write_text(json.dumps({"version": marks(site)}))
    fetch(site, target)
    assert target.read_bytes() == CONTENT
    assert site.bytes_sent == 0
    target.unlink()
    (target.parent / "big.zip.part").write_bytes(CONTENT + b"more")
    (target.parent / "big.zip.part.json").write_text(json.dumps({"version": marks(site)}))
    fetch(site, target)
    assert target.read_bytes() == CONTENT


def test_a_wrong_file_of_the_right_size(site: Site, target: Path) -> None:
    site.files = {"big.zip": OTHER}
    other = hashlib.sha256(OTHER).hexdigest()
    told = rf"big.zip: not the file that is expected: its SHA-256 is {other}, expected {SHA256}\. What came is kept as"
    with pytest.raises(DownloadError, match=told):
        fetch(site, target)
    assert beside(target) == ["big.zip.rejected"]
    assert site.ranges_asked == [""]  # it was whole: asking again would bring the same
    site.files = {"big.zip": CONTENT}
    fetch(site, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_a_wrong_file_of_another_size(length: bool, site: Site, target: Path) -> None:
    site.files, site.length = {"big.zip": b"<html>log in first</html>"}, length
    with pytest.raises(DownloadError, match=r"not the file that is expected: .* 25 bytes.* expected 300,000"):
        fetch(site, target)
    assert not target.exists()


def test_a_server_that_says_no_length(site: Site, target: Path) -> None:
    site.length = False
    told: list[int | None] = []
    download(f"{site.url}/big.zip", target, KNOWN, lambda done, total: told.append(total), QUICK)
    assert target.read_bytes() == CONTENT
    assert set(told) == {None}


def test_passing_failures_are_tried_again(site: Site, target: Path) -> None:
    site.failures = [(503, {"Retry-After": "0"}), (429, {}), (500, {})]
    fetch(site, target)
    assert target.read_bytes() == CONTENT
    assert len(site.log) == 4


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_told_at_once(status: int, site: Site, target: Path) -> None:
    site.failures = [(status, {})]
    with pytest.raises(DownloadError, match=f"big.zip: {status} "):
        fetch(site, target)
    assert len(site.log) == 1


def test_nobody_is_there(site: Site, target: Path) -> None:
    url = f"{site.url}/big.zip"
    with serve(Site()) as gone:
        url = f"{gone.url}/big.zip"
    with pytest.raises(DownloadError, match="refused; gave up after 4 attempts in a row without progress"):
        download(url, target, KNOWN, patience=QUICK)


def test_a_disk_without_room(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
    with pytest.raises(DownloadError, match=r"300,000 bytes are to come, but .* has only 1,000 bytes free"):
        fetch(site, target)


def test_the_proxy_of_the_environment(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    download("http://images.example.invalid/big.zip", target, KNOWN, patience=QUICK)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_goes_on_where_it_was(stop: signal.Signals, site: Site, target: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom mmq_sweeps.data.download import *\n"
        f"download(sys.argv[1], Path(sys.argv[2]), Expected({len(CONTENT)}, {SHA256!r}))"
    )
    command = [sys.executable, "-c", program, f"{site.url}/big.zip", str(target)]
    site.slow = 0.05
    with subprocess.Popen(command, env=command_environment(), stderr=subprocess.DEVNULL) as process:
        part = target.parent / "big.zip.part"
        while not (part.is_file() and part.stat().st_size >= 50_000):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(stop)
        process.wait(timeout=30)
    kept = part.stat().st_size
    assert 50_000 <= kept < len(CONTENT)
    assert part.read_bytes() == CONTENT[:kept]
    assert not target.exists()
    site.slow = 0.0
    subprocess.run(command, env=command_environment(), check=True)
    assert target.read_bytes() == CONTENT
    assert site.ranges_asked[-1] == f"bytes={kept}-"
    assert beside(target) == ["big.zip"]
