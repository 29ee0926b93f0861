"""Write small data sets in the published sets' own layouts, with real image files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

SIZE = (40, 32)


def write_picture(path: Path, number: int) -> Path:
    """Write a JPEG that differs with ``number``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", SIZE, (number * 37 % 256, number * 91 % 256, number * 53 % 256))
    image.paste((255, 255, 255), (number % 20, 5, number % 20 + 10, 20))
    image.save(path, quality=90)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_coco(root: Path, split: str = "val2017", ids: Sequence[int] = (37, 9, 139, 25)) -> Path:
    """Write ``captions_SPLIT.json`` with two captions an image, and the images; the captions are in another order."""
    images, annotations = [], []
    for number in ids:
        name = f"{number:012d}.jpg"
        write_picture(root / split / name, number)
        images.append(
            {
                "license": 4, "file_name": name, "coco_url": f"http://images.cocodataset.org/{split}/{name}",
                "height": SIZE[1], "width": SIZE[0], "date_captured": "2013-11-14 17:02:52",
                "flickr_url": f"http://farm1.staticflickr.com/{number}.jpg", "id": number,
            }
        )  # fmt: skip
    for turn in ("A picture of", "One more look at"):
        for number in sorted(ids):
            caption = {"image_id": number, "id": len(annotations) + 1, "caption": f"{turn} thing {number}.\n"}
            annotations.append(caption)
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    return write_json(root / "annotations" / f"captions_{split}.json", content)


def karpathy_image(number: int, split: str, filename: str, **more: Any) -> dict[str, Any]:
    sentences = [
        {"tokens": ["thing", str(number)], "raw": f"{turn} thing {number}.", "imgid": number, "sentid": number * 5 + at}
        for at, turn in enumerate(("A", "One", "Some", "The", "Any"))
    ]
    return {
        "sentids": [sentence["sentid"] for sentence in sentences], "imgid": number, "sentences": sentences,
        "split": split, "filename": filename, **more,
    }  # fmt: skip


def write_coco_karpathy(root: Path, splits: Sequence[str] = ("test", "restval", "train", "val", "test")) -> Path:
    """Write ``dataset_coco.json`` with an image for each of ``splits``; those of train lie in ``train2014``."""
    images = []
    for number, split in enumerate(splits, 1):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012d}.jpg"
        write_picture(root / folder / name, number)
        images.append(karpathy_image(number, split, name, filepath=folder, cocoid=number))
    return write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})


def write_flickr30k(root: Path, test: int = 4, train: int = 6, folder: str = "flickr30k-images") -> Path:
    """Write ``dataset_flickr30k.json`` with ``test`` and ``train`` images in turns, as long as there are any."""
    splits = [split for pair in zip(["test"] * test, ["train"] * test, strict=True) for split in pair][: 2 * test]
    splits = (splits + ["train"] * train)[: test + train] if train >= test else splits[: test + train]
    images = []
    for number, split in enumerate(splits):
        name = f"{1000092795 + number}.jpg"
        write_picture(root / folder / name, number)
        images.append(karpathy_image(number, split, name))
    return write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def write_vqav2(root: Path, split: str = "val2014", ids: Sequence[int] = (262148, 42, 393225), each: int = 2) -> None:
    """Write questions and annotations, ``each`` questions an image by turns, with ten answers each."""
    questions, annotations = [], []
    for turn in range(each):
        for number in ids:
            if turn == 0:
                write_picture(root / split / f"COCO_{split}_{number:012d}.jpg", number)
            identity = number * 1000 + turn
            questions.append({"image_id": number, "question": f"What is {turn}?", "question_id": identity})
            kind, answer = (("number", "2"), ("yes/no", "yes"), ("other", "down"))[turn % 3]
            answers = [
                {"answer": answer if at < 8 else "maybe", "answer_confidence": "yes", "answer_id": at + 1}
                for at in range(10)
            ]
            annotations.append(
                {
                    "question_type": "what is", "multiple_choice_answer": answer, "answers": answers,
                    "image_id": number, "answer_type": kind, "question_id": identity,
                }
            )  # fmt: skip
    common = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": split}
    write_json(
        root / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {**common, "task_type": "Open-Ended", "questions": questions},
    )
    write_json(root / f"v2_mscoco_{split}_annotations.json", {**common, "annotations": annotations[::-1]})


def write_gqa(
    root: Path, split: str = "testdev_balanced", ids: Sequence[str] = ("n161313", "n7"), each: int = 3
) -> Path:
    """``SPLIT_questions.json`` with ``each`` questions an image by turns."""
    questions = {}
    for turn in range(each):
        for place, number in enumerate(ids):
            if turn == 0:
                write_picture(root / "images" / f"{number}.jpg", place + 1)
            questions[f"2{turn}{place:05d}"] = {
                "semantic": [{"operation": "select", "dependencies": [], "argument": "sky (0)"}],
                "entailed": [], "equivalent": [], "question": f"Is the sky dark or light, {turn}?", "imageId": number,
                "isBalanced": True, "groups": {"global": None, "local": "06-sky_dark"}, "answer": "dark",
                "semanticStr": "select: sky (0)", "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                "types": {"detailed": "chooseAttr", "semantic": "attr", "structural": ("choose", "query")[turn % 2]},
                "fullAnswer": "The sky is dark.",
            }  # fmt: skip
    return write_json(root / f"{split}_questions.json", questions)
