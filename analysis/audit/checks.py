"""Audit cells for defects: cells that measured nothing, or something other than their record says.

Checks of every family of comparable cells:

- duplicated outputs: distinct outputs are counted by predictions if cells have them, else by scores;
- changed nothing: cells lower bits, yet answer, or score in every metric, exactly as full precision;
- not applied: a part's layer kind is counted as quantized but never changes a score, comparing cells that differ in nothing
  else, at every setting of the rest;
- do not tie: cells with the same assignment score differently;
- scatter: cells with every part at many bits should nearly tie, yet vary in a way that bits do not explain;
- identical answers: cells give many items the same answer, or none;
- no figure: finished cells lack the metric;
- fewer items: cells were measured on fewer items than others, or than requested; and cells with warnings;
- records differ: in images, processor or generation settings within the family;
- missing cells: assignments that a grid lacks.

Checks across families: full precision should score the same in every source, and copies of a cell should agree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells import (
    BITS,
    DEFINITION,
    METRIC,
    MOST_SCORED,
    SELECTION,
    WARNINGS,
    Cells,
    Items,
    assignment,
    by_number,
    conflicts,
    mixed,
    slots,
)
from analysis.measures.missing import gaps, unlike_baselines
from analysis.measures.quality import Quality
from mmq_sweeps.identity.assignment import FULL_PRECISION_BITS, part_order
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.reporting.compare import ROUNDING

KINDS = ("attention", "mlp")
GROUPS = ("front", "middle", "end")
# The setting of a layer kind that is not quantized.
UNTOUCHED = "/".join([str(FULL_PRECISION_BITS)] * len(GROUPS))
# Fewer comparisons prove nothing about a layer kind.
LEAST_COMPARISONS = 5
# At this many bits or more a good method loses almost nothing; scatter needs at least this many such cells.
MANY_BITS, LEAST_SCATTERED = 6, 20
# Suspect shares of items with the same answer: SAME_ANSWER for captions, or SAME_CAPTION if more than twice full precision's
# share; for other answers SAME_ANSWER, and MORE_THAN_FULL above full precision. Below LEAST_ITEMS only a share of 1 is.
SAME_ANSWER, SAME_CAPTION, MORE_THAN_FULL, LEAST_ITEMS = 0.5, 0.25, 0.2, 10
# Suspect share of empty answers.
NO_ANSWER = 0.05
# Most questions may share a right answer, but captions of different images differ.
CAPTION_METRICS = ("cider", "meteor", "bleu", "rouge", "spice")
# Cells that a finding lists by name.
SHOWN = 5
# Report scatter above this share of the mean score, unless bits explain at least this share of its variance.
SCATTER, EXPLAINED = 0.005, 0.25


@dataclass(frozen=True)
class Finding:
    """A defect: its kind, a sentence, and the number of ``cells`` affected out of ``of``."""

    family: str
    defect: str
    sentence: str
    cells: int
    of: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# A finding without its family: ``(defect, sentence, cells, of)``.
_Told = tuple[str, str, int, int]


def audit(cells: Cells, metric: str | None = None, say: Callable[[str], None] = lambda text: None) -> list[Finding]:
    """Return all findings in ``cells``, judging each family by ``metric``, by default its first.

    ``say`` receives the current family: reading the predictions of thousands of cells takes a while.
    """
    done = cells.of(cells.frame[cells.frame["status"] == "done"])
    found: list[Finding] = []
    measured = []
    for title, family in done.families():
        name = metric or (family.metrics or [""])[0]
        if name in family.metrics:
            say(f"audit of {title}")
            found += [Finding(title, *finding) for finding in _of_family(family, name)]
            measured.append((title, family, name))
    for title, sentence in unlike_baselines(measured):
        found.append(Finding(title, "baselines differ", sentence, 0, len(done.frame)))
    found += [Finding(title, *finding) for title, finding in _copies(cells)]
    return found


@dataclass(frozen=True)
class _Answers:
    """A cell's answers: their digest, number of items, most common answer with its frequency, number of empty answers."""

    output: str
    count: int = 0
    common: str = ""
    often: int = 0
    empty: int = 0


def _answers(family: Cells, rows: pd.DataFrame) -> list[_Answers | None]:
    """Summarize the answers of each row; ``None`` if its source has no predictions.

    Above ``MOST_SCORED`` rows predictions are not read: only digests already in the table are used.
    """
    if len(rows) > MOST_SCORED:
        told = rows["output"] if "output" in rows else pd.Series(None, rows.index, dtype=object)
        return [_Answers(output) if isinstance(output, str) else None for output in told]
    return [_answers_of(family.items(row)) for _, row in rows.iterrows()]


def _answers_of(items: Items | None) -> _Answers | None:
    predictions = {str(item["id"]): item.get("prediction") for item in items or ()}
    if not predictions or any(prediction is None for prediction in predictions.values()):
        return None
    output = digest(sorted(predictions.items()))
    texts = [str(prediction).strip() for prediction in predictions.values()]
    if all(map(_is_rank, texts)):
        return _Answers(output)  # A good retriever ranks most right answers first: equal ranks are no defect.
    common, often = Counter(texts).most_common(1)[0]
    return _Answers(output, len(texts), common, often, texts.count(""))


def _is_rank(text: str) -> bool:
    try:
        return "rank" in json.loads(text)
    except (ValueError, TypeError):
        return False


def _of_family(family: Cells, metric: str) -> Iterator[_Told]:
    quality = Quality.of(family, metric)
    rows = family.frame[family.frame[quality.column].notna()].reset_index(drop=True)
    if len(rows) < len(family.frame):
        lacking = [assignment(row) for _, row in family.frame[family.frame[quality.column].isna()].iterrows()]
        told = f"{len(lacking)} cells have no {metric} and are left out of all other checks: {_listed(lacking)}"
        yield "no figure", told, len(lacking), len(family.frame)
    metrics = [name for name in family.metrics if rows[f"{METRIC}{name}"].notna().all()]
    score = quality.score(rows)
    settings, answers = effective(rows), _answers(family, rows)
    yield from _outputs(rows, answers, metrics)
    yield from _ties(settings, score, metric)
    idle = list(_never_applied_in_any(family, rows, settings, metrics))
    several = settings.loc[settings["method"] != "", "method"].nunique() > 1
    for method, name, compared in idle:
        touched = int(((settings[name] != UNTOUCHED) & (settings["method"] == method)).sum())
        yield (
            "not applied",
            f"{name} is counted as quantized in {touched} cells{f' of {method}' if several else ''} and never changes "
            f"{_and(metrics)} ({compared} comparisons of cells that differ in nothing else)",
            touched,
            len(rows),
        )
    yield from _unchanged(rows, settings, answers, metrics, [(method, name) for method, name, _ in idle])
    yield from _scatter(family, rows, rows[quality.column].to_numpy(dtype=np.float64), metric)
    yield from _same_answers(rows, answers, family.metrics)
    yield from _fewer_items(rows, family.metrics)
    yield from _warned(rows, family.metrics)
    yield from _unlike_records(rows)
    yield from _unlike_definitions(rows, family.metrics)
    for one in gaps(family):
        yield "missing cells", one.sentence, len(one.missing), one.many


def _and(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def effective(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the method and, per part and layer kind, the bits of front, middle and end, such as ``3/16/16``.

    Bits carry the part's own group size if it has one: ``3g64``; units by number are a digest behind them.
    """
    columns = {"method": rows["method"].where(rows["method"] != "none", "")}
    for part in sorted((name[len(BITS) :] for name in rows if name.startswith(BITS)), key=part_order):
        bits = rows[f"{BITS}{part}"].fillna(FULL_PRECISION_BITS).map("{:g}".format)
        blocks, layers = rows[f"blocks.{part}"].fillna(""), rows[f"layers.{part}"].fillna("")
        own = rows[f"group.{part}"].fillna("") if f"group.{part}" in rows else pd.Series("", rows.index)
        stored = bits.where(own == "", bits + "g" + own)
        if part in END_PARTS:
            columns[part] = stored.where(bits != str(FULL_PRECISION_BITS), UNTOUCHED)
            continue
        own_selection = rows[f"{SELECTION}{part}"] if f"{SELECTION}{part}" in rows else pd.Series("", rows.index)
        for kind in KINDS:
            here = layers.str.contains(kind)
            told = [stored.where(here & blocks.str.contains(group), str(FULL_PRECISION_BITS)) for group in GROUPS]
            plain = told[0] + "/" + told[1] + "/" + told[2]
            columns[f"{part} {kind}"] = plain.where(~mixed(rows, part), own_selection.map(partial(_of_kind, kind)))
    return pd.DataFrame(columns)


def _of_kind(kind: str, selection: Any) -> str:
    """Return the setting of a layer kind in a selection that bits do not describe."""
    if not isinstance(selection, str) or not selection:
        return UNTOUCHED
    found = slots(selection)
    told = "/".join(
        _stored(found[group, kind]) if (group, kind) in found else str(FULL_PRECISION_BITS) for group in GROUPS
    )
    units = {unit: _stored(rule) for unit, rule in by_number(selection).items() if unit.endswith(f".{kind}")}
    return f"{told} {digest(units)[:8]}" if units else told


def _stored(rule: Mapping[str, Any]) -> str:
    size = f"g{rule['group_size']}" if rule.get("group_size") else ""
    return f"{rule['bits']}{size}" + (digest(rule["method"])[:4] if "method" in rule else "")


def tolerance(settings: pd.DataFrame, score: np.ndarray) -> float:
    """Return the spread of full-precision scores: smaller differences are noise. 0 with fewer than two such cells."""
    full = (settings.drop(columns="method") == UNTOUCHED).all(axis=1).to_numpy()
    return float(np.ptp(score[full])) if full.sum() > 1 else 0.0


def never_applied(settings: pd.DataFrame, score: np.ndarray) -> Iterator[tuple[str, int]]:
    """Yield each part and layer kind whose setting never changes the score, all else equal, and the number of comparisons.

    ``settings`` are those of a single method and full precision: two methods at the same bits score differently whatever
    the part. Cells within 10% of the score range above the minimum are left out: they have no quality left to lose.
    """
    allowed = tolerance(settings, score) + ROUNDING * float(np.abs(score).max())
    alive = score > score.min() + 0.1 * np.ptp(score)
    for name in settings.columns.drop("method"):
        others = [column for column in settings.columns if column not in (name, "method")]
        grouped = settings[alive].assign(score=score[alive]).groupby(others, sort=False)
        spread = grouped["score"].agg(np.ptp)[grouped[name].nunique() > 1]
        if len(spread) >= LEAST_COMPARISONS and (spread <= allowed).all():
            yield name, len(spread)


def _never_applied_in_any(
    family: Cells, rows: pd.DataFrame, settings: pd.DataFrame, metrics: Sequence[str]
) -> Iterator[tuple[str, str, int]]:
    """Yield method, part and layer kind, and comparisons of the findings of ``never_applied``.

    They hold for every metric: a change in any metric is a change.
    """
    scores = [Quality.of(family, name).score(rows) for name in metrics]
    for method in sorted(set(settings["method"]) - {""}):
        own = settings["method"].isin([method, ""]).to_numpy()
        found = [dict(never_applied(settings[own], score[own])) for score in scores]
        for name, compared in found[0].items():
            if all(name in other for other in found):
                yield method, name, compared


def _outputs(rows: pd.DataFrame, answers: Sequence[_Answers | None], metrics: Sequence[str]) -> Iterator[_Told]:
    """Report duplicated outputs, compared by predictions.

    Cells without predictions are compared by all scores, although different outputs can score alike.
    """
    scores = list(_rounded(rows[[f"{METRIC}{name}" for name in metrics]]).itertuples(index=False, name=None))
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
        told = f"{len(rows)} cells have {distinct} distinct outputs, {by}"
        yield "duplicated outputs", told, len(rows) - distinct, len(rows)


def _rounded(figures: pd.DataFrame) -> pd.DataFrame:
    """Round to 9 significant digits, so that values that differ only by rounding compare equal."""
    return figures.map(lambda value: float(f"{value:.9g}"))


def _ties(settings: pd.DataFrame, score: np.ndarray, metric: str) -> Iterator[_Told]:
    grouped = settings.assign(score=score).groupby(list(settings.columns), sort=False)["score"]
    repeated = grouped.size() > 1
    spread = grouped.agg(np.ptp)[repeated]
    apart = spread > ROUNDING * np.abs(score).max()
    if apart.any():
        touched = int(grouped.size()[repeated][apart].sum())
        yield (
            "do not tie",
            f"{touched} cells state an assignment that another has as well and score differently: "
            f"{metric} up to {spread.max():.4g} apart",
            touched,
            len(score),
        )


def _same_answers(rows: pd.DataFrame, answers: Sequence[_Answers | None], metrics: Sequence[str]) -> Iterator[_Told]:
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
        if one.empty >= NO_ANSWER * one.count:
            told.append(f"{assignment(row)} answers nothing to {one.empty} of {one.count}")
        elif _suspect(one, captions, usual if row["method"] != "none" else None):
            told.append(f"{assignment(row)} answers {one.common!r} to {one.often} of {one.count}")
    if told:
        yield (
            "identical answers",
            f"{len(told)} cells give many items one answer: {_listed(told)}",
            len(told),
            len(rows),
        )


def _suspect(one: _Answers, captions: bool, usual: float | None) -> bool:
    """Return true if too many answers are the same; ``usual`` is the share at full precision, ``None`` if unknown."""
    share = one.often / one.count
    if share == 1.0:
        return captions or usual is None or usual < 1.0
    if one.count < LEAST_ITEMS:
        return False
    if captions:
        return share >= SAME_ANSWER or (share >= SAME_CAPTION and usual is not None and share > 2 * usual)
    return usual is not None and share >= max(SAME_ANSWER, usual + MORE_THAN_FULL)


def _listed(told: Sequence[str]) -> str:
    return "; ".join(told[:SHOWN]) + (f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else "")


def _fewer_items(rows: pd.DataFrame, metrics: Iterable[str]) -> Iterator[_Told]:
    """Report cells measured on fewer items than the family's maximum or than ``task.limit``."""
    told: dict[str, str] = {}
    for name in metrics:
        if f"count.{name}" not in rows:
            continue
        counts = rows[f"count.{name}"]
        limits = rows["settings"].map(_limit) if "settings" in rows else pd.Series(np.nan, rows.index)
        asked = np.fmax(limits.to_numpy(dtype=np.float64), float(counts.max()))
        for (_, row), count, most in zip(rows.iterrows(), counts, asked, strict=True):
            if count < most:
                told.setdefault(row["id"], f"{assignment(row)}: {name} over {count:.0f} of {most:.0f} items")
    if "missing" in rows:
        for _, row in rows[rows["missing"].fillna(0) > 0].iterrows():
            told.setdefault(row["id"], f"{assignment(row)}: {row['missing']:.0f} items were left out")
    if told:
        listed = _listed(list(told.values()))
        yield (
            "fewer items",
            f"{len(told)} cells were measured on fewer items than asked: {listed}",
            len(told),
            len(rows),
        )


def _limit(settings: Any) -> float:
    told = json.loads(settings).get("task.limit") if isinstance(settings, str) else None
    return float(told) if isinstance(told, int | float) else np.nan


def _warned(rows: pd.DataFrame, metrics: Iterable[str]) -> Iterator[_Told]:
    told: dict[str, list[str]] = {}
    for name in metrics:
        if f"{WARNINGS}{name}" in rows:
            for _, row in rows[rows[f"{WARNINGS}{name}"].notna()].iterrows():
                texts = str(row[f"{WARNINGS}{name}"]).split("\n")
                told.setdefault(row["id"], []).append(f"{assignment(row)}, {name}: {', '.join(texts)}")
    if told:
        listed = _listed(["; ".join(texts) for texts in told.values()])
        yield "warnings", f"{len(told)} cells carry warnings: {listed}", len(told), len(rows)


def _unlike_records(rows: pd.DataFrame) -> Iterator[_Told]:
    """Report records of a family that differ in images, processor or generation settings; library versions may differ."""
    if "provenance" not in rows:
        return
    told = [json.loads(text) if isinstance(text, str) else {} for text in rows["provenance"]]
    for key in dict.fromkeys(key for one in told for key in one if key != "versions"):
        groups = Counter(json.dumps(one[key], sort_keys=True) for one in told if key in one)
        if len(groups) > 1:
            (_, most), *rest = groups.most_common()
            others = sum(number for _, number in rest)
            sentence = (
                f"{key} differs between the records: {most} cells have one, {others} others; they are not comparable"
            )
            yield "records differ", sentence, others, len(rows)


def _unlike_definitions(rows: pd.DataFrame, metrics: Iterable[str]) -> Iterator[_Told]:
    """Report metrics that cells of a family computed as different scripts do."""
    for name in metrics:
        counts = rows.get(f"{DEFINITION}{name}", pd.Series(dtype=object)).value_counts()
        if len(counts) > 1:
            told = "; ".join(f"{number} cells by {script}" for script, number in counts.items())
            others = int(counts.iloc[1:].sum())
            yield (
                "records differ",
                f"{name} is computed by different scripts: {told}; not comparable",
                others,
                len(rows),
            )


def _copies(cells: Cells) -> Iterator[tuple[str, _Told]]:
    """Yield the family and the finding of each cell whose copies differ in results or in their records."""
    if cells.copies.empty:
        return
    results = {cell: (metric, spread) for cell, metric, spread, _ in conflicts(cells.copies)}
    count = cells.copies["id"].nunique()
    for cell, rows in cells.copies[cells.copies["status"] == "done"].groupby("id", sort=False):
        unlike = list(_unlike_copies(rows))
        if cell not in results and not [key for key in unlike if not key.startswith("versions.")]:
            continue
        metric, spread = results.get(str(cell), ("", 0.0))
        apart = f"differs by {spread:.4g}" if np.isfinite(spread) else "has a value in some and none in others"
        told = [f"{metric} {apart}"] if metric else []
        told += [f"their records differ in {_and(unlike)}"] if unlike else []
        places = ", ".join(sorted(set(rows["where"])))
        row = rows.iloc[0]
        sentence = (
            f"cell {cell} ({assignment(row)}) has {len(rows)} records: {'; '.join(told)}; the newest is shown: {places}"
        )
        yield f"{row['model']}, {row['task']}", ("measured twice", sentence, 1, count)


def _unlike_copies(rows: pd.DataFrame) -> Iterator[str]:
    if "provenance" not in rows:
        return
    told = [json.loads(text) for text in rows["provenance"] if isinstance(text, str)]
    flat = [{**{key: value for key, value in one.items() if key != "versions"}, **_versions(one)} for one in told]
    for key in dict.fromkeys(key for one in flat for key in one):
        if len({json.dumps(one[key], sort_keys=True) for one in flat if key in one}) > 1:
            yield key


def _versions(told: dict[str, Any]) -> dict[str, Any]:
    return {f"versions.{name}": version for name, version in told.get("versions", {}).items()}


def _scatter(family: Cells, rows: pd.DataFrame, score: np.ndarray, metric: str) -> Iterator[_Told]:
    """Report methods whose cells at many bits should nearly tie, but scatter around a linear fit to the parts' bits."""
    parts = [f"{BITS}{part}" for part in family.parts]
    bits = rows[parts].fillna(FULL_PRECISION_BITS).to_numpy(dtype=np.float64)
    for method in sorted(set(rows["method"]) - {"none"}):
        near = ((rows["method"] == method) | (rows["method"] == "none")).to_numpy() & (bits >= MANY_BITS).all(axis=1)
        if near.sum() < LEAST_SCATTERED:
            continue
        design = np.column_stack([np.ones(int(near.sum())), bits[near]])
        rest = score[near] - design @ np.linalg.lstsq(design, score[near], rcond=None)[0]
        if rest.std() > SCATTER * abs(score[near].mean()) and rest.var() > (1 - EXPLAINED) * score[near].var():
            yield (
                "scatter",
                f"{int(near.sum())} cells of {method} have every part at {MANY_BITS} bits or more and should all but tie, yet "
                f"{metric} lies between {score[near].min():.4f} and {score[near].max():.4f} (standard deviation "
                f"{score[near].std(ddof=1):.4f}, {1 - rest.var() / score[near].var():.0%} of it explained by bits): "
                "smaller differences than these mean nothing",
                int(near.sum()),
                len(rows),
            )


def _unchanged(
    rows: pd.DataFrame,
    settings: pd.DataFrame,
    answers: Sequence[_Answers | None],
    metrics: Sequence[str],
    idle: Sequence[tuple[str, str]],
) -> Iterator[_Told]:
    """Report quantized cells with full precision's predictions, or with all of its metrics if predictions are missing.

    ``idle`` lists methods with the part and layer kind that they never apply.
    """
    untouched = (settings.drop(columns="method") == UNTOUCHED).all(axis=1).to_numpy()
    if not untouched.any():
        yield (
            "missing baseline",
            "no cell at full precision: whether quantization changed anything cannot be told",
            0,
            len(rows),
        )
        return
    scores = _rounded(rows[[f"{METRIC}{name}" for name in metrics]])
    of_full = set(scores[untouched].itertuples(index=False, name=None))
    same = ~untouched & np.array([figures in of_full for figures in scores.itertuples(index=False, name=None)])
    outputs = {one.output for one, full in zip(answers, untouched, strict=True) if full and one is not None}
    if outputs:
        # Equal scores from different answers are a coincidence.
        known = np.array([one is None or one.output in outputs for one in answers])
        same &= known
    if same.any():
        explained = ""
        if idle:
            applied = settings.copy()
            for method, name in idle:
                applied.loc[applied["method"] == method, name] = UNTOUCHED
            real = (applied.drop(columns="method") == UNTOUCHED).all(axis=1).to_numpy()
            names = " and ".join(dict.fromkeys(name for _, name in idle))
            explained = f"; {int((same & real).sum())} of them quantize nothing but {names}"
        yield (
            "changed nothing",
            f"{int(same.sum())} cells lower bits and have exactly the {_and(metrics)} of full precision{explained}",
            int(same.sum()),
            len(rows),
        )
