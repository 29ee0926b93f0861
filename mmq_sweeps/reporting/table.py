"""Convert the records of a sweep to rows (for programs) and to tables (for people)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity import loads_in
from mmq_sweeps.identity.assignment import bits_label, part_order
from mmq_sweeps.identity.cell import QUANTIZED_ELSEWHERE, is_quantized_elsewhere
from mmq_sweeps.identity.end_parts import EMBEDDINGS, END_PARTS
from mmq_sweeps.reporting.answers import alike_columns
from mmq_sweeps.reporting.columns import Column, drawn, fitted
from mmq_sweeps.reporting.compare import (
    Items,
    all_differences,
    families_of,
    settings,
    told_apart,
    variant,
    with_variants,
)
from mmq_sweeps.reporting.counts import counted
from mmq_sweeps.store.record import Record

# Without a terminal, rich would assume 80 columns.
FILE_WIDTH = 200
SIGNIFICANT, WARNED = "*", "!"
# Cells named with a warning that they share.
SHARED_SHOWN = 3
FOOTNOTE = f"{SIGNIFICANT} differs from full precision (paired 95% bootstrap interval without zero)"
# Metrics that are the accuracy of a benchmark, by its name.
ACCURATE = ("gqa", "vqa", "textvqa", "vizwiz", "choice", "mmmu", "pope", "mme")
METRIC_LABELS = {
    "cider": "CIDEr",
    "cider_d": "CIDEr-D",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "spice": "SPICE",
    **{f"bleu_{length}": f"BLEU-{length}" for length in (1, 2, 3, 4)},
    **{f"{benchmark}_accuracy": "acc." for benchmark in ACCURATE},
    "vqa_accuracy_2021": "acc. 2021",
    "anls": "ANLS",
    "relaxed_accuracy": "relaxed acc.",
    "choice_unparsed": "unparsed",
    "mmbench": "circular acc.",
    "ocrbench": "OCRBench",
    "pope_precision": "precision",
    "pope_recall": "recall",
    "pope_f1": "F1",
    "pope_yes_ratio": "yes",
    "mme": "MME",
    "mme_perception": "perception",
    "mme_cognition": "cognition",
    "mme_accuracy_plus": "acc.+",
    "ece": "ECE",
    "aurc": "AURC",
    "recall_mean": "R@mean",
    **{
        f"{prefix}recall_at_{rank}": f"{shown}@{rank}"
        for prefix, shown in (("", "R"), ("text_", "TR"), ("image_", "IR"))
        for rank in (1, 5, 10)
    },
}


def metric_label(metric: str) -> str:
    """Return the name by which people know a metric: ``CIDEr``, and ``log likelihood`` of one without a name of its own."""
    return METRIC_LABELS.get(metric, metric.replace("_", " "))


# With more metrics than this, only the first has a column for its difference from full precision.
COMPARED = 3
# Least digits of an id that a table shows.
SHORTEST_ID = 4
# Stands for method and bits if these have no room in columns of their own.
JOINED, LEAST_JOINED = "cell", 32


def rows(records: Iterable[Record], items: Callable[[str], Items]) -> list[dict[str, Any]]:
    """Return a row per record: by model, task and family, then from the most bits per weight to the fewest; failures last.

    * ``family``: model and task, plus any settings that distinguish families of the same model and task. Only cells of the
      same family are comparable.
    * ``bits``: by quantized part, for people; ``parts``: the selections themselves.
    * ``label``: method, plus the fields in which cells of that method differ.
    * ``loads_in``: the loaders that take the cell's export quantized, if they are known.
    * ``answers``: how alike they are, if the record says it (``reporting/answers.py``).
    * ``metrics``: value, interval, ``higher_is_better``, and ``definition`` and ``warnings`` if there are any; plus
      ``difference`` from full precision, with a paired interval, if ``records`` include the family's baseline.

    ``items`` loads the items of a cell by its id.
    """
    records = list(records)
    families, labels = _families(records), _labels(records)
    baselines = {families[record.id]: record for record in records if record.baseline and record.done}
    differing: dict[str, dict[str, dict[str, Any]]] = {}
    for family, baseline in baselines.items():
        others = [record for record in records if families[record.id] == family and record.done]
        others = [record for record in others if record is not baseline]
        if others:
            differing |= all_differences(baseline, items(baseline.id), others, items)
    found = [
        {"family": families[record.id], "label": labels[record.id], **_row(record, differing.get(record.id, {}))}
        for record in records
    ]
    return sorted(found, key=_order)


def _families(records: Sequence[Record]) -> dict[str, str]:
    """Map each record's id to the title of its family."""
    keys = families_of({record.id: record.cell for record in records})
    # Represented by a finished cell if possible, since a failed one has no metrics, and not by another's checkpoint.
    of_key: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: (is_quantized_elsewhere(record.cell), not record.done)):
        of_key.setdefault(keys[record.id], record)
    titles: dict[str, str] = {}
    oldest_first = sorted(of_key, key=lambda key: of_key[key].created)
    for (model, task), alike in grouped(oldest_first, lambda key: _model_and_task(of_key[key])).items():
        told = told_apart([settings(of_key[key].cell, of_key[key].metrics) for key in alike])
        titles |= {
            key: f"{model}, {task}" + (f" [{text}]" if len(alike) > 1 else "")
            for key, text in zip(alike, told, strict=True)
        }
    return {cell_id: titles[key] for cell_id, key in keys.items()}


def _model_and_task(record: Record) -> tuple[str, str]:
    return record.names["model"], record.names["task"]


def _labels(records: Sequence[Record]) -> dict[str, str]:
    """Map each record's id to its method, plus the fields in which methods of the same model and task differ."""
    found = {record.id: record.names["method"] for record in records}
    for alike in grouped((record for record in records if not record.baseline), _model_and_task).values():
        labels = with_variants([(record.names["method"], variant(record.cell)) for record in alike])
        found |= {record.id: label for record, label in zip(alike, labels, strict=True)}
    return found


def _row(record: Record, differing: dict[str, dict[str, Any]]) -> dict[str, Any]:
    parts = record.cell["parts"]
    row: dict[str, Any] = {
        "id": record.id,
        "status": record.status,
        **record.names,
        "bits": _bits(record),
        "parts": parts,
    }
    if not record.done:
        return {**row, "error": {key: (record.error or {}).get(key, "") for key in ("class", "message")}}
    metrics = {
        name: {
            "value": metric["value"],
            "interval": metric["interval"],
            "higher_is_better": metric.get("higher_is_better", True),
            **({"definition": metric["definition"]} if metric.get("definition") else {}),
            **({"warnings": list(metric["warnings"])} if metric.get("warnings") else {}),
        }
        for name, metric in record.metrics.items()
    }
    for name, difference in differing.items():
        metrics[name] |= difference
    total = record.size["total"]
    return {
        **row,
        "metrics": metrics,
        "bpw_paper": total["bpw_paper"],
        "bpw_exact": total["bpw_exact"],
        "size_bytes": total["size_bytes"],
        **({"loads_in": record.loads_in} if record.loads_in else {}),
        **({"answers": record.answers} if record.answers else {}),
        "seconds": sum(record.seconds.values()),
    }


def _bits(record: Record) -> dict[str, str]:
    """Return the bits of each quantized part for people; if it was quantized elsewhere, as its files hold them."""
    parts = record.cell["parts"]
    labels = {part: bits_label(selection) for part, selection in parts.items()}
    if is_quantized_elsewhere(record.cell):
        stored = (record.notes.get("stored") or {}).get("bits", {})
        labels = {part: text for part, text in stored.items() if part in (*record.cell["model"]["parts"], *END_PARTS)}
    return {part: labels[part] for part in sorted(labels, key=part_order)}


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    bpw = -row["bpw_paper"] if "bpw_paper" in row else math.inf
    return row["model"], row["task"], row["family"], bpw, row["label"], sorted(row["bits"].items())


def show(table_rows: list[dict[str, Any]], console: Console) -> None:
    """Print a table per family of the finished rows, each followed by its notes, its failures and the columns without room."""
    finished = by_family(table_rows)
    titles = dict.fromkeys(row["family"] for row in table_rows)
    ids = _short_ids(table_rows)
    for number, family in enumerate(titles):
        if len(titles) > 1:
            line(console, ("\n" if number else "") + family)
        below = list(failures(row for row in table_rows if row["family"] == family))
        if family in finished:
            columns, dropped = fitted(_columns(finished[family], ids), _joined(finished[family]), console.width)
            console.print(drawn(columns, console.width), crop=False)
            below = [*notes(finished[family]), *below, *_dropped(dropped)]
        for text in below:
            line(console, text)


def _short_ids(table_rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Map each row's id to its first digits, as many as tell all rows apart."""
    ids = {row["id"] for row in table_rows}
    longest = max(map(len, ids), default=0)
    digits = next(
        (size for size in range(SHORTEST_ID, longest) if len({one[:size] for one in ids}) == len(ids)), longest
    )
    return {one: one[:digits] for one in ids}


def by_family(table_rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group the finished rows by the title of their family."""
    return grouped((row for row in table_rows if row["status"] == "done"), lambda row: str(row["family"]))


def failures(table_rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a sentence for each class of error with the cells that failed with it."""
    failed = (row for row in table_rows if row["status"] != "done")
    for name, alike in grouped(failed, lambda row: str(row["error"]["class"])).items():
        yield f"failed with {name}: {_some([title(row) for row in alike])}"


def notes(family: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the notes below a family's table: meaning of marks and metrics, warnings, missing comparisons."""
    metrics = [(row, name, metric) for row in family for name, metric in row["metrics"].items()]
    if any(metric.get("significant") for _, _, metric in metrics):
        yield FOOTNOTE
    for name in dict.fromkeys(name for _, name, metric in metrics if not metric["higher_is_better"]):
        yield f"{metric_label(name)}: lower is better"
    for name in dict.fromkeys(name for _, name, _ in metrics):
        yield from definition_note(name, [metric.get("definition") for _, other, metric in metrics if other == name])
    yield from warning_notes(metrics)
    if any(
        EMBEDDINGS in row["bits"] and loads_in.DEQUANTIZED not in row.get("loads_in", loads_in.CHOICES)
        for row in family
    ):
        yield f"loads in: {loads_in.DENSE_EMBEDDINGS}"
    yield from _not_compared(metrics)


def warning_notes(metrics: Iterable[tuple[dict[str, Any], str, dict[str, Any]]]) -> Iterator[str]:
    """Yield each warning with the cells and metrics that it is about, given ``(row, metric's name, metric)``.

    A sentence that several cells share is said once.
    """
    warned = [(text, row, name) for row, name, metric in metrics for text in metric.get("warnings", ())]
    for text, titles, labels in _shared(warned):
        yield f"{WARNED} {titles}, {labels}: {text}"


def _not_compared(metrics: Iterable[tuple[dict[str, Any], str, dict[str, Any]]]) -> Iterator[str]:
    """Yield why cells are not compared with full precision, each reason once."""
    reasons = [
        (metric["not_compared"].removeprefix(f"{name}: "), row, name)
        for row, name, metric in metrics
        if "not_compared" in metric
    ]
    for text, titles, labels in _shared(reasons):
        yield f"not compared with full precision: {titles}, {labels}: {text}"


def _shared(sentences: Iterable[tuple[str, dict[str, Any], str]]) -> Iterator[tuple[str, str, str]]:
    """Yield each sentence with the cells and the metrics that it is about, given ``(sentence, row, metric's name)``."""
    about: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for text, row, name in sentences:
        cells, labels = about.setdefault(text, ({}, {}))
        cells[title(row)] = None
        labels[metric_label(name)] = None
    for text, (cells, labels) in about.items():
        yield text, _some([*cells]), ", ".join(labels)


def _some(titles: Sequence[str]) -> str:
    """Name the first of ``titles`` and count the rest."""
    more = f" and {len(titles) - SHARED_SHOWN} more" if len(titles) > SHARED_SHOWN else ""
    return "; ".join(titles[:SHARED_SHOWN]) + more


def definition_note(metric: str, definitions: Iterable[str | None]) -> Iterator[str]:
    """Yield the script that ``metric`` equals, given each cell's ``definition``; a warning if cells differ in it."""
    counts = Counter(definition for definition in definitions if definition)
    label = metric_label(metric)
    if len(counts) == 1:
        yield f"{label}: {next(iter(counts))}"
    elif counts:
        told = "; ".join(f"{definition} ({counted(number, 'cell')})" for definition, number in counts.most_common())
        yield f"{WARNED} {label}: cells differ in the script and are not comparable: {told}"


def title(row: dict[str, Any]) -> str:
    """Return the title of a row, as in ``gptq vision 3 language 4``."""
    bits = " ".join(f"{part} {width}" for part, width in row["bits"].items())
    if not bits and row["method"] == QUANTIZED_ELSEWHERE:
        return str(row["label"])
    return f"{row['label']} {bits}" if bits else "full precision"


def line(console: Console, text: str) -> None:
    """Print ``text`` literally: users' names may contain text that rich would take for markup."""
    console.print(Text(text), soft_wrap=True)


def plain_table(*columns: str) -> Table:
    """Create a table without frame; a heading that opens with ``>`` is of numbers, aligned right.

    On a narrow terminal the widest columns break first, and nothing is left out. Pass cells as ``Text``, so that nothing is
    taken for markup.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        heading = Text(name.removeprefix(">"))
        table.add_column(heading, justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _columns(family: Sequence[dict[str, Any]], ids: Mapping[str, str]) -> list[Column]:
    """Return the columns of a table: method, bits per quantized part, metrics, bits per weight, size, id, time and loaders.

    Method, bits, the first metric and the paper's bits per weight always stay (rank 0).
    """
    parts = sorted({part for row in family for part in row["bits"]}, key=part_order)
    metrics = list(dict.fromkeys(name for row in family for name in row["metrics"]))
    columns = [Column("method", "method", [row["label"] for row in family], 0, "left", wrap=True, joins=True)]
    columns += [Column(part, part, [row["bits"].get(part, "16") for row in family], 0, joins=True) for part in parts]
    for place, name in enumerate(metrics):
        label = metric_label(name)
        columns.append(Column(label, label, _figures(family, name), 2 * place))
        if len(metrics) <= COMPARED or not place:
            told = [_difference(row["metrics"].get(name)) for row in family]
            if any(told):
                columns.append(Column(f"{label} vs full", "vs\nfull", told, 2 * place + 1))
    last = 2 * len(metrics) + 1
    columns += [Column(name, name, shares, last) for name, shares in alike_columns(family)]
    columns += [
        Column("bpw paper", "bpw\npaper", [f"{row['bpw_paper']:.2f}" for row in family], 0),
        Column("bpw exact", "bpw\nexact", [f"{row['bpw_exact']:.2f}" for row in family], last),
        Column("size", "size\nMB", [f"{row['size_bytes'] / 1e6:.2f}" for row in family], last + 1),
        Column("id", "id", [ids[row["id"]] for row in family], last + 2, "left"),
        Column("time", "time\ns", [f"{row['seconds']:.1f}" for row in family], last + 3),
    ]
    if any("loads_in" in row for row in family):
        loaders = [loads_in.shown(row.get("loads_in", ())) for row in family]
        columns.append(Column("loads in", "loads in", loaders, last + 4, "left"))
    return columns


def _joined(family: Sequence[dict[str, Any]]) -> Column:
    return Column(JOINED, JOINED, [title(row) for row in family], 0, "left", wrap=True, least=LEAST_JOINED)


def _figures(family: Sequence[dict[str, Any]], name: str) -> list[str]:
    metrics = [row["metrics"].get(name) for row in family]
    # If any value has a mark, a blank aligns the digits of the others.
    blank = " " if any(metric and metric.get("warnings") for metric in metrics) else ""
    return [
        "" if metric is None else _figure(metric) + (WARNED if metric.get("warnings") else blank) for metric in metrics
    ]


def _figure(metric: dict[str, Any]) -> str:
    return "none" if metric["value"] is None else f"{metric['value']:.4f}"


def _difference(metric: dict[str, Any] | None) -> str:
    if metric is None or "difference" not in metric:
        return ""
    return f"{metric['difference']:+.4f}{SIGNIFICANT if metric['significant'] else ' '}"


def _dropped(names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"no room here for {', '.join(names)}: widen the terminal, write to a file, or ask for JSON"


def output_console() -> Console:
    """Create a console for standard output: colours on a terminal only, 200 columns wide elsewhere, no markup."""
    console = _Output(markup=False, emoji=False)
    return console if console.is_terminal else _Output(width=FILE_WIDTH, markup=False, emoji=False)


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """Leave a closed pipe to ``output_may_close``; rich would exit with 1, as if a cell had failed."""
        raise  # Rich calls this while it handles the BrokenPipeError
