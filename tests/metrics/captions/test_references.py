"""References are tokenized and counted once, and give the same scores when they are read back from disk."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from mmq_sweeps.metrics import CaptionScorer
from mmq_sweeps.metrics.captions import references
from mmq_sweeps.metrics.captions.tokenizer import PtbTokenizer, shared_tokenizer
from tests.metrics.conftest import NASTY, Captions, nasty_cell

METRICS = ["cider", "bleu_4", "rouge_l"]


def test_kept_references_score_the_same(published: Captions, tmp_path: Path) -> None:
    fresh = CaptionScorer(published.references, METRICS).score(published.predictions)
    CaptionScorer(published.references, METRICS, tmp_path)
    kept = CaptionScorer(published.references, METRICS, tmp_path)
    assert kept.score(published.predictions) == fresh


def test_kept_references_are_not_tokenized_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = nasty_cell(NASTY)
    first = CaptionScorer(cell.references, METRICS, tmp_path)
    expected = first.score(cell.predictions)
    monkeypatch.setattr(references, "_make", lambda *_: pytest.fail("made again"))
    second = CaptionScorer(cell.references, METRICS, tmp_path)
    assert second.references.tokens == first.references.tokens
    assert second.references.image_ids == first.references.image_ids
    assert second.score(cell.predictions) == expected


def test_other_references_another_order_or_version_are_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"a": ["a dog"], "b": ["a cat"]}
    others = [
        {"a": ["a dog"], "b": ["a bird"]},
        {"b": ["a cat"], "a": ["a dog"]},
        {"a": ["a dog", "a cat"], "b": ["x"]},
    ]
    digests = {references.digest_of(given) for given in [base, *others]}
    monkeypatch.setattr(references, "SCORER_VERSION", "other")
    assert len(digests | {references.digest_of(base)}) == 5


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 cut short", b"no archive"])
def test_a_damaged_file_is_made_again(damage: bytes, tmp_path: Path) -> None:
    cell = Captions({"a": "a dog", "b": "a cat"}, {"a": ["a dog"], "b": ["a dog", "a cat"]})
    expected = CaptionScorer(cell.references, METRICS, tmp_path).score(cell.predictions)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert CaptionScorer(cell.references, METRICS, tmp_path).score(cell.predictions) == expected
    assert path.stat().st_size > len(damage)


def test_a_file_cut_anywhere_is_made_again(tmp_path: Path) -> None:
    given = {"a": ["a dog"], "b": ["a cat"]}
    CaptionScorer(given, METRICS, tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        CaptionScorer(given, METRICS, tmp_path)
        assert path.read_bytes() == whole


def test_no_pickle_and_nothing_left_behind(tmp_path: Path) -> None:
    CaptionScorer({"a": ["a dog"], "b": ["a cat"]}, METRICS, tmp_path)
    (path,) = tmp_path.iterdir()
    with np.load(path, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt("stopped")])
def test_a_file_that_cannot_be_written_leaves_nothing_behind(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: memoryview) -> None:
        path.write_text(str(content[:3].tolist()))
        raise error

    monkeypatch.setattr(Path, "write_bytes", full)
    expected = (
        rf"No space left on device: '{tmp_path}/references-\w+\.npz'" if isinstance(error, OSError) else "stopped"
    )
    with pytest.raises(type(error), match=expected):
        CaptionScorer({"a": ["a dog"], "b": ["a cat"]}, METRICS, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_cell_tokenizes_is_its_own_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = CaptionScorer({"a": ["a dog"], "b": ["a cat"]}, METRICS)
    asked: list[list[str]] = []
    tokenize = PtbTokenizer.tokenize
    monkeypatch.setattr(
        PtbTokenizer, "tokenize", lambda self, captions: asked.append(list(captions)) or tokenize(self, captions)
    )
    scorer.score({"b": "a fish", "a": "a fox"})
    assert asked == [["a fox", "a fish"]]
    assert shared_tokenizer() is scorer._tokenizer
