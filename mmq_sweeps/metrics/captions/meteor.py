"""METEOR 1.5 as pycocoevalcap 1.2 runs it (Denkowski and Lavie, Meteor Universal, WMT 2014).

The program computes the matching statistics of each caption (``SCORE``) and the scores of all of them (``EVAL``). The
figure of a cell is METEOR's score of the *summed* statistics, not the mean of the images' scores. Equal captions with
equal references have equal statistics, so each is matched once per process. Starting the program, reading its
paraphrase tables (seconds) and matching are the only expensive steps.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, MetricBase, Scores
from mmq_sweeps.metrics.captions.java import JavaProcess, per_process, take
from mmq_sweeps.metrics.captions.references import Candidates, References
from mmq_sweeps.metrics.captions.tokenizer import package_folder

_COMMAND = ("-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")
# METEOR 1.5's parameters for English: alpha, beta, gamma, delta, and the weights of its four matchers
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_STATISTICS, _CHUNKS, _WORDS = 23, 20, slice(21, 23)
_BATCH = 200
_REMEMBERED = 100_000


@dataclass
class MeteorProgram:
    """Running program, and its statistics cached by request line."""

    process: JavaProcess
    _known: dict[str, str] = field(default_factory=dict, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def statistics(self, lines: Sequence[str]) -> list[str]:
        """Return the statistics of each ``SCORE`` line."""
        with self._lock:
            if len(self._known) > _REMEMBERED:
                self._known.clear()
            unknown = list(dict.fromkeys(line for line in lines if line not in self._known))
            for start in range(0, len(unknown), _BATCH):
                batch = unknown[start : start + _BATCH]
                self._known.update(zip(batch, self._ask(batch, len(batch)), strict=True))
            return [self._known[line] for line in lines]

    def evaluate(self, statistics: Sequence[str]) -> Floats:
        """Return the score of each item, then that of their sum: ``[N + 1]``."""
        request = " ||| ".join(("EVAL", *statistics))
        return np.array([float(answer) for answer in self._ask([request], len(statistics) + 1)])

    def _ask(self, requests: Sequence[str], answers: int) -> list[str]:
        text = "".join(f"{request}\n" for request in requests)
        lines = self.process.exchange(text, functools.partial(take, answers))
        errors = [line for line in lines if line.startswith("Error")]
        if errors:
            raise ValueError(f"METEOR refused a caption: {errors[0]}")
        return lines


class Meteor(MetricBase):
    """pycocoevalcap's ``Meteor``: the same requests, in the same order, to a persistent program."""

    name: ClassVar[str] = "meteor"
    needs: ClassVar[str] = "captions"

    def prepare(self, references: References) -> list[str]:
        """Return the constant part of each image's request, and start the program loading its tables."""
        shared_program().process.start()
        return [" ||| ".join(("SCORE", *tokens)) for tokens in references.tokens]

    def score(self, prepared: list[str], predictions: Candidates) -> Scores:
        """Score tokenized captions in the order of the images; raises as ``JavaProcess.exchange`` does."""
        program = shared_program()
        requests = [
            f"{start} ||| {_clean(caption)}" for start, caption in zip(prepared, predictions.tokens, strict=True)
        ]
        statistics = program.statistics(requests)
        scores = program.evaluate(statistics)
        totals = np.array([line.split() for line in statistics], dtype=np.float64).reshape(-1, _STATISTICS)
        return Scores(float(scores[-1]), scores[:-1], _without_perfect_chunks(totals))

    def aggregate(self, totals: Floats, count: Count) -> Floats:  # noqa: ARG002 (part of a metric)
        """Score the summed statistics."""
        return score_of_statistics(totals)


def score_of_statistics(totals: Floats) -> Floats:
    """Return METEOR's scores of statistics ``[B, 23]``.

    The columns are lengths, function words, four matchers' matches, chunks, and matched words.
    """
    length, functions = totals[:, 0:2], totals[:, 2:4]
    matches = totals[:, 4:20].reshape(-1, 4, 4)
    content = np.einsum("bmk,m->bk", matches[:, :, :2], _WEIGHTS)
    function = np.einsum("bmk,m->bk", matches[:, :, 2:], _WEIGHTS)
    matched = _DELTA * content + (1 - _DELTA) * function
    weighted_length = _DELTA * (length - functions) + (1 - _DELTA) * functions
    precision, recall = _divide(matched, weighted_length).T
    mean = _divide(precision * recall, (1 - _ALPHA) * recall + _ALPHA * precision)
    fragmentation = _divide(totals[:, _CHUNKS], totals[:, _WORDS].mean(axis=1))
    score: Floats = mean * (1 - _GAMMA * fragmentation**_BETA)
    return score


def _without_perfect_chunks(totals: Floats) -> Floats:
    """Drop the single chunk of a caption equal to its reference, which METEOR does not count."""
    perfect = (totals[:, _WORDS] == totals[:, 0:2]).all(axis=1) & (totals[:, _CHUNKS] == 1)
    totals[perfect, _CHUNKS] = 0
    return totals


def _divide(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator != 0)


def _clean(caption: str) -> str:
    """Remove METEOR's separator from a caption, as pycocoevalcap does."""
    return caption.replace("|||", "").replace("  ", " ")


@per_process
def shared_program() -> MeteorProgram:
    """Return this process's METEOR; a forked child gets its own."""
    return MeteorProgram(JavaProcess("METEOR", _COMMAND, package_folder("meteor")))
