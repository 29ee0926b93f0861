"""Choose the examples that a task evaluates and calibrates on, check their files, and cache prepared inputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from cachetools import LRUCache
from torch import Tensor

from mmq_sweeps.config.instantiate import find_class
from mmq_sweeps.data import images
from mmq_sweeps.data.images import Encoded, Picture, images_of, pictures_of, pixels_digest
from mmq_sweeps.grouping import grouped
from mmq_sweeps.identity.contents import content_digests
from mmq_sweeps.memory import available_bytes

# Number of unusable files named in a message and a record.
SHOWN = 3
# Most examples read of an endless reader: all are drawn and checked, by every process, before the first cell runs.
MOST_DRAWN = 100_000
# The prepared inputs of a task may take this fraction (1 in 8) of the free memory.
SHARE_OF_MEMORY = 8
# Examples apart from a calibration, by all that they depend on. A process has few of them.
_APART: LRUCache[str, list[Any]] = LRUCache(4)
Batch = TypeVar("Batch")
Inputs = TypeVar("Inputs")


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples of a reader, for evaluation and calibration.

    ``data`` is the ``_target_`` and the fields of a reader: a dataclass that also takes ``split``, ``count`` and
    ``seed``, and a sequence of examples with ``id`` and ``image``, and with ``path`` if the image is a file. Examples with
    several images or none have ``images``, and ``pictures`` that they are decoded from. Images are decoded on access and
    not cached here, so that a set of any size fits in memory.
    """

    data: dict[str, Any]
    split: str
    calibration_split: str
    allow_missing: bool

    @cached_property
    def _unusable(self) -> dict[Picture, str]:
        """Unusable images found by ``check`` and tolerated by ``allow_missing``, with the reason for each."""
        return {}

    @cached_property
    def _remarks(self) -> dict[Picture, tuple[str, ...]]:
        """Ways in which viewers may show an image differently, as far as ``check`` has looked."""
        return {}

    def remarks(self, evaluated: Sequence[Any]) -> tuple[str, ...]:
        """Say how many ``evaluated`` images a viewer may show differently from the model's input.

        ``evaluated`` are the examples behind the figure, without those left out.
        """
        pictures = _pictures(evaluated)
        counts = Counter(remark for picture in pictures for remark in self._remarks.get(picture, ()))
        return tuple(
            f"{count} of {len(pictures)} images {'has' if count == 1 else 'have'} {remark}"
            for remark, count in counts.items()
        )

    def first(self, count: int | None, apart_from: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """Yield the examples of ``split`` in order, at most ``count`` if the reader is endless.

        ``apart_from``, the ``samples`` and ``seed`` of a calibration, leaves out examples with the image of a sample.
        """
        if self._endless and count is None:
            raise ValueError(f"task.limit=null: {self._reader.__name__} has no end; choose a number")
        self._check_drawable("task.limit", count)
        if apart_from is None:
            yield from self.read(self.split, count if self._endless else None)
            return
        yield from self._apart(count, apart_from["samples"], apart_from["seed"])

    def _apart(self, count: int | None, samples: int, seed: int) -> list[Any]:
        """Return examples without those of a calibration; the tasks of a search, which differ in their range, share them."""
        asked = [self.data, self.split, self.calibration_split, count, samples, seed]
        key = json.dumps(asked, sort_keys=True, default=str)
        if key not in _APART:
            drawn = _SameImage(self.drawn({"samples": samples, "seed": seed}))
            most = None if count is None or not self._endless else count + samples
            others = (example for example in self.read(self.split, most) if example not in drawn)
            _APART[key] = list(islice(others, count if self._endless else None))
        return _APART[key]

    def drawn(self, calibration: Mapping[str, Any]) -> list[Any]:
        """Return the calibration's ``samples`` examples, drawn with its seed; raises ValueError if there are fewer."""
        count = calibration["samples"]
        self._check_drawable("calibration.samples", count)
        try:
            found = list(self.read(self.calibration_split, count, calibration["seed"]))
        except ValueError as error:
            if f"count={count}, " not in str(error):
                raise
            raise ValueError(f"calibration.samples={count}: {error}") from error
        if len(found) < count:
            raise ValueError(f"calibration.samples={count}: {self.calibration_split} has {len(found)} examples")
        return found

    def usable(self, examples: Iterable[Any]) -> list[Any]:
        """Return the examples with decodable images, as far as ``check`` has looked."""
        return [example for example in examples if not self._unusable.keys() & set(pictures_of(example) or ())]

    def check(
        self,
        evaluated: Sequence[Any],
        calibrations: Sequence[Mapping[str, Any]],
        cache: Path,
        check_samples: Callable[[Sequence[Any]], None],
    ) -> None:
        """Decode every required image once; ``cache`` stores the verdict on each file.

        ``check_samples`` gets the examples of each calibration and raises ValueError for unusable texts.

        Raises ValueError if images are unusable without ``allow_missing``, if all are, or if a calibration sample is
        unusable or also evaluated. Calibration tolerates no gaps: a unit quantized with fewer samples would be stored
        and shared.
        """
        verdicts = cache / "images.json"
        pictures = _pictures(evaluated)
        judged = images.inspect(pictures, verdicts)
        self._remarks.update({picture: verdict.remarks for picture, verdict in judged.items() if verdict.remarks})
        if found := {picture: verdict.problem for picture, verdict in judged.items() if verdict.problem is not None}:
            told = f"task.split={self.split}: {images.describe(_named(found, evaluated), len(pictures), SHOWN)}"
            if all(found.keys() & set(pictures_of(example) or ()) for example in evaluated):
                raise ValueError(f"{told}. None is left; get them again")
            if not self.allow_missing:
                raise ValueError(
                    f"{told}. Get them again, or set task.allow_missing=true to go without them, which every record says"
                )
        self._unusable.update(found)
        for calibration in calibrations:
            samples = self.drawn(calibration)
            pictures = _pictures(samples)
            if found := images.problems(pictures, verdicts):
                told = images.describe(_named(found, samples), len(pictures), SHOWN)
                raise ValueError(
                    f"task.calibration_split={self.calibration_split}: {told}. "
                    f"Get them again, or draw others than those of calibration.seed={calibration['seed']}"
                )
            check_samples(samples)
            self._check_apart(self.usable(evaluated), samples)

    def alike(self, evaluated: Sequence[Any]) -> int:
        """Return how many image files of ``evaluated`` have the contents of another one."""
        by_size = grouped((picture for example in evaluated for picture in pictures_of(example) or ()), _size)
        doubtful = [picture for same in by_size.values() if len(same) > 1 for picture in same]
        digests = _digests(doubtful)
        counts = Counter(digest for picture in doubtful if (digest := digests[picture]) is not None)
        return sum(count for count in counts.values() if count > 1)

    def missing(self, evaluated: Sequence[Any]) -> dict[str, Any]:
        """Return the record's entry on unusable images: their number, the total, and the first few; empty if none."""
        pictures = _pictures(evaluated)
        bad = {picture: self._unusable[picture] for picture in pictures if picture in self._unusable}
        if not bad:
            return {}
        named = Counter(picture.name for picture in bad)
        first = {
            # Files of one name in several folders are several images.
            picture.name
            if named[picture.name] == 1 or isinstance(picture, Encoded)
            else f"{picture.parent.name}/{picture.name}": reason
            for picture, reason in list(bad.items())[:SHOWN]
        }
        return {"images": len(bad), "of": len(evaluated), "first": first}

    def _check_apart(self, evaluated: Sequence[Any], samples: Sequence[Any]) -> None:
        # Not by id: some sets restart numbering in each split.
        same = _SameImage(evaluated)
        shared = [sample.id for sample in samples if sample in same]
        if shared:
            shown = ", ".join(shared[:SHOWN]) + (", ..." if len(shared) > SHOWN else "")
            raise ValueError(
                f"task.calibration_split={self.calibration_split}: {len(shared)} calibration samples are also "
                f"evaluated in task.split={self.split} ({shown}); choose a split apart from it"
            )

    def _check_drawable(self, key: str, count: int | None) -> None:
        if self._endless and count is not None and count > MOST_DRAWN:
            raise ValueError(
                f"{key}={count}: {self._reader.__name__} has no end, and its examples are drawn before the first cell "
                f"runs; choose at most {MOST_DRAWN}"
            )

    @property
    def _endless(self) -> bool:
        return not any(field.name == "count" and field.default is None for field in fields(self._reader))

    @property
    def _reader(self) -> Any:
        return find_class("task.data._target_", self.data["_target_"])

    def read(self, split: str, count: int | None, seed: int | None = None) -> Iterable[Any]:
        """Return the reader of ``split``; raise ValueError if it has no such fields."""
        given = {name: value for name, value in self.data.items() if name != "_target_"}
        if seed is not None:
            given["seed"] = seed
        try:
            read: Iterable[Any] = self._reader(split=split, count=count, **given)
        except TypeError as error:
            raise ValueError(f"task.data: {error}") from error
        return read


class _SameImage:
    """Set of images, compared by the size and content of files, or by the pixels of drawn images.

    An example with several images is in it if one of them is; one without images, if its id and question are.
    """

    def __init__(self, examples: Sequence[Any]) -> None:
        self._by_size = grouped(_pictures(examples), _size)
        self._others = {key for example in examples if not pictures_of(example) for key in _without_pictures(example)}

    def __contains__(self, example: Any) -> bool:
        pictures = pictures_of(example)
        if not pictures:
            return bool(self._others) and not self._others.isdisjoint(_without_pictures(example))
        return any(map(self._has, pictures))

    def _has(self, picture: Picture) -> bool:
        alike = self._by_size.get(_size(picture), [])
        if not alike:
            return False
        digests = _digests([picture, *alike])
        return digests[picture] is not None and digests[picture] in {digests[other] for other in alike}


class Prepared(Generic[Inputs]):
    """Cache of inputs prepared from batches, reused by later cells; bounded by a share of the free memory."""

    def __init__(self) -> None:
        self._made_by: tuple[object, int] | None = None
        self._kept: dict[int, tuple[Inputs, tuple[int, ...]]] = {}
        self._room = 0

    def __call__(
        self, processor: object, batches: Sequence[Batch], prepare: Callable[[Batch], Inputs]
    ) -> Iterator[tuple[Batch, Inputs]]:
        """Yield each batch with its prepared inputs, preparing the next batch while the caller works on the current.

        The processor and the length of the first batch are the cache key: if either changes, everything is prepared
        again.
        """
        made_by = (processor, len(batches[0]) if batches else 0)  # type: ignore[arg-type]
        if self._made_by is None or self._made_by[0] is not processor or self._made_by[1] != made_by[1]:
            free = available_bytes(torch.device("cpu"))
            self._made_by, self._kept = made_by, {}
            self._room = (free or 0) // SHARE_OF_MEMORY

        def made(place: int) -> Inputs:
            inputs, versions = self._kept.get(place, (None, ()))
            # PyTorch bumps a tensor's version on in-place changes, which a model might make.
            if inputs is not None and versions == tuple(tensor._version for tensor in _tensors(inputs)):
                return inputs
            inputs = prepare(batches[place])
            self._keep(place, inputs)
            return inputs

        if all(place in self._kept for place in range(len(batches))):
            yield from ((batch, made(place)) for place, batch in enumerate(batches))
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(made, 0)
            for place, batch in enumerate(batches):
                inputs = ahead.result()
                if place + 1 < len(batches):
                    ahead = pool.submit(made, place + 1)
                yield batch, inputs

    def _keep(self, place: int, inputs: Inputs) -> None:
        tensors = _tensors(inputs)
        size = sum(tensor.nbytes for tensor in tensors)
        if place in self._kept or size <= self._room:
            self._room -= 0 if place in self._kept else size
            self._kept[place] = (inputs, tuple(tensor._version for tensor in tensors))


def _tensors(inputs: Any) -> list[Tensor]:
    if isinstance(inputs, list):
        return [tensor for one in inputs for tensor in _tensors(one)]
    values = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return [value for value in values if isinstance(value, Tensor)]


def decoded(examples: Sequence[Any]) -> list[list[Any]]:
    """Return the images of each example; an example that occurs repeatedly is decoded once."""
    kept: dict[int, list[Any]] = {}
    for example in examples:
        if id(example) not in kept:
            kept[id(example)] = images_of(example)
    return [kept[id(example)] for example in examples]


def split_up(items: Sequence[Batch], size: int) -> list[Sequence[Batch]]:
    """Split ``items`` into runs of ``size``."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def _pictures(examples: Iterable[Any]) -> list[Picture]:
    return list(dict.fromkeys(picture for example in examples for picture in pictures_of(example) or ()))


def _named(found: Mapping[Picture, str], examples: Iterable[Any]) -> dict[str, str]:
    """Return ``found`` by the name of each picture, with that of the row if the reader names rows."""
    rows: dict[Picture, str] = {}
    for example in examples:
        if (where := getattr(example, "where", None)) is not None:
            rows |= {
                picture: f"{where}, {picture}" for picture in pictures_of(example) or () if isinstance(picture, Path)
            }
    return {rows.get(picture, str(picture)): reason for picture, reason in found.items()}


def _size(picture: Picture) -> int:
    """Return the bytes of a picture; -1 for a file that is not there, which ``Examples.check`` reports."""
    try:
        return picture.stat().st_size if isinstance(picture, Path) else picture.size
    except OSError:
        return -1


def _digests(pictures: Sequence[Picture]) -> dict[Picture, str | None]:
    found: dict[Picture, str | None] = {one: one.digest for one in pictures if isinstance(one, Encoded)}
    return found | content_digests(one for one in pictures if isinstance(one, Path))


def _without_pictures(example: Any) -> set[Any]:
    """Return keys that tell a drawn example from others: each image's pixels, or its id and questions if it has no image."""
    if pictures_of(example) is None and (drawn := images_of(example)):
        return set(map(pixels_digest, drawn))
    # An id that counts rows differs between splits.
    own = getattr(example, "id_of_set", example.id)
    return {(own, tuple(str(asked.question) for asked in getattr(example, "questions", ())))}
