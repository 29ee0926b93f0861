"""Check the cells' answers: duplicated outputs, and answers that many items share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.audit.finding import Told, listed
from analysis.cells import Cells, Items
from analysis.cells.columns import ANSWERS, METRIC
from analysis.cells.selections import assignment
from analysis.cells.table import MOST_SCORED
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.reporting.answers import called, repeats
from mmq_sweeps.reporting.counts import counted

# Suspect shares of items with the same answer: SAME_ANSWER for captions, or SAME_CAPTION if more than twice full precision's
# share; for other answers SAME_ANSWER, and MORE_THAN_FULL above full precision. Below LEAST_ITEMS only a share of 1 is.
SAME_ANSWER, SAME_CAPTION, MORE_THAN_FULL, LEAST_ITEMS = 0.5, 0.25, 0.2, 10


# Suspect share of empty answers.
NO_ANSWER = 0.05


# Most questions may share a right answer, but captions of different images differ.
CAPTION_METRICS = ("cider", "meteor", "bleu", "rouge", "spice")


@dataclass(frozen=True)
class Answers:
    """A cell's answers: their digest, number of items, most common answer with its frequency, number of empty answers."""

    output: str
    count: int = 0
    common: str = ""
    often: int = 0
    empty: int = 0


def answers_of_rows(family: Cells, rows: pd.DataFrame) -> list[Answers | None]:
    """Summarize the answers of each row; ``None`` if its source has no predictions.

    Above ``MOST_SCORED`` rows predictions are not read: only digests already in the table are used.
    """
    if len(rows) > MOST_SCORED:
        told = rows["output"] if "output" in rows else pd.Series(None, rows.index, dtype=object)
        return [Answers(output) if isinstance(output, str) else None for output in told]
    return list(family.summaries(rows, _answers_of))


def wanted(cells: Cells) -> None:
    """Have answers summarized whenever items are read, since an audit will ask for them."""
    cells.book.want(_answers_of)


def _answers_of(items: Items | None) -> Answers | None:
    predictions = {str(item["id"]): item.get("prediction") for item in items or ()}
    if not predictions or any(prediction is None for prediction in predictions.values()):
        return None
    output = digest(sorted(predictions.items()))
    texts = [str(prediction).strip() for prediction in predictions.values()]
    found = _first_results(predictions) if all(map(_is_rank, texts)) else [texts]
    if not found:
        return Answers(output)
    return max((_counted(output, texts) for texts in found), key=lambda one: one.often / one.count)


def _counted(output: str, texts: Sequence[str]) -> Answers:
    common, often = Counter(texts).most_common(1)[0]
    return Answers(output, len(texts), common, often, texts.count(""))


def _is_rank(text: str) -> bool:
    try:
        return "rank" in json.loads(text)
    except (ValueError, TypeError):
        return False


def _first_results(ranks: Mapping[str, Any]) -> list[list[str]]:
    """Return the first results of images, and those of texts; empty if they are not recorded.

    The texts of an image are ``IMAGE/0``, ``IMAGE/1``, ...
    """
    found: dict[bool, list[str]] = {}
    for query, text in ranks.items():
        if (first := json.loads(text).get("first")) is None:
            return []
        found.setdefault(query.rpartition("/")[0] in ranks, []).append(next(iter(first), ""))
    return list(found.values())


def outputs(rows: pd.DataFrame, answers: Sequence[Answers | None], metrics: Sequence[str]) -> Iterator[Told]:
    """Report duplicated outputs, compared by predictions.

    Cells without predictions are compared by all scores, although different outputs can score alike.
    """
    scores = list(rounded(rows[[f"{METRIC}{name}" for name in metrics]]).itertuples(index=False, name=None))
    known = {one.output for one in answers if one is not None}
    seen = {score for score, one in zip(scores, answers, strict=True) if one is not None}
    only_scored = {score for score, one in zip(scores, answers, strict=True) if one is None} - seen
    lacking = sum(one is None for one in answers)
    distinct = len(known) + len(only_scored)
    if distinct < len(rows):
        by = "by their predictions"
        if lacking:
            by = (
                f"by the predictions of {len(rows) - lacking} and the scores of {lacking}"
                if known
                else "by their scores"
            )
            by += ": predictions of all cells would tell exactly"
        told = f"{counted(len(rows), 'cell has', 'cells have')} {counted(distinct, 'distinct output')}, {by}"
        yield "duplicated outputs", told, len(rows) - distinct, len(rows)


def rounded(figures: pd.DataFrame) -> pd.DataFrame:
    """Round to 9 significant digits, so that values that differ only by rounding compare equal."""
    return figures.map(lambda value: float(f"{value:.9g}"))


def same_answers(rows: pd.DataFrame, answers: Sequence[Answers | None], metrics: Sequence[str]) -> Iterator[Told]:
    """Report cells that give many items the same answer, or none, unlike full precision."""
    captions = any(name.startswith(CAPTION_METRICS) for name in metrics)
    full = rows["method"] == "none"
    shares = [
        one.often / one.count for one, is_full in zip(answers, full, strict=True) if is_full and one and one.count
    ]
    usual = min(shares, default=None)
    told = []
    for (_, row), one in zip(rows.iterrows(), answers, strict=True):
        if one is None or one.count < 2:
            continue
        if one.empty == one.count:
            told.append(f"{assignment(row)} says nothing to any of {one.count}")
        elif one.empty >= NO_ANSWER * one.count:
            told.append(f"{assignment(row)} answers nothing to {one.empty} of {one.count}")
        elif _suspect(one, captions, usual if row["method"] != "none" else None):
            told.append(f"{assignment(row)} {_answering(one)}")
    if told:
        yield (
            "identical answers",
            f"{counted(len(told), 'cell gives', 'cells give')} many items one answer: {listed(told)}",
            len(told),
            len(rows),
        )


def alike_lines(rows: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence per cell that leaves items without an answer, or repeats an answer more than is right.

    Only what the records say is read, no items.
    """
    for _, row in rows.iterrows():
        told = {name: row.get(f"{ANSWERS}{name}") for name in ("empty", "identical", "expected", "commonest")}
        if pd.isna(told["empty"]):
            continue
        if what := called(told):
            yield f"{assignment(row)} {what}"
            continue
        if told["empty"]:
            yield f"{assignment(row)} leaves {told['empty']:.1%} of the items without an answer"
        if repeats(told):
            yield (
                f"{assignment(row)} says {told['commonest']!r} to {told['identical']:.1%} of the items; the commonest right "
                f"answer is that of {told['expected']:.1%}"
            )


def _answering(one: Answers) -> str:
    if one.often == one.count:
        return f"says {one.common!r} to all of {one.count}"
    return f"answers {one.common!r} to {one.often} of {one.count}"


def _suspect(one: Answers, captions: bool, usual: float | None) -> bool:
    """Return true if too many answers are the same; ``usual`` is the share at full precision, ``None`` if unknown."""
    share = one.often / one.count
    if share == 1.0:
        return captions or usual is None or usual < 1.0
    if one.count < LEAST_ITEMS:
        return False
    if captions:
        return share >= SAME_ANSWER or (share >= SAME_CAPTION and usual is not None and share > 2 * usual)
    return usual is not None and share >= max(SAME_ANSWER, usual + MORE_THAN_FULL)
