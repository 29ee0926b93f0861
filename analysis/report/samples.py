"""Sample images of a task with the answers of full precision and chosen cells.

The images come from the reader that the record's task names: scenes are generated again, published sets are read from the
folder ``--images``.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Cells, Items
from analysis.cells.selections import assignment
from analysis.measures.quality import Quality
from analysis.output import plain
from analysis.report.blocks import Sample, Samples
from analysis.report.columns import SIZES
from analysis.report.overview import answers as answers_of
from mmq_sweeps.reporting.counts import counted

SHOWN = 8
CELLS = 4
# In a larger family only the cells that can be an answer have their predictions on the page.
MOST_ANSWERS = 1000
THUMBNAIL, LOSSLESS, QUALITY = 288, 96, 80
# A record's ``_target_`` is imported, so it may only name readers below this prefix or in ``mmq_sweeps.data.readers``.
READERS = "mmq_sweeps.data."


def samples(
    family: Cells,
    metric: str,
    chosen: Sequence[pd.Series],
    numbers: Mapping[tuple[str, str], int],
    root: Path | None,
    number: int = 0,
) -> tuple[Samples | None, list[str]]:
    """Collect the answers of cells to the same items, and sentences on the choice and its gaps.

    The items are those that full precision and ``chosen`` cells answer differently, if there are any. All cells of a family
    of at most ``MOST_ANSWERS`` are collected, else the frontier's and the chosen ones, since readers may pin any of them.
    ``numbers`` are those of the cells on the page, ``number`` is the family's. ``root`` is a published set's image folder.
    """
    answered = list(_answered(family, metric, chosen))
    if not answered:
        return None, ["no cell of this source has its predictions here: no samples"]
    columns = [{str(item["id"]): item for item in items} for _, items in answered]
    shared = [item for item in columns[0] if all(item in column for column in columns)]
    unlike = [item for item in shared if len({readable(column[item]["prediction"]) for column in columns}) > 1]
    shown = (unlike or shared)[:SHOWN]
    known, lacking = _examples(answered[0][0], set(shown), root)
    rows = [known[item] for item in shown]
    by_cell = {numbers[row["id"], row["where"]]: items for row, items in answered}
    picked = list(by_cell)
    by_cell |= _others(family, metric, by_cell, numbers)
    answers = {cell: said for cell, items in by_cell.items() if (said := _said(items, shown, metric))}
    names = [assignment(row) for row, _ in answered]
    told = [
        f"Of {counted(len(shared), 'item')}, {name} says the same as {names[0]} to {_same(column, columns[0], shared):,}."
        for name, column in zip(names[1:], columns[1:], strict=True)
    ]
    first = f"are the first {len(shown)} items" if len(shown) > 1 else "is the first item"
    shown_are = f"Shown {first}{' that cells answer differently' if unlike else ''}."
    return Samples(number, rows, answers, picked), [shown_are, *told, *lacking]


def _answered(family: Cells, metric: str, chosen: Sequence[pd.Series]) -> Iterator[tuple[pd.Series, Items]]:
    """Yield full precision and the ``chosen`` cells with their items; if too few have predictions, the best others that do."""
    quality = Quality.of(family, metric)
    rows = family.frame[family.frame[quality.column].notna()].sort_values(quality.column, ascending=not quality.higher)
    full, others = rows[rows["method"] == "none"], rows[rows["method"] != "none"]
    # One by one: of thousands few are looked at.
    candidates = chain(_rows(full), chosen, _rows(others))
    seen: set[str] = set()
    found = 0
    for number, row in enumerate(candidates):
        if number >= len(full) + len(chosen) and found > 2:
            return
        if row["id"] in seen:
            continue
        seen.add(row["id"])
        if items := family.items(row):
            found += 1
            yield row, items
        if found == CELLS:
            return


def _rows(frame: pd.DataFrame) -> Iterator[pd.Series]:
    return (row for _, row in frame.iterrows())


def _others(
    family: Cells, metric: str, read: Mapping[int, Items], numbers: Mapping[tuple[str, str], int]
) -> dict[int, Items]:
    """Read the items of the cells that readers may pin, by their number, without those that are ``read``."""
    frame = family.frame
    if len(frame) > MOST_ANSWERS:
        sizes = [name for name in SIZES if name in frame]
        frame = frame.loc[sorted(answers_of(frame, Quality.of(family, metric), sizes))]
    rows = {numbers[row["id"], row["where"]]: row for _, row in frame.iterrows()}
    return {number: items for number, row in rows.items() if number not in read and (items := family.items(row))}


def _said(items: Items, shown: Sequence[str], metric: str) -> list[tuple[str, float | None]]:
    """Return text and score of the ``shown`` items; empty if the cell lacks one of them."""
    by_id = {str(item["id"]): item for item in items}
    if any(item not in by_id for item in shown):
        return []
    return [(readable(by_id[item]["prediction"]), plain(by_id[item].get("scores", {}).get(metric))) for item in shown]


def readable(prediction: str) -> str:
    """Format a prediction; a retriever's is JSON with the rank of the right answer."""
    try:
        told = json.loads(prediction)
        return f"right answer at rank {told['rank'] + 1}"
    except (ValueError, KeyError, TypeError):
        return prediction


def _same(column: Mapping[str, Any], full: Mapping[str, Any], shared: Iterable[str]) -> int:
    return sum(readable(column[item]["prediction"]) == readable(full[item]["prediction"]) for item in shared)


def _examples(row: pd.Series, wanted: set[str], root: Path | None) -> tuple[dict[str, Sample], list[str]]:
    """Load image, question and right answers of the ``wanted`` items; a sentence says why if that fails."""
    try:
        task = json.loads(Path(row["where"]).read_text())["cell"]["task"]
    except (OSError, ValueError, KeyError, TypeError):
        task = {}
    return examples_of(task, row["task"], wanted, root)


def examples_of(
    task: Mapping[str, Any], name: str, wanted: set[str], root: Path | None
) -> tuple[dict[str, Sample], list[str]]:
    """Load image, question and right answers of the ``wanted`` items of a record's ``task``, which is shown as ``name``.

    Those of an item that is not found are empty; a sentence says why if that fails. ``root`` is the folder of a published set.
    """
    try:
        reader = _reader(task, root)
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError):
        reader = None
    found = {item: Sample(item) for item in wanted}
    if reader is None:
        return found, [f"No images: the records of {name} do not say where they lie; name their folder with --images"]
    left = set(wanted)
    try:
        for example in islice(iter(reader), task["limit"]):
            for item, asked, right in _items_of(example):
                if item in wanted:
                    found[item] = Sample(item, _address(_shown(example)), asked, right)
                    left.discard(item)
            if not left:
                break
    except (OSError, ValueError) as error:
        return found, [f"No images: {error}"]
    return found, []


def _reader(task: Mapping[str, Any], root: Path | None) -> Any:
    """Build the reader of ``task``; ``None`` if it needs a folder and ``root`` is not given."""
    target = task["data"]["_target_"]
    known_as = importlib.import_module("mmq_sweeps.data.readers").READERS
    if target not in known_as and not target.startswith(READERS):
        raise ValueError(f"{target}: is none of {', '.join(known_as)}")
    module, _, name = target.rpartition(".")
    made = known_as.get(target) or getattr(importlib.import_module(module), name)
    known = {field.name: field for field in dataclasses.fields(made)}
    given = {key: value for key, value in task["data"].items() if key in known and key != "annotations"}
    if place := next((name for name in ("root", "path") if name in known), None):
        if root is None:
            return None
        given[place] = str(root)
    if known["count"].default is not None:
        given["count"] = task["limit"]
    return made(**given, split=task["split"])


def _items_of(example: Any) -> Iterator[tuple[str, str, Sequence[str]]]:
    right = tuple(getattr(example, "references", ()))
    yield str(example.id), "", right
    for number, text in enumerate(right):
        yield f"{example.id}/{number}", text, ()
    for number, asked in enumerate(getattr(example, "questions", ())):
        answers = getattr(asked, "answers", None) or (asked.answer,)
        yield str(getattr(asked, "id", f"{example.id}/{number}")), asked.question, tuple(dict.fromkeys(answers))


def _shown(example: Any) -> Any:
    """Return the image of an example, several side by side; ``None`` without any."""
    images = importlib.import_module("mmq_sweeps.data.images")
    return images.side_by_side(images.images_of(example))


def _address(image: Any) -> str:
    """Encode the image as a ``data:`` URL: losslessly if small, else as a JPEG thumbnail; empty without an image."""
    if image is None:
        return ""
    shown, kept = image.convert("RGB"), io.BytesIO()
    if max(shown.size) <= LOSSLESS:
        shown.save(kept, "PNG")
        return "data:image/png;base64," + base64.b64encode(kept.getvalue()).decode()
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    shown.save(kept, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(kept.getvalue()).decode()
