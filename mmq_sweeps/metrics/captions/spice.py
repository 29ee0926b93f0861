"""SPICE (Anderson et al., arXiv 1607.08822) by pycocoevalcap's program; needs CoreNLP's jars."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mmq_sweeps.metrics.base import MetricBase, Scores
from mmq_sweeps.metrics.captions.java import run_once
from mmq_sweeps.metrics.captions.references import Candidates, References
from mmq_sweeps.metrics.captions.tokenizer import package_folder

_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_FETCH = 'python -c "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()"'


class SpiceFilesMissingError(ValueError):
    """CoreNLP's jars are missing; the message holds the command to download them."""


class Spice(MetricBase):
    """F-score of scene graph tuples; as in pycocoevalcap, an image without a numeric score counts as NaN."""

    name: ClassVar[str] = "spice"
    needs: ClassVar[str] = "captions"

    def prepare(self, references: References) -> tuple[tuple[str, ...], ...]:
        """Return the tokenized references; raises SpiceFilesMissingError if CoreNLP has not been downloaded."""
        missing = [jar for jar in _JARS if not (package_folder("spice", "lib") / jar).is_file()]
        if missing:
            raise SpiceFilesMissingError(f"SPICE needs {' and '.join(missing)}: {_FETCH}")
        return references.tokens

    def score(self, prepared: tuple[tuple[str, ...], ...], predictions: Candidates) -> Scores:
        """Score tokenized captions in the order of the images; the program starts for every cell."""
        rows = [
            {"image_id": index, "test": caption, "refs": list(tokens)}
            for index, (caption, tokens) in enumerate(zip(predictions.tokens, prepared, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            results = _run(rows, Path(folder))
        scores = {row["image_id"]: _number(row["scores"]["All"]["f"]) for row in results}
        return Scores.mean(np.array([scores[index] for index in range(len(predictions.tokens))]))


def _run(rows: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    given, answer = folder / "captions.json", folder / "scores.json"
    given.write_text(json.dumps(rows))
    program = ("-Xmx8G", "-jar", "spice-1.0.jar")
    # No limit in seconds: it prints nothing before its end, and parses for minutes.
    run_once("SPICE", (*program, str(given), "-out", str(answer), "-subset", "-silent"), package_folder("spice"), "")
    results: list[dict[str, Any]] = json.loads(answer.read_text())
    return results


def _number(value: object) -> float:
    try:
        return float(str(value))
    except ValueError:
        return float("nan")
