"""The table of cells that all analyses use: a row per cell, the same columns for every source.

| column | meaning |
|---|---|
| ``id``, ``source`` | the cell and its source |
| ``model``, ``task``, ``method`` | names; ``method`` is ``none`` at full precision, ``quantized elsewhere`` for a |
|  | checkpoint that was quantized before |
| ``bits.PART`` | bits of the part's quantized linears: 16 if none is quantized, missing if the model has no such part; |
|  | their mean, weighted by their weights, if they have several |
| ``selection.PART`` | as JSON what bits, block groups and layer kinds do not describe: several bit-widths or methods in a |
|  | part, or units by number; missing otherwise |
| ``blocks.PART``, ``layers.PART`` | the part's quantized block groups and layer kinds, joined by ``+``; empty if none, in |
|  | a part of a single tensor, and if ``selection.PART`` has them |
| ``group.PART`` | the part's own group size; empty if it uses the method's |
| ``weights.PART`` | number of quantized weights in the part |
| ``bpw_paper``, ``bpw_exact`` | bits per weight; exact only if known |
| ``loads_in`` | the loaders that take its export quantized, as ``transformers+vllm``, or ``dequantized``; missing if unknown |
| ``metric.NAME``, ``low.NAME``, ``high.NAME`` | the metric and its 95% interval over items, if there is one |
| ``definition.NAME`` | the published script that the metric equals, if several share its name |
| ``count.NAME``, ``warnings.NAME`` | the metric's number of items, and warnings about it, a line each |
| ``higher.NAME`` | true if higher is better; missing means true |
| ``answers.empty``, ``answers.identical`` | share of items without an answer, and with the ``answers.commonest`` one, which |
|  | would be ``answers.expected`` if all were right; missing in records that do not tell |
| ``main`` | the first metric that the cell was asked for; missing means the first of the source's columns |
| ``created``, ``where`` | time of measurement, and the file or URL of the record |
| ``setting`` | hash of the full model and task configuration; cells that differ in it are not compared |
| ``beside`` | hash of the same without the checkpoint: what is quantized elsewhere is compared with its full precision |
| ``settings`` | that configuration as JSON, by command-line names |
| ``overrides`` | the command line that measures the cell, without the bits of its parts |
| ``assigned`` | the rest of that command line: the bits of its parts, or a file for units by number |
| ``missing`` | number of items left out of the measurement |
| ``provenance`` | the record's notes on images, processor and libraries beside the configuration, as JSON |
| ``variant`` | the method's fields and its calibration, as JSON; if they differ within a method, ``method`` says how |
| ``url`` | the page of its W&B run, if known |

Other columns of a source stay under their own names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.cells.items import Book, Column, Summary, stacked
from analysis.cells.items import Items as Items  # Used with the cells elsewhere.
from analysis.loads_in import kept
from analysis.progress import counted
from mmq_sweeps.identity.assignment import (
    BLOCK_GROUPS,
    FULL_PRECISION_BITS,
    LAYER_KINDS,
    bits_label,
    part_order,
    rules_in,
)
from mmq_sweeps.identity.cell import QUANTIZED_ELSEWHERE
from mmq_sweeps.identity.end_parts import END_PARTS
from mmq_sweeps.identity.loads_in import parsed, shown
from mmq_sweeps.metrics.intervals import Owners
from mmq_sweeps.reporting.compare import ROUNDING, conflict_sentence, told_apart, with_variants
from mmq_sweeps.reporting.table import definition_note

BITS, METRIC, WARNINGS, DEFINITION = "bits.", "metric.", "warnings.", "definition."
SELECTION, LOADS_IN, BESIDE = "selection.", "loads_in", "beside"
ANSWERS = "answers."
MAIN = "main"
WHOLE = {"blocks": "front+middle+end", "layers": "attention+mlp"}
# Cells that agree in these columns and in ``setting``, which some sources lack, are comparable.
FAMILY = ("source", "model", "task")
VARIANT = "variant"

# Conflicts that get a note of their own.
CONFLICTS_TOLD = 5
# Above this many cells, items are not read: they would take minutes, and gigabytes of memory.
MOST_SCORED = 5000


def _no_items(row: pd.Series) -> Items | None:  # noqa: ARG001
    return None


@dataclass(frozen=True)
class History:
    """The provenance of cells: ``commands`` of sweeps, sentences on cells still ``lacking``, library ``versions``."""

    commands: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cells:
    """Cells from any source: ``frame`` is the table above, ``notes`` are sentences on oddities found while reading.

    ``items(row)`` reads a row's per-item predictions and scores, ``None`` if its source has none. ``history()`` is read
    lazily. ``copies`` has every row of the cells that several sources share, of which ``frame`` has the newest finished.
    ``book`` keeps what was made of items that were read.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...] = ()
    items: Callable[[pd.Series], Items | None] = field(default=_no_items, compare=False)
    history: Callable[[], History] = field(default=History, compare=False)
    copies: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    book: Book = field(default_factory=Book, compare=False, repr=False)

    @property
    def parts(self) -> list[str]:
        """Parts of any cell's model, vision first."""
        named = [column.removeprefix(BITS) for column in self.frame.columns if column.startswith(BITS)]
        return sorted(named, key=part_order)

    @property
    def metrics(self) -> list[str]:
        """Metrics of any cell; the one that most cells have as their main one is first."""
        named = [column.removeprefix(METRIC) for column in self.frame.columns if column.startswith(METRIC)]
        # The order of columns depends on the cells of other families that the same source holds.
        asked = self.frame[MAIN].dropna().mode() if MAIN in self.frame else pd.Series(dtype=object)
        return sorted(named, key=lambda name: asked.empty or name != asked.iloc[0])

    def of(self, rows: pd.DataFrame) -> Cells:
        """Return the same cells restricted to ``rows``, without columns that are now empty."""
        return replace(self, frame=rows.dropna(axis=1, how="all").reset_index(drop=True))

    def loading_in(self, loader: str) -> Cells:
        """Return the cells that ``loader`` takes quantized, with a note on the others; see ``analysis/loads_in.py``."""
        finished = (self.frame["status"] == "done") & (self.frame["method"] != "none")
        known = [loaders_of(row) for row in self.frame.reindex(columns=[LOADS_IN]).to_dict("records")]
        mask, told = kept(loader, finished.tolist(), known)
        ids = self.frame["id"][mask]
        copies = self.copies if self.copies.empty else self.copies[self.copies["id"].isin(ids)]
        return replace(self.of(self.frame[mask]), notes=(*self.notes, told), copies=copies)

    def families(self) -> list[tuple[str, Cells]]:
        """Return ``(title, cells)`` per group of comparable cells.

        The title names model and task; the source if there are several; the settings that differ if groups would share it.
        """
        several = self.frame["source"].nunique() > 1
        settings = _joining(self.frame)
        found = []
        for (source, model, task), rows in self.frame.groupby(list(FAMILY), sort=True):
            title = f"{model}, {task}" + (f" ({source})" if several else "")
            alike = [rows for _, rows in rows.groupby(settings.loc[rows.index], sort=True)]
            told = told_apart([_settings(rows) for rows in alike])
            titled = [
                (title + (f" [{text}]" if len(alike) > 1 else ""), self.of(rows))
                for text, rows in zip(told, alike, strict=True)
            ]
            found += sorted(titled, key=lambda one: one[0])
        return found

    def higher_is_better(self, metric: str) -> bool:
        """Return true if higher values of ``metric`` are better. Raises ValueError if cells disagree; a family never does."""
        told = self.frame.get(f"higher.{metric}")
        said = set() if told is None else {bool(value) for value in told.dropna()}
        if len(said) > 1:
            raise ValueError(f"cells disagree on whether more of {metric} is better: compare within one family")
        return said != {False}

    def scores(self, rows: pd.DataFrame, metric: str) -> np.ndarray | None:
        """Return scores ``[cells, items]`` of ``rows``, with items in the same order for all.

        ``None`` unless all rows have the same items, or if there are more than ``MOST_SCORED`` rows.
        """
        if len(rows) > MOST_SCORED:
            return None
        found: list[Column | None] = []
        for scores in self.summaries(rows, self.book.scores):
            found.append(scores.get(metric))
            if found[-1] is None:
                return None
        return stacked(found)

    def owners(self, rows: pd.DataFrame, metric: str) -> Owners:
        """Return which items of ``scores`` are drawn together; None if every item is drawn by itself."""
        for scores in self.summaries(rows.iloc[:1], self.book.scores):
            first: Column | None = scores.get(metric)
            return None if first is None else first.owners
        return None

    def summaries(self, rows: pd.DataFrame, summary: Summary) -> Iterator[Any]:
        """Yield what ``summary`` makes of the items of each row, or of None; the items of a row are read once."""
        where = rows["where"] if "where" in rows else [""] * len(rows)
        named = zip(where, rows["id"], strict=True)
        for place, cell in enumerate(counted(named, "items of cells", len(rows))):
            yield self.book.get(cell, lambda place=place: self.items(rows.iloc[place]), summary)  # type: ignore[misc]

    def by_item(self) -> pd.DataFrame:
        """Return a row per cell and item: ``cell``, ``item``, ``prediction`` and ``metric.NAME``; empty without items."""
        rows = [
            {
                "cell": row["id"],
                "item": item["id"],
                "prediction": item.get("prediction"),
                **{f"{METRIC}{name}": value for name, value in item.get("scores", {}).items()},
            }
            for _, row in self.frame.iterrows()
            for item in self.items(row) or ()
        ]
        return pd.DataFrame(rows)


def quantized_elsewhere(rows: pd.DataFrame) -> pd.Series:
    """Return a mask of the cells whose checkpoint was quantized before."""
    return rows["method"].str.startswith(QUANTIZED_ELSEWHERE)


def _joining(frame: pd.DataFrame) -> pd.Series:
    """Return each row's ``setting``; what is quantized elsewhere has that of the one full-precision model beside it."""
    settings = frame.get("setting", pd.Series("", frame.index)).fillna("")
    elsewhere = quantized_elsewhere(frame)
    if BESIDE not in frame or not elsewhere.any():
        return settings
    own = settings[~elsewhere].groupby([frame.loc[~elsewhere, name] for name in (*FAMILY, BESIDE)])
    only = {key: found.iloc[0] for key, found in own if found.nunique() == 1}
    keys = frame.loc[elsewhere, [*FAMILY, BESIDE]].itertuples(index=False, name=None)
    settings = settings.copy()
    settings.loc[elsewhere] = [only.get(key, setting) for key, setting in zip(keys, settings[elsewhere], strict=True)]
    return settings


def _settings(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the settings that all ``rows`` share; empty if their source does not report them."""
    if not (elsewhere := quantized_elsewhere(rows)).all():
        rows = rows[~elsewhere]  # Those have another checkpoint.
    told = rows["settings"].dropna() if "settings" in rows else pd.Series(dtype=object)
    return {} if told.empty else dict(json.loads(told.iloc[0]))


def assignment(row: pd.Series) -> str:
    """Describe a cell in words, with own group sizes and partial selections.

    Examples: ``gptq vision 3 connector 4 g64 language 8 (front mlp)``, ``gptq vision 4 language attention 4, mlp 3``.
    """
    told = []
    for column in sorted(
        (name for name in row.index if name.startswith(BITS)), key=lambda c: part_order(c[len(BITS) :])
    ):
        part, bits = column.removeprefix(BITS), row[column]
        if selection := _text(row.get(f"{SELECTION}{part}")):
            told.append(f"{part} {bits_label(json.loads(selection))}")
            continue
        if pd.isna(bits) or bits == FULL_PRECISION_BITS:
            continue
        told.append(
            choice(part, _plain(bits), *(_text(row.get(f"{what}.{part}")) for what in ("blocks", "layers", "group")))
        )
    if not told and str(row["method"]).startswith(QUANTIZED_ELSEWHERE):
        return str(row["method"])
    return f"{row['method']} {' '.join(told)}" if told else "full precision"


def _plain(bits: float) -> float:
    """Return whole bits as an int, and the mean of several widths with two digits."""
    return int(bits) if bits == int(bits) else round(bits, 2)


def loaders_of(row: Mapping[str, Any] | pd.Series) -> list[str] | None:
    """Return the loaders of a cell; None if they are not known."""
    text = _text(row.get(LOADS_IN))
    return parsed(text) if text else None


def loaders_shown(row: Mapping[str, Any] | pd.Series) -> str:
    """Format the loaders of a cell for a table; empty if they are not known."""
    return shown(loaders_of(row) or ())


def choice(part: str, bits: float, blocks: str, layers: str, group: str = "") -> str:
    """Describe a part: ``connector 3``, or with its own group size and partial selection ``connector 3 g64 (front mlp)``."""
    narrowed = [text for text, name in ((blocks, "blocks"), (layers, "layers")) if text not in ("", WHOLE[name])]
    own = f" g{group}" if group.isdigit() else f" {group}" if group else ""
    return f"{part} {bits}{own}" + (f" ({' '.join(narrowed)})" if narrowed else "")


def mixed(rows: pd.DataFrame, part: str) -> pd.Series:
    """Return a mask of the cells that give units of ``part`` several settings, or select them by number."""
    column = f"{SELECTION}{part}"
    return rows[column].fillna("") != "" if column in rows else pd.Series(data=False, index=rows.index)


def slots(selection: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the rule of every block group and layer kind that a selection quantizes as a whole."""
    rules = rules_in(json.loads(selection)) if selection else []
    return {
        (group, kind): dict(rule)
        for rule in rules
        if "units" not in rule
        for group in rule.get("blocks", BLOCK_GROUPS)
        for kind in rule.get("layers", LAYER_KINDS)
    }


def by_number(selection: str) -> dict[str, dict[str, Any]]:
    """Return the rule of every unit that a selection names by number."""
    rules = rules_in(json.loads(selection)) if selection else []
    return {unit: dict(rule) for rule in rules for unit in rule.get("units", ())}


def mixes_methods(method: str) -> bool:
    """Return true for the name of several methods: ``rtn (vision), gptq (connector, language)``."""
    return "), " in method


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def whole(rows: pd.DataFrame, parts: Sequence[str]) -> pd.Series:
    """Return a mask of the cells that quantize each of ``parts`` as a whole in one width or not at all, in usual groups.

    The usual group size is the most common of the part within the method. Views that identify a cell by the bits of its
    parts use only these cells: bits do not describe a partial selection, several widths or another group size.
    """
    kept = pd.Series(data=True, index=rows.index)
    for part in parts:
        low = rows[f"{BITS}{part}"] < FULL_PRECISION_BITS
        kept &= ~mixed(rows, part)
        for what, everything in WHOLE.items():
            if f"{what}.{part}" in rows:
                kept &= ~low | (rows[f"{what}.{part}"] == everything) | (part in END_PARTS)
        if f"group.{part}" in rows:
            for _, of_method in rows[low].groupby("method"):
                sizes = of_method[f"group.{part}"].fillna("")
                # The method's own size, the empty string, sorts first and wins a tie.
                common = sizes.value_counts().sort_index().idxmax()
                kept.loc[of_method.index[sizes != common]] = False
    return kept


def warned(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """Yield a sentence on how many cells carry a warning about ``metric``, if any do."""
    number = int(rows[f"{WARNINGS}{metric}"].notna().sum()) if f"{WARNINGS}{metric}" in rows else 0
    if number:
        yield f"{number} of {len(rows)} cells carry a warning about {metric}, which the audit tells"


def defined(rows: pd.DataFrame, metric: str) -> Iterator[str]:
    """Yield a sentence on the script that ``metric`` equals, or that cells differ in it, if their records say it."""
    if f"{DEFINITION}{metric}" in rows:
        yield from definition_note(metric, rows[f"{DEFINITION}{metric}"].dropna())


def left_out(rows: pd.DataFrame, parts: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on the cells that ``whole`` leaves out, if there are any."""
    several = pd.Series(data=False, index=rows.index)
    for part in parts:
        several |= mixed(rows, part)
    elsewhere = quantized_elsewhere(rows)
    number = int((~whole(rows, parts) & ~several & ~elsewhere).sum())
    if elsewhere.any():
        yield f"{int(elsewhere.sum())} of {len(rows)} cells were quantized elsewhere and are left out here"
    if number:
        yield (
            f"{number} of {len(rows)} cells quantize only some blocks or layers of a part, or give a part a group size of "
            "its own, and are left out here"
        )
    if several.any():
        yield (
            f"{int(several.sum())} of {len(rows)} cells give the units of a part several bit-widths, or choose them by "
            "number, and are left out here"
        )


def other_methods(family: pd.DataFrame, method: str) -> Iterator[str]:
    """Yield a sentence on the cells that mix ``method`` with others, which are no cells of it, if there are any."""
    if mixes_methods(method):
        return
    named = re.compile(rf"(^|, ){re.escape(method.split(' ')[0])} \(")
    number = sum(mixes_methods(name) and named.search(name) is not None for name in family["method"])
    if number:
        yield f"{number} cells mix {method} with another method and are left out here"


def joined(tables: Sequence[Cells]) -> Cells:
    """Concatenate ``tables`` and deduplicate their cells; a cell with conflicting results gets a note."""
    # The last of equal cells wins: put tables with items last.
    tables = sorted(tables, key=lambda table: table.items is not _no_items)
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    notes = [note for table in tables for note in table.notes]
    by_source: dict[str, Callable[[pd.Series], Items | None]] = {}
    for table in tables:
        by_source |= dict.fromkeys(table.frame["where"], table.items)
    kept, conflicts = _deduplicated(frame)
    copies = frame[frame.duplicated("id", keep=False)].reset_index(drop=True)
    return Cells(
        _with_end_parts(_with_variants_named(kept)),
        (*notes, *conflicts),
        lambda row: by_source[row["where"]](row),
        lambda: _together([table.history() for table in tables]),
        copies,
    )


def _together(histories: Sequence[History]) -> History:
    return History(
        *(
            tuple(dict.fromkeys(line for one in histories for line in getattr(one, what.name)))
            for what in fields(History)
        )
    )


def _with_end_parts(frame: pd.DataFrame) -> pd.DataFrame:
    """Say of every cell that embeddings and head have full precision, in families where a cell quantizes them."""
    groups = [name for name in (*FAMILY, "setting") if name in frame]
    for part in END_PARTS:
        if f"{BITS}{part}" not in frame:
            continue
        here = frame[f"{BITS}{part}"].notna().groupby([frame[name] for name in groups], dropna=False).transform("any")
        untold = here & frame[f"{BITS}{part}"].isna()
        frame = frame.copy()
        for column, value in end_part(part, FULL_PRECISION_BITS).items():
            frame.loc[untold, column] = value
        frame.loc[untold, f"weights.{part}"] = 0
    return frame


def end_part(part: str, bits: int) -> dict[str, Any]:
    """Return the columns of a part of a single tensor, which has no blocks and layer kinds."""
    return {f"{BITS}{part}": bits, **{f"{name}.{part}": "" for name in ("blocks", "layers", "group")}}


def _with_variants_named(frame: pd.DataFrame) -> pd.DataFrame:
    """Split a method whose cells differ in its fields into several: ``gptq method.group_size=64``."""
    if VARIANT not in frame:
        return frame
    grouped = frame[frame[VARIANT].notna() & (frame["method"] != "none")].groupby(["model", "task", "method"])
    named = frame["method"].copy()
    for _, rows in grouped:
        if rows[VARIANT].nunique() > 1:
            told = {text: json.loads(text) for text in rows[VARIANT].unique()}
            names = dict(
                zip(told, with_variants([(rows["method"].iloc[0], one) for one in told.values()]), strict=True)
            )
            named.loc[rows.index] = rows[VARIANT].map(names)
    return frame.assign(method=named)


def conflicts(copies: pd.DataFrame) -> Iterator[tuple[str, str, float, pd.DataFrame]]:
    """Yield cells measured with different results: id, the metric that differs most, the difference, the rows.

    The difference is infinite if only some have a value.
    """
    figures = [column for column in copies.columns if column.startswith(METRIC)]
    if copies.empty or not figures:
        return
    for cell, rows in copies[copies["status"] == "done"].groupby("id", sort=False):
        values = rows[figures]
        spread = values.max() - values.min()
        spread = spread.mask(values.isna().any() & values.notna().any(), np.inf)
        # Tolerate differences from formatting or summation order.
        real = spread[spread > ROUNDING * values.abs().max()]
        if len(real):
            name = str(real.idxmax())
            yield str(cell), name.removeprefix(METRIC), float(real[name]), rows


def _deduplicated(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    found = list(conflicts(frame[frame.duplicated("id", keep=False)]))
    notes = [
        conflict_sentence(cell, len(rows), metric, spread, rows["where"].tolist())
        for cell, metric, spread, rows in found[:CONFLICTS_TOLD]
    ]
    if len(found) > CONFLICTS_TOLD:
        notes.append(f"{len(found) - CONFLICTS_TOLD} more cells were measured several times with different results")
    # A finished record wins over a failed one, even if older.
    order = [name for name in ("done", "created") if name == "done" or name in frame]
    newest = frame.assign(done=frame["status"] == "done").sort_values(order, kind="stable", na_position="first")
    newest = newest.drop(columns="done")
    kept = newest.drop_duplicates("id", keep="last").sort_index().reset_index(drop=True)
    if "url" in kept:
        known = newest.dropna(subset="url").drop_duplicates("id", keep="last").set_index("id")["url"]
        kept["url"] = kept["url"].fillna(kept["id"].map(known))
    return kept, notes
