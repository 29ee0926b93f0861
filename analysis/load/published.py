"""Load the results that the study (arXiv 2601.15287) published in its repository, gautomdas/mmq.

Tables are recognized by their columns, not by their names, so a folder with some of the files works as well as a clone:

| file there | cells |
|---|---|
| ``gptq_scores.csv`` | GPTQ, captions: bits of each part |
| ``results/quantization_results_w_size.csv`` | uniform, captions: bits, layer kinds and block groups |
| ``awq/awq_image_captioning.csv`` | AWQ, captions: bits of each part |
| ``awq/awq_image_text_retrieval.csv`` | AWQ, retrieval: bits of the two parts |
| ``results/N.json``, ``predictions/N.json`` | the captions behind row ``config=N`` of the uniform file |
| ``configs/N.json`` | the selections that row ``config=N`` was configured to quantize |

Bits per weight are recomputed from a row's bits by the paper's formula; the study's own size columns stay under their names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.cells import Cells, History
from analysis.cells.columns import BITS, METRIC
from analysis.load import cache, configured
from analysis.load.configured import Selected
from mmq_sweeps.identity.assignment import BLOCK_GROUPS, FULL_PRECISION_BITS, LAYER_KINDS, PART_ORDER, block_groups
from mmq_sweeps.identity.cell import digest
from mmq_sweeps.reporting.counts import counted

READERS = (Path(__file__), Path(configured.__file__))
_PLACES = {"FIRST": "front", "MIDDLE": "middle", "LAST": "end"}
Configs = Mapping[int, Selected | None]


@dataclass(frozen=True)
class Counts:
    """Parameter counts of a model: the total, and the linear weights per block as ``weights[part][kind][block]``."""

    parameters: int
    weights: dict[str, dict[str, list[int]]]

    def quantized(self, part: str, groups: Iterable[str], kinds: Iterable[str]) -> int:
        blocks = [self.weights[part][kind] for kind in kinds]
        return sum(counts[index] for counts in blocks for group in groups for index in block_groups(len(counts))[group])

    def bpw(self, quantized: dict[str, tuple[int, int]]) -> float:
        """Return the paper's bits per weight of ``{part: (bits, quantized weights)}``."""
        low = sum(count for _, count in quantized.values())
        bits = FULL_PRECISION_BITS * (self.parameters - low) + sum(width * count for width, count in quantized.values())
        return bits / self.parameters


# The linear weights in the blocks of the study's models; `python -m mmq_sweeps.models --json` counts the same.
_VISION = {"attention": [7_929_856] * 39, "mlp": [17_301_504] * 39}
# Every second block of the Q-Former has cross-attention to the image.
_CONNECTOR = {"attention": [5_701_632, 2_359_296] * 6, "mlp": [4_718_592] * 12}
BLIP2_OPT = Counts(
    3_744_679_936,
    {
        "vision": _VISION,
        "connector": _CONNECTOR,
        "language": {"attention": [26_214_400] * 32, "mlp": [52_428_800] * 32},
    },
)
# The retriever's Q-Former also reads texts, through an MLP of their own.
BLIP2_ITM = Counts(
    1_172_032_258,
    {"vision": _VISION, "connector": {**_CONNECTOR, "mlp": [2 * 4_718_592] * 12}},
)


@dataclass(frozen=True)
class Layout:
    """A published table: the ``columns`` that identify it, the row ``count`` of the complete file, its reader.

    ``read(table, path, configs)`` returns rows of the table of cells, and notes.
    """

    columns: frozenset[str]
    count: int
    read: Callable[[pd.DataFrame, Path, Configs], tuple[list[dict[str, Any]], list[str]]]


def load(folder: Path) -> Cells:
    """Load every table of the study under ``folder``.

    Raises FileNotFoundError if the folder is missing, ValueError if a table is truncated or no file is the study's.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--source published:{folder}: is no folder; clone https://github.com/gautomdas/mmq and name its folder"
        )
    predictions = _numbered(folder, "predictions") | _numbered(folder, "results")
    configs = _numbered(folder, "configs")
    tables = sorted(folder.rglob("*.csv"))
    stamps = digest([[str(path), cache.stamp(path)] for path in (*tables, *predictions.values(), *configs.values())])
    kept_at = cache.path_of(folder, READERS)
    kept = cache.read(kept_at)
    if kept is None or kept.empty or kept.attrs.get("stamps") != stamps:
        kept = _table(folder, tables, predictions, configs).assign(**{cache.STAMP: ""})
        kept.attrs["stamps"] = stamps
        refused = cache.write(kept_at, kept)
        kept.attrs["notes"] += [refused] if refused else []
    frame = kept.drop(columns=cache.STAMP)
    notes, lacking, frame.attrs = tuple(kept.attrs["notes"]), tuple(kept.attrs["lacking"]), {}
    return Cells(frame, notes, lambda row: _items(row, predictions), lambda: History(lacking=lacking))


def _table(folder: Path, tables: list[Path], predictions: dict[int, Path], configs: dict[int, Path]) -> pd.DataFrame:
    """Read the rows of every table; ``attrs`` holds the sentences ``notes`` and ``lacking``."""
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    chosen = {number: configured.selected(path) for number, path in configs.items()}
    for path in tables:
        table = _read(path)
        layout = next((layout for layout in LAYOUTS if layout.columns <= set(table.columns)), None)
        if layout is not None:
            found, odd = layout.read(table, path, chosen)
            rows, notes = rows + found, notes + odd
            if len(table) < layout.count:
                notes.append(
                    f"{path.name} has {len(table):,} of the {counted(layout.count, 'row', 'rows')} that were published"
                )
    if not rows:
        raise ValueError(
            f"--source published:{folder}: no file in it has the columns of one of the study's tables. A clone that "
            "was cut off may lack them: run 'git status' and 'git lfs pull' there"
        )
    frame = pd.DataFrame(rows)
    _add_outputs(frame, predictions)
    frame["status"] = "done"
    stated = dict.fromkeys(frame["config"].dropna().astype(int)) if "config" in frame else {}
    frame.attrs = {"notes": [*notes, *_notes(frame)], "lacking": configured.lacking(stated, chosen) if stated else []}
    return frame


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is not the table that it was published as ({error}); fetch it again") from error
    if list(table.columns)[:1] == ["version https://git-lfs.github.com/spec/v1"]:
        raise ValueError(f"{path}: is a Git LFS pointer; run 'git lfs pull' in the clone")
    return table


def _bits_table(
    model: str, task: str, method: str, counts: Counts, metrics: dict[str, str], scale: float = 1
) -> Callable[..., Any]:
    """Return a reader of tables whose rows give the bits of whole parts.

    ``metrics`` maps their columns to our metrics; ``scale`` converts their values to ours.
    """
    columns = {"vision": "vit_bits", "connector": "qformer_bits", "language": "llm_bits"}
    parts = [part for part in PART_ORDER if part in counts.weights]

    def read(table: pd.DataFrame, path: Path, _configs: Configs) -> tuple[list[dict[str, Any]], list[str]]:
        _complete(table, [*(columns[part] for part in parts), *metrics], path)
        rows = []
        for number, line in enumerate(table.to_dict("records")):
            bits = {part: int(line.pop(columns[part])) for part in parts}
            selected = {
                part: (width, BLOCK_GROUPS, LAYER_KINDS) for part, width in bits.items() if width < FULL_PRECISION_BITS
            }
            rows.append(
                {
                    "id": f"{method}-{task}-" + "-".join(str(width) for width in bits.values()),
                    **_cell(model, task, method, counts, selected, path, number),
                    **{f"{METRIC}{name}": scale * line.pop(column) for column, name in metrics.items()},
                    **line,
                }
            )
        return rows, []

    return read


def _uniform_table(table: pd.DataFrame, path: Path, configs: Configs) -> tuple[list[dict[str, Any]], list[str]]:
    _complete(table, ["config", "bit_size", "type", "CIDEr", "METEOR"], path)
    rows: list[dict[str, Any]] = []
    stated: dict[int, Selected] = {}
    for number, line in enumerate(table.to_dict("records")):
        config = int(line["config"])
        stated[config] = _stated(line)
        meant = configs.get(config)
        selected = stated[config] if meant is None else meant
        rows.append(
            {
                "id": f"uniform-{config}",
                **_cell("blip2_opt_2_7b", "coco_caption", "uniform", BLIP2_OPT, selected, path, number),
                f"{METRIC}cider": line.pop("CIDEr"),
                f"{METRIC}meteor": line.pop("METEOR"),
                **line,
            }
        )
    return rows, configured.differences(stated, configs)


def _stated(line: dict[str, Any]) -> Selected:
    """Return the parts that a row's columns say are quantized; pops the 0/1 columns from ``line``."""
    kinds = configured.LAYERS[line["type"]]
    selected: Selected = {}
    for prefix, part in configured.PARTS.items():
        groups = tuple(place for there, place in _PLACES.items() if line.pop(f"{prefix}_{there}"))
        if groups and line["bit_size"] < FULL_PRECISION_BITS:
            selected[part] = (int(line["bit_size"]), groups, kinds)
    return selected


def _cell(
    model: str, task: str, method: str, counts: Counts, selected: dict[str, Any], path: Path, number: int
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "source": f"published {path.name}",
        "model": model,
        "task": task,
        "method": method if selected else "none",
        "where": f"{path} row {number + 1}",
    }
    quantized = {}
    for part in counts.weights:
        bits, groups, kinds = selected.get(part, (FULL_PRECISION_BITS, (), ()))
        quantized[part] = (bits, counts.quantized(part, groups, kinds))
        row[f"{BITS}{part}"] = bits
        row[f"blocks.{part}"], row[f"layers.{part}"] = "+".join(groups), "+".join(kinds)
        row[f"weights.{part}"] = quantized[part][1]
    row["bpw_paper"] = counts.bpw(quantized)
    return row


def _complete(table: pd.DataFrame, columns: list[str], path: Path) -> None:
    holes = table[columns].isna().any(axis=1)
    if holes.any():
        raise ValueError(
            f"{path}: row {int(holes.idxmax()) + 1} lacks {', '.join(table.columns[table.loc[holes.idxmax()].isna()])}; "
            "the file is cut off: fetch it again"
        )


_CAPTIONS = {"cider": "cider", "meteor": "meteor"}
_RECALLS = {
    f"{column}_r{rank}": f"{direction}_recall_at_{rank}"
    for column, direction in (("txt", "text"), ("img", "image"))
    for rank in (1, 5, 10)
}
LAYOUTS = (
    Layout(frozenset({"config", "bit_size", "type", "VIT_FIRST", "LLM_LAST", "CIDEr", "METEOR"}), 1500, _uniform_table),
    Layout(
        frozenset({"vit_bits", "qformer_bits", "llm_bits", "METEOR", "CIDEr", "model_size"}),
        343,
        _bits_table("blip2_opt_2_7b", "coco_caption", "awq", BLIP2_OPT, {"CIDEr": "cider", "METEOR": "meteor"}),
    ),
    Layout(
        frozenset({"vit_bits", "qformer_bits", "llm_bits", *_CAPTIONS}),
        448,
        _bits_table("blip2_opt_2_7b", "coco_caption", "gptq", BLIP2_OPT, _CAPTIONS),
    ),
    Layout(
        frozenset({"vit_bits", "qformer_bits", *_RECALLS}),
        49,
        # Recalls are published in percent; ours are shares.
        _bits_table("blip2_itm_vit_g", "flickr30k_retrieval", "awq", BLIP2_ITM, _RECALLS, scale=0.01),
    ),
)


def _numbered(folder: Path, name: str) -> dict[int, Path]:
    """Find the files ``N.json`` in folders called ``name``, by ``N``."""
    return {int(path.stem): path for path in folder.rglob(f"{name}/*.json") if path.stem.isdigit()}


def _add_outputs(frame: pd.DataFrame, predictions: dict[int, Path]) -> None:
    """Add the column ``output``: a digest of the captions behind a row."""
    if "config" not in frame or not predictions:
        return
    found = {
        number: hashlib.sha256(_captions_text(path).encode()).hexdigest()[:16] for number, path in predictions.items()
    }
    frame["output"] = frame["config"].map(found)


def _captions_text(path: Path) -> str:
    try:
        return json.dumps(json.loads(path.read_text())["predictions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: holds no predictions of the study ({error}); fetch it again") from error


def _items(row: pd.Series, predictions: dict[int, Path]) -> list[dict[str, Any]] | None:
    if pd.isna(row.get("config")) or int(row["config"]) not in predictions:
        return None
    content = json.loads(predictions[int(row["config"])].read_text())
    return [{"id": str(told["image_id"]), "prediction": told["caption"]} for told in content["predictions"]]


def _notes(frame: pd.DataFrame) -> Iterable[str]:
    if f"{METRIC}cider" not in frame:
        return
    full = frame[frame["method"] == "none"].groupby("source")[f"{METRIC}cider"].mean().dropna()
    if len(full) > 1 and full.max() - full.min() > 1e-6:
        told = ", ".join(f"{source.removeprefix('published ')} {value:.4f}" for source, value in full.items())
        yield f"full precision scores differently in the published files ({told}): compare within a file"
