"""``python -m mmq_sweeps.data``: small sets in the published layouts, served by a local server, as real processes."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmq_sweeps.data import __main__ as command
from mmq_sweeps.data.catalog import SETS
from mmq_sweeps.data.coco import CocoCaptions
from mmq_sweeps.data.manifest import read_manifest
from tests.conftest import command_environment
from tests.data.preparing import NAMES, check, prepare, tree, zipped
from tests.data.server import Site, serve


def test_a_set_is_downloaded_unpacked_and_verified(
    site: Site, root: Path, served: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(site, root) == 0
    told = capsys.readouterr().out
    assert "val2017.zip: SHA-256 as recorded, 5 files unpacked and verified" in told
    assert (
        "  val2017: 5 images, 10 texts: all there\n  train2017: 8 images drawn with seed 0, 16 texts: all there" in told
    )
    drawn = CocoCaptions(root=str(root), split="train2017", count=8, seed=0)
    found = tree(root)
    wanted = ["annotations/captions_train2017.json", "annotations/captions_val2017.json"]
    wanted += [
        path.relative_to(root).as_posix()
        for path in (*CocoCaptions(root=str(root), split="val2017").paths, *drawn.paths)
    ]
    assert sorted(place for place in found if not place.startswith(("downloads", "manifests"))) == sorted(wanted)
    for place in wanted:
        assert found[place] == (served[0] / place).read_bytes()
    assert [place for place in found if place.startswith("downloads")] == ["downloads/.lock"]
    manifest = read_manifest(root, "val2017.zip")
    assert manifest is not None
    assert (manifest.sha256, manifest.published) == (hashlib.sha256(site.files["val2017.zip"]).hexdigest(), True)
    before = len(site.log)
    assert prepare(site, root) == 0
    assert check(root, "coco_caption", "--decode") == 0
    assert len(site.log) == before  # nothing was asked for again
    assert capsys.readouterr().out.endswith("complete, every image decodes\n")


@pytest.mark.parametrize("name", NAMES)
def test_every_set(name: str, site: Site, root: Path, served: tuple[Path, dict[str, bytes]]) -> None:
    images = ["--images", str(served[0] / "flickr30k-images")] if name == "flickr30k" else []
    assert prepare(site, root, name, *images) == 0
    assert check(root, name, "--decode") == 0
    one = SETS[name]
    evaluated = one.reader(root=str(root), split=one.evaluation_split)
    calibrated = one.reader(root=str(root), split=one.training_split, count=8, seed=0)
    assert not {example.id for example in evaluated} & {example.id for example in calibrated}
    assert all(example.image.mode == "RGB" for example in (*evaluated, *calibrated))


def test_sets_share_a_root_and_archives(site: Site, root: Path, served: tuple[Path, dict[str, bytes]]) -> None:
    images = ("--images", str(served[0] / "flickr30k-images"))
    for name in NAMES:
        assert prepare(site, root, name, *(images if name == "flickr30k" else ())) == 0
    asked = [name for name, _ in site.log]
    assert len(asked) == len(set(asked))  # val2014.zip and caption_datasets.zip serve two sets each
    assert [check(root, name) for name in NAMES] == [0] * 5


def test_all_training_images(site: Site, root: Path) -> None:
    assert prepare(site, root, "coco_caption", "--calibration", "all") == 0
    assert len(CocoCaptions(root=str(root), split="train2017").paths) == 40
    assert len(list((root / "train2017").iterdir())) == 40
    assert check(root, "coco_caption", "--calibration", "all") == 0


def test_no_training_images(site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(site, root, "coco_caption", "--calibration", "0") == 0
    assert not (root / "train2017").exists()
    assert check(root, "coco_caption", "--seed", "1") == 1
    told = capsys.readouterr().out
    assert "8 images drawn with seed 1, 16 texts: 8 of 8 images cannot be used (8 missing): " in told
    assert f"prepare coco_caption --root {shlex.quote(str(root))} --calibration 8 --seed 1" in told


def test_a_dry_run_does_nothing(site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(site, root, "coco_caption", "--dry-run") == 0
    assert (site.log, root.exists()) == ([], False)
    told = capsys.readouterr().out
    assert f"kB  to download from {site.url}/val2017.zip\n" in told
    assert "train2017: 8 single images drawn with seed 0" in told


def test_connections_that_are_cut(site: Site, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    site.cut = 700
    assert prepare(site, root) == 0
    assert check(root, "coco_caption", "--decode") == 0


@pytest.mark.parametrize("name", ["coco_caption", "gqa"])
def test_a_wrong_file(name: str, site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The catalogue has a digest for COCO and none for GQA, where a wrong archive fails to unpack."""
    file = SETS[name].archives[-1].file
    right, site.files[file] = site.files[file], b"x" * SETS[name].archives[-1].size
    assert prepare(site, root, name) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert (
        "not the file that is expected: its SHA-256" if name == "coco_caption" else "neither zip nor tar; kept as"
    ) in told
    assert (root / "downloads" / f"{file}.rejected").is_file()
    assert check(root, name) == 1
    site.files[file] = right
    assert prepare(site, root, name) == 0


def test_an_archive_that_changes_after_the_first_download(
    site: Site, root: Path, served: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(site, root, "gqa") == 0
    manifest = read_manifest(root, "images.zip")
    assert manifest is not None
    assert not manifest.published
    (root / "images" / "n7.jpg").unlink()
    pictures = list((served[0] / "images").iterdir())
    site.files["images.zip"] = zipped(served[0], pictures[1:])
    assert prepare(site, root, "gqa") == 1
    assert (
        f"not the file that is expected: the server has {len(site.files['images.zip']):,} bytes"
        in capsys.readouterr().err
    )
    site.files["images.zip"] = served[1]["images.zip"]
    assert prepare(site, root, "gqa") == 0
    assert "images.zip: SHA-256 as before" in capsys.readouterr().out


def test_an_archive_that_lies_there_already(site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    downloads = root / "downloads"
    downloads.mkdir(parents=True)
    (downloads / "val2017.zip").write_bytes(site.files["val2017.zip"])
    (downloads / "annotations_trainval2017.zip").write_bytes(b"something else")
    assert prepare(site, root, "coco_caption", "--keep-archives") == 1
    assert (
        "annotations_trainval2017.zip: is not the file that is expected: 14 bytes with the" in capsys.readouterr().err
    )
    (downloads / "annotations_trainval2017.zip").unlink()
    assert prepare(site, root, "coco_caption", "--keep-archives") == 0
    assert "val2017.zip" not in [name for name, _ in site.log]
    assert (downloads / "val2017.zip").read_bytes() == site.files["val2017.zip"]


def test_one_file_from_another_address(site: Site, root: Path) -> None:
    with serve(Site({"elsewhere/5k.zip": site.files.pop("val2017.zip")})) as other:
        assert prepare(site, root, "coco_caption", "--url", f"val2017.zip={other.url}/elsewhere/5k.zip") == 0


def test_a_single_image_that_is_none(site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in list(site.files):
        if name.startswith("train2017/"):
            site.files[name] = b"<html>not found</html>"
    assert prepare(site, root) == 1
    assert "jpg: not an image; what came is kept as" in capsys.readouterr().err
    assert not list((root / "train2017").glob("*.jpg"))


def test_what_is_wrong_is_found(site: Site, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(site, root) == 0
    first, second, third, *_ = CocoCaptions(root=str(root), split="val2017").paths
    first.unlink()
    second.write_bytes(second.read_bytes()[:-300])
    content = third.read_bytes()
    third.write_bytes(b"\0" * len(content))
    capsys.readouterr()
    assert check(root) == 1
    told = capsys.readouterr().out
    assert "val2017: 5 images, 10 texts: 2 of 5 images cannot be used (1 missing, 1 of another size)" in told
    assert f"{second.name}: of another size: has {second.stat().st_size} of {second.stat().st_size + 300} bytes" in told
    assert check(root, "coco_caption", "--decode", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert [report[key] for key in ("name", "complete", "decoded")] == ["coco_caption", False, True]
    assert {Path(path).name: reason.partition(":")[0] for path, reason in report["splits"][0]["wrong"].items()} == {
        first.name: "missing", second.name: "of another size", third.name: "not an image",
    }  # fmt: skip
    assert [split["complete"] for split in report["splits"]] == [False, True]
    assert prepare(site, root) == 0
    assert check(root, "coco_caption", "--decode") == 0


def test_a_file_of_the_right_size_and_a_wrong_content(
    site: Site, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(site, root) == 0
    damaged = [
        CocoCaptions(root=str(root), split="val2017").paths[0],
        CocoCaptions(root=str(root), split="train2017", count=8, seed=0).paths[0],
    ]
    for path in damaged:
        path.write_bytes(b"\0" * path.stat().st_size)
    assert (prepare(site, root), check(root)) == (0, 0)
    capsys.readouterr()
    assert check(root, "coco_caption", "--decode") == 1
    assert capsys.readouterr().out.endswith("--calibration 8 --seed 0 --decode\n")
    assert prepare(site, root, "coco_caption", "--decode") == 0


def test_a_disk_without_room(
    site: Site, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1000))
    assert prepare(site, root) == 1
    assert "bytes, but the disk has only 1,000 free" in capsys.readouterr().err
    assert (site.log, root.exists()) == ([], False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required"),
        (["prepare", "imagenet", "--root", "x"], "invalid choice: 'imagenet'"),
        (["prepare", "gqa"], "arguments are required: --root"),
        (["check", "gqa", "--root", "x", "--seed", "-1"], "--seed: '-1' is no number from 0"),
        (["check", "gqa", "--root", "x", "--calibration", "some"], "'some' is no number from 0"),
        (["prepare", "gqa", "--root", "x", "--images", "y"], "--images is for flickr30k; gqa's images are downloaded"),
        (
            ["prepare", "gqa", "--root", "x", "--url", "a.zip"],
            "--url a.zip: is not FILE=URL .* one of questions1.2.zip",
        ),
        (["prepare", "gqa", "--root", "x", "--url", "a.zip=http://x"], "--url a.zip=http://x: is not FILE=URL"),
        (["prepare", "gqa", "--root", "x", "--mirror", "ftp://x"], "--mirror ftp://x: does not begin with http"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    told = capsys.readouterr()
    assert (stopped.value.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert re.search(message, told.err)


def test_nothing_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(root) == 1
    told = capsys.readouterr()
    assert "there is no such folder. To get it: python -m mmq_sweeps.data prepare coco_caption --root" in told.out
    assert told.err == ""


def test_the_documents_show_what_the_command_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**12))
    for name in NAMES:
        assert command.main(["prepare", name, "--root", f"data/{name}", "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert name != "coco_caption" or told in page
        assert told.splitlines()[-1].removeprefix("to download: ") in page
    with pytest.raises(SystemExit):
        command.main(["prepare", "--help"])
    for option in re.findall(r"--[a-z-]+", capsys.readouterr().out):
        assert option == "--help" or f"`{option}" in page


def test_the_catalogue_is_sound() -> None:
    for name, one in SETS.items():
        assert one.name == name == one.reader.known_as  # type: ignore[attr-defined]
        for archive in (*one.archives, *one.training):
            assert archive.url.startswith("http")
            assert archive.sha256 is None or len(bytes.fromhex(archive.sha256)) == 32


PROGRAM = """
import dataclasses, json, sys
from mmq_sweeps.data import __main__ as command, catalog
known = json.loads(sys.argv[1])
def measured(archive):
    size, sha256 = known[archive.file]
    return dataclasses.replace(archive, size=size, sha256=sha256 if archive.sha256 else None)
one = catalog.SETS["coco_caption"]
archives = tuple(measured(archive) for archive in one.archives)
catalog.SETS["coco_caption"] = dataclasses.replace(one, archives=archives)
sys.exit(command.main(sys.argv[2:]))
"""


def process(site: Site, root: Path) -> list[str]:
    """Return the command line of a real process whose catalogue has the sizes and digests of the files that the test serves."""
    known = {name: [len(content), hashlib.sha256(content).hexdigest()] for name, content in site.files.items()}
    arguments = ["prepare", "coco_caption", "--root", str(root), "--mirror", site.url, "--calibration", "8"]
    return [sys.executable, "-c", PROGRAM, json.dumps(known), *arguments]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_stopped(stop: signal.Signals, site: Site, root: Path) -> None:
    site.slow, site.chunk = 0.08, 1_000
    started = subprocess.Popen(process(site, root), env=command_environment(), stderr=subprocess.PIPE, text=True)
    with started:
        while not (root / "downloads" / "val2017.zip.part").is_file():
            assert started.poll() is None
            time.sleep(0.01)
        started.send_signal(stop)
        told = started.communicate(timeout=30)[1]
    assert started.returncode == (130 if stop == signal.SIGINT else -9)
    if stop == signal.SIGINT:
        assert told == "stopped; what has arrived is kept, run the same command again to go on\n"
    site.slow = 0.0
    done = subprocess.run(process(site, root), env=command_environment(), check=True, capture_output=True, text=True)
    assert done.stdout.endswith("all there\ncomplete\n")
    assert done.stderr == ""
    assert [name for name, _ in site.log].count("annotations_trainval2017.zip") == 1


def test_two_processes_in_one_root(site: Site, root: Path) -> None:
    site.slow = 0.05
    both = [
        subprocess.Popen(process(site, root), env=command_environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert all(text.endswith("all there\ncomplete\n") for text in told)
    asked = [name for name, _ in site.log]
    assert len(asked) == len(set(asked))
