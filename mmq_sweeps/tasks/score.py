"""Score a file of finished captions: ``python -m mmq_sweeps.tasks.score FILE.json --metrics cider,meteor [--json]``.

FILE holds ``predictions`` ``[{"image_id": ..., "caption": ...}]`` and ``references``: either a list of caption lists in
the same order, or an object of image id -> captions. Any error is one line on standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mmq_sweeps.metrics import MetricResult, check_metric_names


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the scores and return the exit status."""
    parser = _Parser(prog="mmq_sweeps.tasks.score", description="Score a file of finished captions.")
    parser.add_argument("file", type=Path, help="JSON with predictions and references")
    parser.add_argument("--metrics", default="cider", help="names joined by commas (default: cider)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--cache", type=Path, help="folder that keeps the tokenized references for the next call")
    options = parser.parse_args(arguments)
    # imported here: --help and a misspelt metric need neither numpy nor pycocoevalcap
    from mmq_sweeps.metrics.captions.java import JavaDiedError, JavaMissingError

    try:
        names = _split(options.metrics)
        predictions, references = read_captions(options.file)
        from mmq_sweeps.metrics import CaptionScorer

        results = CaptionScorer(references, names, options.cache).score(predictions)
    except (ValueError, OSError, JavaMissingError, JavaDiedError, ModuleNotFoundError) as error:
        parser.error(" ".join(str(error).split()))
    sys.stdout.write(f"{json.dumps(_as_json(results), indent=2)}\n") if options.json else _print_table(results)
    return 0


def read_captions(file: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return captions and references of a file by image id, in the file's order.

    Raises ValueError if the file is not JSON, lacks keys, repeats images, or has lists of unequal length; OSError if it
    cannot be read.
    """
    content = _read_json(file)
    for key in ("predictions", "references"):
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{file} has no {key!r}; it needs 'predictions' and 'references'")
    pairs = [_prediction(file, index, entry) for index, entry in enumerate(_list(file, content, "predictions"))]
    twice = [image for image, count in Counter(image for image, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{file} has {len(twice)} image ids more than once, for example {twice[0]!r}")
    return dict(pairs), _references(file, content["references"], [image for image, _ in pairs])


def _split(metrics: str) -> list[str]:
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names:
        raise ValueError("--metrics names no metric")
    check_metric_names(names)
    return names


def _read_json(file: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"{file} has {twice!r} twice in one object; each needs its own key")
        return found

    try:
        # By itself, json would take the last of two entries.
        return json.loads(file.read_bytes(), object_pairs_hook=once)
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {file}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error


def _list(file: Path, content: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(content[key], list):
        raise ValueError(f"{file}: {key!r} must be a list, not {type(content[key]).__name__}")
    return content[key]


def _prediction(file: Path, index: int, entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict) or "image_id" not in entry or not isinstance(entry.get("caption"), str):
        raise ValueError(f"{file}: predictions[{index}] needs an 'image_id' and a 'caption' that is text")
    image = entry["image_id"]
    if isinstance(image, bool) or not isinstance(image, int | str):
        raise ValueError(
            f"{file}: predictions[{index}] has the image_id {json.dumps(image)}, which is neither a whole number nor text"
        )
    return str(image), entry["caption"]


def _references(file: Path, references: Any, images: list[str]) -> dict[str, list[str]]:
    if isinstance(references, list):
        if len(references) != len(images):
            raise ValueError(f"{file} has {len(images)} predictions but references for {len(references)} images")
        references = dict(zip(images, references, strict=True))
    if not isinstance(references, dict):
        raise ValueError(f"{file}: 'references' must be a list or an object of image id -> captions")
    for image, texts in references.items():
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{file}: image {image!r} needs a list of at least one reference")
    return references


def _as_json(results: Mapping[str, MetricResult]) -> dict[str, Any]:
    return {
        name: {"value": result.value, "interval": list(result.interval), "count": result.count}
        | ({"warnings": list(result.warnings)} if result.warnings else {})
        for name, result in results.items()
    }


def _print_table(results: Mapping[str, MetricResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value", "95% interval", "items")
    for name, result in results.items():
        low, high = result.interval
        table.add_row(name, repr(result.value), f"{low:.4f} to {high:.4f}", str(result.count))
    console = Console()
    console.print(table)
    for name, result in results.items():
        for warning in result.warnings:
            console.print(f"{name}: {warning}", markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
