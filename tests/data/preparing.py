"""Small published sets as official places serve them, and the command that prepares them."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

from mmq_sweeps.data import __main__ as command
from mmq_sweeps.data.catalog import Archive, DataSet
from tests.data.layouts import write_coco, write_coco_karpathy, write_flickr30k, write_gqa, write_json, write_vqav2
from tests.data.server import Site

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
    """Return every archive and single image that the catalogue names, small, from sets written to ``folder``."""
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


def measured(archive: Archive, files: dict[str, bytes]) -> Archive:
    """Return ``archive`` with the size of the served file, and its digest if the archive records a digest."""
    content = files[archive.file]
    digest = hashlib.sha256(content).hexdigest() if archive.sha256 else None
    return dataclasses.replace(archive, size=len(content), sha256=digest)


def small(one: DataSet, files: dict[str, bytes]) -> DataSet:
    return dataclasses.replace(
        one,
        archives=tuple(measured(archive, files) for archive in one.archives),
        training=tuple(measured(archive, files) for archive in one.training),
    )


def prepare(site: Site, root: Path, name: str = "coco_caption", *more: str) -> int:
    return command.main(["prepare", name, "--root", str(root), "--mirror", site.url, "--calibration", "8", *more])


def check(root: Path, name: str = "coco_caption", *more: str) -> int:
    return command.main(["check", name, "--root", str(root), "--calibration", "8", *more])


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
