"""Tables of models: the parts that can be quantized, the size of an assignment, the storage of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table

from mmq_sweeps.identity.end_parts import END_PARTS


def draw_models(models: Iterable[Mapping[str, Any]]) -> Table:
    # A model and its parts share a column, so that the table fits 80 characters.
    table = _table("model", "", ">blocks", ">linears", ">quantizable\nweights", ">all\nparameters")
    for model in models:
        table.add_row(model["model"], "", "", "", "", f"{model['parameters']:,}")
        for name, part in model["parts"].items():
            counts = (part[key] for key in ("blocks", "linears", "quantizable_weights", "parameters"))
            table.add_row(f"  {name}", _shown(name, part["label"], part), *(f"{count:,}" for count in counts))
    return table


def draw_assignment(told: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    table = _table(
        "part", "", ">bits", ">quantized\nweights", ">all\nparameters", ">bpw\npaper", ">bpw\nexact", ">size\nMB"
    )
    for name, width in told["bits"].items():
        size = told["parts"][name]
        table.add_row(name, _shown(name, labels[name], size), str(width), *_size_cells(size))
    table.add_section()
    table.add_row("all", told["model"], "", *_size_cells(told["total"]))
    return table


def draw_folder(told: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    table = _table(
        "part", "", ">bits", ">group", "zeros", "format", ">linears", ">quantized\nweights", ">bpw\npaper", ">bpw\nexact",
        ">size\nMB",
    )  # fmt: skip
    for name, part in told["parts"].items():
        label = "tied" if "tied_to" in part else labels.get(name, "")
        sizes = _bits_and_bytes(part)
        if len(part["stored"]) == 1:
            table.add_row(name, label, *_stored_cells(part["stored"][0]), *sizes)
        else:
            table.add_row(name, label, "" if part["stored"] else "16", *[""] * 5, *sizes)
            _add_stored(table, part["stored"])
    if told["outside"]:
        table.add_row("outside" if told["parts"] else "linears", *[""] * 10)
        _add_stored(table, told["outside"])
    table.add_section()
    total = told["total"]
    table.add_row("all", "", *[""] * 5, f"{total['quantized_weights']:,}", *_bits_and_bytes(total))
    return table


def _add_stored(table: Table, entries: Iterable[Mapping[str, Any]]) -> None:
    for entry in entries:
        own = [f"{entry['bpw_exact']:.4f}", f"{entry['bytes'] / 1e6:,.1f}"]
        table.add_row("", "", *_stored_cells(entry), str(entry["bits"] or "?"), *own)


def _stored_cells(entry: Mapping[str, Any]) -> list[str]:
    zeros = "no" if entry["symmetric"] else "yes"
    cells = [str(entry["bits"] or "?"), str(entry["group_size"]), zeros, entry["format"]]
    return [*cells, f"{entry['linears']:,}", f"{entry['weights']:,}"]


def _shown(part: str, label: str, counts: Mapping[str, Any]) -> str:
    """Return the label beside a part's name; the names of those at the ends need none."""
    return label if part not in END_PARTS else "tied" if "tied_to" in counts else ""


def _size_cells(size: Mapping[str, Any]) -> list[str]:
    return [*(f"{size[key]:,}" for key in ("quantized_weights", "parameters")), *_bits_and_bytes(size)]


def _bits_and_bytes(size: Mapping[str, Any]) -> list[str]:
    return [f"{size['bpw_paper']:.4f}", f"{size['bpw_exact']:.4f}", f"{size['size_bytes'] / 1e6:,.1f}"]


def _table(*columns: str) -> Table:
    """Return an empty table; a column whose heading opens with ``>`` is right-aligned."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    return table
