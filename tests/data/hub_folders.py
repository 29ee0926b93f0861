"""Write small data sets of the tests' own, as the library ``datasets`` or a user would."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from mmq_sweeps.data.scenes import Scenes

COMMIT = "0123456789abcdef" * 2 + "01234567"


def scenes(count: int, split: str = "evaluation") -> list[Image.Image]:
    return [example.image for example in Scenes(split, count)]


def png(image: Image.Image) -> bytes:
    kept = io.BytesIO()
    image.save(kept, "PNG")
    return kept.getvalue()


def write_lines(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def write_own(folder: Path, count: int = 4) -> Path:
    """Write a file of JSON lines and a folder of images for each of ``test`` and ``train``, as a user would."""
    for split, named in (("test", "evaluation"), ("train", "calibration")):
        rows = []
        for place, image in enumerate(scenes(count, named)):
            name = f"pictures/{split}_{place}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            image.save(folder / name)
            rows.append(
                {"id": f"{split}-{place}", "image": name, "question": f"how many objects, {place}?", "answer": "two"}
            )
        write_lines(folder, split, rows)
    return folder


def write_parquet(folder: Path, images: Sequence[Sequence[Image.Image]], split: str = "test", **columns: Any) -> Path:
    """Write a shard of Parquet in the Hub's layout, with a list of images, a question and answers a row."""
    import datasets

    own = {
        "images": [list(row) for row in images],
        "question": [f"what is in {split} picture {place}?" for place in range(len(images))],
        "answers": [["red", "a red one"]] * len(images),
        **columns,
    }
    rows = datasets.Dataset.from_dict(own).cast_column("images", datasets.List(datasets.Image()))
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(path)
    return path
