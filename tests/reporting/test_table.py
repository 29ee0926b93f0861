from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from mmq_sweeps.reporting.compare import told_apart
from mmq_sweeps.reporting.table import plain_table, rows, show
from mmq_sweeps.store.record import Record

EVERYTHING = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
COUNT = 50


def record(bpw: float, cider: float, method: str = "gptq", task: str = "t", **bits: int) -> Record:
    return Record(
        id=f"{method}{bpw}{task}",
        status="done",
        cell={
            "model": {"checkpoint": "m"},
            "task": {"name": task},
            "parts": {part: {"bits": width, **EVERYTHING} for part, width in bits.items()},
        },
        names={"model": "m", "task": task, "method": method},
        metrics={"cider": {"value": cider, "interval": [cider - 0.1, cider + 0.1], "higher_is_better": True}},
        size={"total": {"bpw_paper": bpw, "bpw_exact": bpw + 0.1, "size_bytes": int(bpw * 1e5)}},
        seconds={"evaluate": 1.25, "score": 0.25},
    )


def failed() -> Record:
    error = {"class": "RuntimeError", "message": "boom", "traceback": "..."}
    one = record(3.0, 0.0, vision=3)
    return Record(**{**one.__dict__, "id": "f", "status": "failed", "error": error, "metrics": {}, "size": {}})


def items(one: Record, spread: float = 0.01) -> list[dict]:
    """Make items whose mean is the record's CIDEr, above and below it by turns; full precision has no spread."""
    value, width = one.metrics["cider"]["value"], spread if one.cell["parts"] else 0.0
    return [
        {"id": str(number), "prediction": "a", "scores": {"cider": value + (-1) ** number * width}}
        for number in range(COUNT)
    ]


def table_of(*records: Record, spread: float = 0.01) -> list[dict]:
    by_id = {one.id: one for one in records}
    return rows(records, lambda cell_id: items(by_id[cell_id], spread))


def test_rows_are_sorted_by_bits_per_weight_with_failures_last() -> None:
    found = table_of(failed(), record(2.5, 0.4, vision=2), record(16.0, 1.0, "none"), record(4.5, 0.9, vision=4))
    assert [row.get("bpw_paper") for row in found] == [16.0, 4.5, 2.5, None]
    assert found[-1]["error"] == {"class": "RuntimeError", "message": "boom"}


def test_differences_are_from_the_baseline_of_the_same_task() -> None:
    found = table_of(
        record(16.0, 1.0, "none"),
        record(4.0, 0.75, vision=4),
        record(16.0, 3.0, "none", task="other"),
        record(4.0, 2.0, task="other", vision=4),
        record(4.0, 2.0, task="third", vision=4),
    )
    differences = {(row["task"], row["method"]): row["metrics"]["cider"].get("difference") for row in found}
    assert differences[("t", "gptq")] == pytest.approx(-0.25)
    assert differences[("other", "gptq")] == pytest.approx(-1.0)
    assert differences[("third", "gptq")] is None
    assert differences[("t", "none")] is None


def test_a_difference_is_significant_where_its_paired_interval_leaves_out_zero() -> None:
    small = table_of(record(16.0, 1.0, "none"), record(4.0, 0.95, vision=4), spread=0.01)[1]["metrics"]["cider"]
    low, high = small["difference_interval"]
    assert low <= small["difference"] <= high < 0
    assert small["significant"]
    noisy = table_of(record(16.0, 1.0, "none"), record(4.0, 0.95, vision=4), spread=2.0)[1]["metrics"]["cider"]
    assert not noisy["significant"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_table_has_colours_only_on_a_terminal(terminal: bool) -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=terminal, width=200, color_system="standard" if terminal else None)
    show(table_of(record(16.0, 1.0, "none"), record(2.5, 0.4, vision=2, language=3), failed()), console)
    text = output.getvalue()
    assert ("\x1b[" in text) is terminal
    assert "CIDEr" in text
    assert "-0.6000*" in text
    assert "* differs from full precision" in text
    assert "0.25" in text
    assert "1.5" in text
    assert "boom" not in text


def test_it_fits_a_terminal_of_eighty_columns() -> None:
    output = StringIO()
    quantized = record(12.34, 1.2345, "uniform", vision=2, connector=3, language=4)
    console = Console(file=output, width=80)
    show(table_of(record(16.0, 1.5, "none"), quantized), console)
    assert "…" not in output.getvalue()
    (line,) = [line for line in output.getvalue().splitlines() if "uniform" in line]
    assert line.split() == ["uniform", "2", "3", "4", "1.2345", "-0.2655*", "12.34", "12.44", "1.23", "unif"]


def test_of_many_metrics_only_the_first_stands_beside_its_difference() -> None:
    names = [f"{side}_recall_at_{rank}" for side in ("text", "image") for rank in (1, 5, 10)]

    def widened(row: dict) -> dict:
        return {**row, "metrics": dict.fromkeys(names, row["metrics"]["cider"])}

    console = Console(file=StringIO(), width=100)
    show([widened(row) for row in table_of(record(16.0, 1.0, "none"), record(4.0, 0.75, vision=4))], console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    assert [label in told for label in ("TR@1", "TR@10", "IR@1", "IR@10")] == [True] * 4
    assert told.count("-0.2500*") == 1


def test_a_warning_that_cells_share_is_said_once() -> None:
    """A shared warning names the first three cells and the number of others; a warning of a single cell names that cell."""
    cells = [record(float(bits), 1.0, vision=bits) for bits in (2, 3, 4, 5, 8)]
    for one in cells:
        one.metrics["cider"]["warnings"] = ["10 texts tie"]
    cells[0].metrics["cider"]["warnings"].append("all answers are empty")
    out = StringIO()
    show(rows(cells, lambda _: items(cells[0])), Console(file=out, width=120))
    lines = [line for line in out.getvalue().splitlines() if line.startswith("!")]
    assert len(lines) == 2
    assert lines[0].endswith("gptq vision 4 and 2 more, CIDEr: 10 texts tie")
    assert lines[1] == "! gptq vision 2, CIDEr: all answers are empty"


def loading(one: Record, *loaders: str) -> Record:
    return Record(**{**one.__dict__, "loads_in": [*loaders] or None})


def test_the_loaders_have_a_column_if_they_are_known_and_fit() -> None:
    cells = [
        loading(record(16.0, 1.0, "none"), "transformers", "vllm"),
        loading(record(4.0, 0.5, vision=4), "dequantized"),
        record(3.0, 0.4, vision=3),
    ]
    shown = [drawn(cells, width) for width in (100, 70)]
    assert "loads in" in shown[0]
    assert [line.split()[-1] for line in shown[0].splitlines()[3:5]] == ["vLLM", "dequantized"]
    assert "no room here for loads in: widen" in shown[1]
    assert "loads in" not in drawn(cells[2:], 100)


def test_dense_embeddings_are_said_below() -> None:
    cell = loading(record(4.0, 0.5, embeddings=4), "transformers")
    assert "loads in: an export stores quantized embeddings dense" in drawn([cell], 100)
    assert "stores" not in drawn([loading(cell, "dequantized")], 100)
    assert "stores" not in drawn([loading(cell)], 100)


def drawn(cells: list[Record], width: int) -> str:
    out = StringIO()
    show(rows(cells, lambda _: items(cells[0])), Console(file=out, width=width))
    return out.getvalue()


def mixed() -> Record:
    groups = {"front": 4, "middle": 3, "end": 2}
    rules = [{"bits": bits, "blocks": [group], "layers": ["attention", "mlp"]} for group, bits in groups.items()]
    one = record(4.5, 0.9, "rtn (vision), gptq (connector, language)", vision=4, connector=4)
    parts = {"language": {"rules": rules}, "embeddings": {"bits": 8, "module": ["e"]}, **one.cell["parts"]}
    return Record(**{**one.__dict__, "cell": {**one.cell, "parts": parts}})


def test_a_mixed_part_and_mixed_methods_fit_eighty_columns_between_words() -> None:
    file = StringIO()
    show(table_of(record(16.0, 1.0, "none"), mixed()), Console(file=file, width=80))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines[:8])) <= 80
    words = {word for line in lines for word in line.split()}
    assert {"(connector,", "language)", "front", "4,", "0.9000"} <= words
    head = next(line for line in lines if "vision" in line).split()
    assert head[:6] == ["method", "vision", "connector", "embeddings", "language", "CIDEr"]


def test_a_wide_console_shows_a_mixed_part_on_one_line() -> None:
    file = StringIO()
    show(table_of(record(16.0, 1.0, "none"), mixed()), Console(file=file, width=200))
    assert "front 4, middle 3, end 2" in file.getvalue()


def test_rows_hold_the_selections_themselves() -> None:
    (row,) = table_of(mixed())
    assert row["parts"] == mixed().cell["parts"]
    assert list(row["bits"]) == ["vision", "connector", "embeddings", "language"]


@pytest.mark.parametrize("width", [30, 40, 50, 60, 80, 100, 200])
def test_a_family_is_one_table_whose_words_and_numbers_are_whole_at_any_width(width: int) -> None:
    long = record(4.1, 0.8, "gptq_with_a_long_name", vision=4, connector=4)
    told = table_text([record(16.0, 1.0, "none"), mixed(), long], width)
    lines = told.split("\n* differs")[0].splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert {"CIDEr", "1.0000", "0.8000", "16.00", "connector", "vision"} <= words
    # Narrower than the name beside two numbers, it is cut, not they.
    assert ("gptq_with_a_long_name" in words) is (width > 30)
    assert sum("CIDEr" in line for line in lines) == 1


def test_gptq_columns_that_have_no_room_are_named_and_the_least_important_go_first() -> None:
    cells = [record(16.0, 1.0, "none"), record(4.0, 0.5, vision=4)]
    told = {width: table_text(cells, width) for width in (30, 45, 60, 80)}
    assert "no room here for CIDEr vs full, bpw exact, size, id, time: widen" in told[30]
    assert "no room here for bpw exact, size, id, time: widen" in told[45]
    assert "no room here for time: widen" in told[60]
    assert "no room" not in told[80]


def table_text(cells: list[Record], width: int) -> str:
    file = StringIO()
    show(table_of(*cells), Console(file=file, width=width))
    return file.getvalue()


def test_failed_cells_stand_below_their_family_with_bits_and_class() -> None:
    one = failed()
    other = {"id": "g", "names": {**one.names, "task": "u"}, "cell": {**one.cell, "task": {"name": "u"}}}
    told = table_text([record(16.0, 1.0, "none"), one, Record(**{**one.__dict__, **other})], 80)
    first, second = told.split("\nm, u\n")
    assert "none" in first
    assert "failed with RuntimeError: gptq vision 3" in first
    assert second == "failed with RuntimeError: gptq vision 3\n"


def test_many_families_are_told_apart_by_the_fields_that_differ() -> None:
    """Most fields of a task follow from another: only those that tell families apart are named."""
    several = [
        {
            "task.split": split,
            "task.seed": split,
            "task.a": split,
            "task.b": split,
            "task.c": split,
            "task.limit": limit,
        }
        for split, limit in (("test", 8), ("test", 16), ("train", 8))
    ]
    assert told_apart(several) == [
        f"task.split={split}, task.seed={split}, task.a={split}, task.limit={limit} and 2 more fields"
        for split, limit in (("test", 8), ("test", 16), ("train", 8))
    ]


def test_a_narrow_terminal_breaks_cells_and_loses_none() -> None:
    table = plain_table("budget", "assignment", ">CIDEr", ">95 %", ">bpw exact", "cell")
    row = ["max_bpw=3.5", "vision 2, connector 2, language 3", "4.8905", "4.750 to 5.030", "3.3766", "e0cfdea070ff"]
    table.add_row(*map(Text, row))
    out = StringIO()
    Console(file=out, width=40).print(table)
    printed = out.getvalue().split("─")[-1]
    assert sorted("".join(printed.split())) == sorted("".join("".join(row).split()))
