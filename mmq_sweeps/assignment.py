"""``python -m mmq_sweeps.assignment CELL --out FILE``: write the assignment of a finished cell as a file.

``assignment=FILE`` then measures the same cell again, or the same assignment on another task. The file may be edited:
docs/assignments.md describes it.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.errors import ConfigError, Parser, StoreError, unknown
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, LAYER_KINDS, covers_part, rules_in
from mmq_sweeps.identity.cell import is_quantized_elsewhere
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store


def assignment(record: Record) -> dict[str, Any]:
    """Return the content of a file with the assignment of ``record``; ConfigError if nothing was quantized here."""
    if record.baseline:
        raise ConfigError(f"{record.id}: is at full precision, so it assigns nothing; choose a quantized cell.")
    if is_quantized_elsewhere(record.cell):
        checkpoint = record.cell["model"]["checkpoint"]
        raise ConfigError(f"{record.id}: was quantized elsewhere, as {checkpoint}, so it assigns nothing here.")
    cell = record.cell
    calibrated = cell["calibration"] is not None
    method = _method(cell["method"], calibrated)
    content: dict[str, Any] = {"model": record.names["model"], "method": method, "parts": {}}
    units: dict[str, Any] = {}
    for part, selection in cell["parts"].items():
        rules = []
        for rule in rules_in(selection):
            own = {name: rule[name] for name in ("bits", "blocks", "layers", "group_size") if name in rule}
            own = {name: value for name, value in own.items() if value not in (list(BLOCK_GROUPS), list(LAYER_KINDS))}
            own |= {"method": _method(rule["method"], calibrated)} if "method" in rule else {}
            units |= {f"{part}.{unit}": own for unit in rule.get("units", ())}
            rules += [own] if "units" not in rule else []
        narrowed = any("units" in rule for rule in rules_in(selection)) or not covers_part(selection)
        content["parts"][part] = rules[0] if len(rules) == 1 and not narrowed else rules
    return {**content, **({"units": units} if units else {})}


def _method(method: Mapping[str, Any], calibrated: bool) -> dict[str, Any]:
    """Return a method as a file names it: by its option, or by its class, which may take calibration data."""
    name = method["_target_"]
    fields = {key: value for key, value in method.items() if not key.startswith("_")}
    option = conf_dir() / "method" / f"{name}.yaml"
    if option.is_file():
        return {"name": name, **fields}
    return {"_target_": name, **fields, **({"calibration": "${calibration}"} if calibrated else {})}


def write(record: Record, file: Path) -> None:
    """Write the assignment of ``record`` to ``file``, as YAML or, if it is so named, JSON."""
    file.write_text(text_of(record) if file.suffix != ".json" else json.dumps(assignment(record), indent=1) + "\n")


def text_of(record: Record) -> str:
    """Return the assignment of ``record`` as YAML."""
    names = record.names
    title = f"# Assignment of cell {record.id}: {names['method']} on {names['model']}, measured by {names['task']}."
    return "\n".join([title, *_text(assignment(record)), ""])


def _text(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a file: a rule or unit a line."""
    yield f"model: {_flow(content['model'])}"
    yield f"method: {_flow(content['method'])}"
    yield "parts:"
    for part, rules in content["parts"].items():
        if not isinstance(rules, list):
            yield f"  {part}: {_flow(rules)}"
        else:
            yield f"  {part}:" + (" []" if not rules else "")
            yield from (f"    - {_flow(rule)}" for rule in rules)
    if "units" in content:
        yield "units:"
        yield from (f"  {unit}: {_flow(own)}" for unit, own in content["units"].items())


def _flow(value: Any) -> str:
    text = yaml.safe_dump(copy.deepcopy(value), default_flow_style=True, sort_keys=False, width=math.inf)
    return text.removesuffix("...\n").strip()


def find(cell: str, source: Path) -> Record:
    """Return the finished record of ``cell``, an id or its unique beginning, in the store at ``source``."""
    store = Store.existing(source)
    ids = store.cell_ids()
    matching = [one for one in ids if one.startswith(cell)]
    if len(matching) > 1:
        raise ConfigError(f"{cell}: begins the ids of {len(matching)} cells; give more digits, such as {matching[0]}.")
    record = store.record(matching[0]) if matching else None
    if record is None:
        near = unknown("cell", cell, ids[:8])
        raise ConfigError(f"{cell}: {near} The store {source} has {len(ids)} cells.")
    if not record.done:
        raise ConfigError(f"{cell}: failed ({(record.error or {}).get('class')}); choose a finished cell.")
    return record


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit status 2 for bad input."""
    parser = Parser(prog="python -m mmq_sweeps.assignment", description="Write a finished cell's assignment as a file.")
    parser.add_argument("cell", help="the cell's id, or its unique beginning")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="FILE.yaml or FILE.json")
    parser.add_argument("--source", type=Path, default=Path("runs"), metavar="STORE", help="the store; default: runs")
    given = parser.parse_args(arguments)
    if given.out.suffix not in (".yaml", ".yml", ".json"):
        parser.error(f"--out {given.out}: choose a name that ends in .yaml or .json")
    try:
        record = find(given.cell, given.source)
        write(record, given.out)
    except (ConfigError, StoreError, OSError) as error:
        parser.error(str(error))
    model, own = record.names["model"], record.cell["task"].get("lmms_task")
    task = f"task={record.names['task']}" if own is None else f"task=lmms_eval task.lmms_task={own}"
    sys.stdout.write(f"{given.out}: measure it with python -m mmq_sweeps model={model} {task} assignment={given.out}\n")


if __name__ == "__main__":
    main()
