"""``python -m mmq_sweeps.data``: small sets in the published layouts, served by a local server, as real processes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mmq_sweeps.data import __main__ as command
from mmq_sweeps.data.catalog import SETS, Archive, DataSet
from mmq_sweeps.data.coco import CocoCaptions
from mmq_sweeps.data.manifest import read_manifest
from tests.conftest import command_environment
from tests.data.layouts import write_coco, write_coco_karpathy, write_flickr30k, write_gqa, write_json, write_vqav2
from tests.data.server import Site, serve

IDS = (37, 9, 139, 25, 71)
TRAINING = range(1000, 1040)
NAMES = ("coco_caption", "coco_karpathy", "flickr30k", "vqav2", "gqa")


def zipped(folder: Path, members: Sequence[Path]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in sorted(members):
            archive.write(member, member.relative_to(folder).as_posix())
    return buffer.getvalue()


def official(folder: Path) -> dict[str, bytes]:
    """Every archive and single image that the catalogue names, small, from sets written to ``folder``."""
    write_coco(folder, "val2017", IDS)
    write_coco(folder, "train2017", TRAINING)
    write_json(folder / "annotations" / "instances_val2017.json", {"images": []})
    write_vqav2(folder, "val2014")
    write_vqav2(folder, "train2014", range(500, 540))
    write_coco_karpathy(folder, ["test", "train"] * 20)
    write_flickr30k(folder, test=5, train=40)
    write_gqa(folder)
    write_gqa(folder, "train_balanced", [str(number) for number in range(2300000, 2300040)])
    files = {
        "annotations_trainval2017.zip": zipped(folder, list((folder / "annotations").iterdir())),
        "caption_datasets.zip": zipped(folder, list(folder.glob("dataset_*.json"))),
        "questions1.2.zip": zipped(folder, list(folder.glob("*_balanced_questions.json"))),
        "images.zip": zipped(folder, list((folder / "images").iterdir())),
    }
    for split in ("val2017", "train2017", "val2014", "train2014"):
        files[f"{split}.zip"] = zipped(folder, list((folder / split).iterdir()))
        files |= {f"{split}/{path.name}": path.read_bytes() for path in (folder / split).iterdir()}
    for part, split in (("Val", "val2014"), ("Train", "train2014")):
        files[f"v2_Questions_{part}_mscoco.zip"] = zipped(folder, list(folder.glob(f"v2_Open*_{split}_*.json")))
        files[f"v2_Annotations_{part}_mscoco.zip"] = zipped(folder, list(folder.glob(f"v2_mscoco_{split}_*.json")))
    return files


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("official")
    return folder, official(folder)


def measured(archive: Archive, files: dict[str, bytes]) -> Archive:
    """The archive with the size, and where one is recorded the digest, of what the test serves."""
    content = files[archive.file]
    digest = hashlib.sha256(content).hexdigest() if archive.sha256 else None
    return dataclasses.replace(archive, size=len(content), sha256=digest)


def small(one: DataSet, files: dict[str, bytes]) -> DataSet:
    return dataclasses.replace(
        one,
        archives=tuple(measured(archive, files) for archive in one.archives),
        training=tuple(measured(archive, files) for archive in one.training),
    )


@pytest.fixture
def site(served: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in NAMES:
        monkeypatch.setitem(SETS, name, small(SETS[name], served[1]))  # type: ignore[arg-type]
    with serve(Site(dict(served[1]))) as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "my data, größer"


def prepare(site: Site, root: Path, name: str = "coco_caption", *more: str) -> int:
    return command.main(["prepare", name, "--root", str(root), "--mirror", site.url, "--calibration", "8", *more])


def check(root: Path, name: str = "coco_caption", *more: str) -> int:
    return command.main(["check", name, "--root", str(root), "--calibration", "8", *more])


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
    """The digest is recorded for COCO; for GQA nothing is known, but a wrong archive does not unpack."""
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


def test_flickr30k_without_its_images(
    site: Site, root: Path, served: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(site, root, "flickr30k") == 1
    told = capsys.readouterr().out
    assert "those who ask for them with the form at https://forms.illinois.edu/sec/229675" in told
    assert "test: 5 images, 25 texts: 5 of 5 images cannot be used (5 missing)" in told
    assert prepare(site, root, "flickr30k", "--images", str(root / "absent")) == 1
    assert "absent: there is no such folder or archive" in capsys.readouterr().err
    assert prepare(site, root, "flickr30k", "--images", str(served[0] / "val2017")) == 1
    assert "has no 1000092795.jpg, the first image of flickr30k's test split" in capsys.readouterr().err
    # The folder may lie deeper, and the link is made anew.
    assert prepare(site, root, "flickr30k", "--images", str(served[0])) == 0
    assert (root / "flickr30k-images").resolve() == (served[0] / "flickr30k-images").resolve()
    assert prepare(site, root, "flickr30k") == 0


def test_flickr30k_from_an_archive(
    site: Site,
    root: Path,
    tmp_path: Path,
    served: tuple[Path, dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = shutil.make_archive(str(tmp_path / "flickr30k-images"), "gztar", served[0], "flickr30k-images")
    assert prepare(site, root, "flickr30k", "--images", archive) == 0
    assert check(root, "flickr30k", "--decode") == 0
    assert len(list((root / "flickr30k-images").iterdir())) == 45
    # As after an unpacking that was interrupted.
    next((root / "flickr30k-images").iterdir()).unlink()
    assert prepare(site, root, "flickr30k", "--images", archive) == 0
    assert len(list((root / "flickr30k-images").iterdir())) == 45
    # A folder of one's own is never replaced by a link.
    assert prepare(site, root, "flickr30k", "--images", str(served[0] / "flickr30k-images")) == 1
    assert not (root / "flickr30k-images").is_symlink()
    assert "has files of its own; remove it to use" in capsys.readouterr().err


def test_an_archive_is_not_unpacked_through_a_link_into_the_users_folder(
    site: Site,
    root: Path,
    tmp_path: Path,
    served: tuple[Path, dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    archive = shutil.make_archive(str(tmp_path / "flickr30k-images"), "gztar", served[0], "flickr30k-images")
    own = tmp_path / "my own"
    shutil.copytree(served[0] / "flickr30k-images", own)
    next(own.iterdir()).write_bytes(b"edited by the user")
    before = tree(own)
    assert prepare(site, root, "flickr30k", "--images", str(own)) == 0
    capsys.readouterr()
    link = root / "flickr30k-images"
    for _ in range(2):
        assert prepare(site, root, "flickr30k", "--images", archive) == 1
        assert (
            f"{link} leads to {own}, where nothing is unpacked; remove that link to use --images {archive} in its"
            in (capsys.readouterr().err)
        )
        assert tree(own) == before
    shutil.move(own, tmp_path / "moved")  # the link then leads nowhere
    assert prepare(site, root, "flickr30k", "--images", archive) == 1
    assert "where nothing is unpacked; remove that link" in capsys.readouterr().err
    link.unlink()
    assert prepare(site, root, "flickr30k", "--images", archive) == 0
    assert tree(link) == tree(served[0] / "flickr30k-images")
    assert tree(tmp_path / "moved") == before
    shutil.rmtree(link)
    assert prepare(site, root, "flickr30k", "--images", str(tmp_path / "moved")) == 0
    assert check(root, "flickr30k") == 0, "the archive's sizes are not those of the user's own images"


def test_the_images_that_are_there_may_be_named_again(
    site: Site, root: Path, tmp_path: Path, served: tuple[Path, dict[str, bytes]]
) -> None:
    own, link = tmp_path / "my own", root / "flickr30k-images"
    shutil.copytree(served[0] / "flickr30k-images", own)
    for images in (own, link, own):
        assert prepare(site, root, "flickr30k", "--images", str(images)) == 0
        assert link.readlink() == own
    link.unlink()
    shutil.copytree(own, link)
    assert prepare(site, root, "flickr30k", "--images", str(link)) == 0
    assert tree(link) == tree(own)
    shutil.rmtree(link)
    link.write_text("a file of the user")
    assert prepare(site, root, "flickr30k", "--images", str(own)) == 1
    assert link.read_text() == "a file of the user"


def test_an_archive_of_images_is_told_apart_from_others_of_its_name(
    site: Site, root: Path, tmp_path: Path, served: tuple[Path, dict[str, bytes]]
) -> None:
    assert prepare(site, root, "gqa") == 0
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", served[0], "flickr30k-images")
    assert prepare(site, root, "flickr30k", "--images", archive) == 0
    assert tree(root / "flickr30k-images") == tree(served[0] / "flickr30k-images")
    shutil.rmtree(root / "images")
    assert prepare(site, root, "gqa") == 0
    changed = tmp_path / "changed"
    shutil.copytree(served[0] / "flickr30k-images", changed / "flickr30k-images")
    picture = next((changed / "flickr30k-images").iterdir())
    picture.write_bytes(picture.read_bytes() + b"more")
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", changed, "flickr30k-images")
    assert prepare(site, root, "flickr30k", "--images", archive) == 0
    assert tree(root / "flickr30k-images") == tree(changed / "flickr30k-images")


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
        assert one.name == name == one.reader.prepared_as  # type: ignore[attr-defined]
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
    """The command as a real process, with a catalogue that knows the sizes and digests of what the test serves."""
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
