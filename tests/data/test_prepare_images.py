"""Flickr30k's images, which a user brings in a folder or an archive."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.data.preparing import check, prepare, tree
from tests.data.server import Site


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


@pytest.fixture
def archive(tmp_path: Path, served: tuple[Path, dict[str, bytes]]) -> str:
    """Pack Flickr30k's images into an archive."""
    return shutil.make_archive(str(tmp_path / "flickr30k-images"), "gztar", served[0], "flickr30k-images")


def test_flickr30k_from_an_archive(
    site: Site, root: Path, archive: str, served: tuple[Path, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
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
    archive: str,
    served: tuple[Path, dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
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
