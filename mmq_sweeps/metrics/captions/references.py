"""A task's references: tokenized and counted once, cached on disk, read by every cell, job and node.

The file name holds a digest of the references and of the tokenizer's and scorer's versions, so any change makes a new
file. The format is npz without pickle, written to a temporary name and renamed: readers never see a partial file.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.captions.ngrams import CandidateNgrams, ReferenceNgrams
from mmq_sweeps.metrics.captions.tokenizer import TOKENIZER_VERSION, PtbTokenizer

SCORER_VERSION = "1"


@dataclass(frozen=True)
class References:
    """Tokenized references of ``N`` images in the task's order, and their n-grams."""

    image_ids: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    ngrams: ReferenceNgrams


@dataclass(frozen=True)
class Candidates:
    """One cell's tokenized captions in the order of the references, and their n-grams, counted on first use."""

    tokens: tuple[str, ...]
    references: References

    @functools.cached_property
    def ngrams(self) -> CandidateNgrams:
        """N-grams of the captions, matched with those of the references."""
        return CandidateNgrams.of(self.tokens, self.references.ngrams)


def read_references(
    references: Mapping[str, Sequence[str]], tokenizer: PtbTokenizer, cache_dir: Path | None
) -> References:
    """Load the references from ``cache_dir``, or tokenize, count and cache them there.

    Raises ValueError if there are no images, or an image has no references.
    """
    _check(references)
    path = cache_dir / f"references-{digest_of(references)}.npz" if cache_dir is not None else None
    stored = _load(path, references) if path is not None else None
    if stored is not None:
        return stored
    made = _make(references, tokenizer)
    if path is not None:
        _save(path, made)
    return made


def digest_of(references: Mapping[str, Sequence[str]]) -> str:
    """Return 32 hexadecimal digits of the references, in order, and of the tokenizer's and scorer's versions."""
    content = [SCORER_VERSION, TOKENIZER_VERSION, [[image, list(texts)] for image, texts in references.items()]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _check(references: Mapping[str, Sequence[str]]) -> None:
    if not references:
        raise ValueError("There are no references to score against")
    for image, texts in references.items():
        if isinstance(texts, str) or not texts:
            raise ValueError(f"Image {image!r} needs a list of at least one reference, not {texts!r}")


def _make(references: Mapping[str, Sequence[str]], tokenizer: PtbTokenizer) -> References:
    flat = iter(tokenizer.tokenize([text for texts in references.values() for text in texts]))
    tokens = tuple(tuple(next(flat) for _ in texts) for texts in references.values())
    return References(tuple(references), tokens, ReferenceNgrams.of(tokens))


def _save(path: Path, references: References) -> None:
    grams, content = references.ngrams, io.BytesIO()
    np.savez(
        content,
        tokens=_text(references.tokens),
        vocabulary=_text(list(grams.vocabulary)),
        rows=grams.rows,
        counts=grams.counts.astype(np.uint16 if grams.counts.max(initial=0) < 2**16 else np.int64),
        lengths=grams.lengths,
        cells=grams.cells,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_bytes(content.getbuffer())
        temporary.chmod(0o644)  # others on a shared disk read it, whatever this user's umask
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _load(path: Path, references: Mapping[str, Sequence[str]]) -> References | None:
    """Load a file of ``_save``; None if it is missing or cut short (it is then made again)."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            tokens = tuple(tuple(sentences) for sentences in _parse(file["tokens"]))
            vocabulary = {gram: index for index, gram in enumerate(_parse(file["vocabulary"]))}
            arrays = {name: file[name].astype(np.int64) for name in ("rows", "counts", "lengths", "cells")}
    except (FileNotFoundError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None
    return References(tuple(references), tokens, ReferenceNgrams(vocabulary=vocabulary, **arrays))


def _text(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def _parse(array: NDArray[np.uint8]) -> Any:
    return json.loads(array.tobytes())
