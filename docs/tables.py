"""Update the columns of docs/tables/*.csv that the code knows: ``python docs/tables.py``. The other columns are kept.

A row that is missing is added with empty cells to be filled in; a row without its task, metric, model or reader is dropped.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
CONF = DOCS.parent / "conf"
TABLES = DOCS / "tables"
Row = dict[str, str]
# A figure that is best in the middle, although a metric has to name a direction.
NEITHER = ("pope_yes_ratio",)


def tasks() -> Iterator[Row]:
    """Yield what each yaml of conf/task says of its data, prompt and metrics."""
    for path in sorted((CONF / "task").glob("*.yaml")):
        task = yaml.safe_load(path.read_text())
        data = task["data"]
        asked = [task[key] for key in ("instruction", "open_instruction") if task.get(key)]
        yield {
            "task": path.stem,
            "dataset on the Hub": "/".join(filter(None, (data.get("path"), data.get("name")))),
            "evaluated split": task["split"],
            "calibration split": task["calibration_split"],
            "instruction": "; without options: ".join(text.replace("\n", "⏎") for text in asked),
            "metrics": ", ".join(task["metrics"]),
        }


def metrics() -> Iterator[Row]:
    """Yield the input and the direction of each metric."""
    from mmq_sweeps.metrics.names import load_metric, metric_names

    for name in metric_names():
        metric = load_metric(name)
        better = "higher" if metric.higher_is_better else "lower"
        yield {"metric": name, "of": metric.needs, "better": "neither" if name in NEITHER else better}


def models(described: Sequence[Mapping[str, Any]] | None = None) -> Iterator[Row]:
    """Yield a row per part of each model, and one per model; ``described`` is what ``mmq_sweeps.models --json`` prints."""
    from mmq_sweeps.config.model_catalog import model_names
    from mmq_sweeps.models.__main__ import count, describe

    for model in described or [describe(count(name)) for name in model_names()]:
        yield {"model": model["model"], "part": "all", "parameters": f"{model['parameters']:,}"}
        for part, found in model["parts"].items():
            yield {
                "model": model["model"],
                "part": part,
                "label": f"tied to {found['tied_to']}" if "tied_to" in found else found["label"],
                "blocks": str(found["blocks"]),
                "linears": f"{found['linears']:,}",
                "quantizable weights": f"{found['quantizable_weights']:,}",
                "parameters": f"{found['parameters']:,}",
            }


def readers() -> Iterator[Row]:
    """Yield the fields of the readers of published sets."""
    from mmq_sweeps.data.published import PublishedData
    from mmq_sweeps.data.readers import READERS

    for reader in sorted(READERS.values(), key=lambda reader: reader.__name__):
        if issubclass(reader, PublishedData):
            for field in fields(reader):
                if isinstance(field.default, str):
                    yield {
                        "reader (task.data._target_)": reader.__name__,
                        "field": field.name,
                        "default": field.default,
                    }


# The rows of each table, and the columns that tell them apart.
ROWS: Mapping[str, tuple[Callable[[], Iterator[Row]], tuple[str, ...]]] = {
    "tasks": (tasks, ("task",)),
    "metrics": (metrics, ("metric",)),
    "models": (models, ("model", "part")),
    "readers": (readers, ("reader (task.data._target_)", "field")),
}


def read(name: str) -> tuple[list[str], list[Row]]:
    """Return the columns and the rows of a table as they are."""
    with (TABLES / f"{name}.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or []), list(reader)


def updated(name: str, rows: Iterator[Row] | None = None) -> str:
    """Return the text of a table with the code's columns as ``rows``, or those that its function yields."""
    make, keys = ROWS[name]
    columns, known = read(name)
    kept = {tuple(row[key] for key in keys): row for row in known}
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in make() if rows is None else rows:
        writer.writerow({**kept.get(tuple(row[key] for key in keys), {}), **row})
    return text.getvalue()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ROWS:
        path = TABLES / f"{name}.csv"
        if (text := updated(name)) != path.read_text():
            path.write_text(text)
            logging.info("changed %s", path)


if __name__ == "__main__":
    main()
