"""Base of the readers of published data sets: examples, sampling, and checks of the annotation files."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from PIL import Image

from mmq_sweeps.data.images import SUFFIXES, open_image
from mmq_sweeps.identity.roles import LABEL


@dataclass(frozen=True)
class Pictured(ABC):
    """Image file with the set's own id; ``image`` decodes it at every access and caches nothing."""

    id: str
    path: Path

    @property
    def image(self) -> Image.Image:
        """RGB picture; raises ImageError (a ValueError) if the file is missing, truncated or not an image."""
        return open_image(self.path)

    @property
    @abstractmethod
    def texts(self) -> int:
        """Number of captions or questions."""


@dataclass(frozen=True)
class Captioned(Pictured):
    """Image with its captions as stored in the file.

    Tasks report captions that are not text, and images without any.
    """

    references: tuple[Any, ...]

    @property
    def texts(self) -> int:
        return len(self.references)


@dataclass(frozen=True, slots=True)
class Asked:
    """Question with the set's own id, its annotators' answers, and the set's own kind of question.

    Question and answers are as stored in the file; tasks report those that are not text.
    """

    id: str
    question: Any
    answers: tuple[Any, ...]
    kind: str


@dataclass(frozen=True)
class Questioned(Pictured):
    """Image with the questions about it, at least one."""

    questions: tuple[Asked, ...]

    @property
    def texts(self) -> int:
        return len(self.questions)


_COCO_SPLIT = re.compile(r"(train|val|test)20\d\d")

AnExample = TypeVar("AnExample", bound=Pictured)
AnItem = TypeVar("AnItem")


@dataclass(frozen=True, kw_only=True)
class PublishedData(ABC, Generic[AnExample]):
    """Sequence of the examples of ``split``, one per image, in the order in which the file first names each image.

    ``count`` limits the examples to the first so many; None takes all. With ``seed`` they are sampled instead: images
    are ordered by a digest of seed and id, so a sample is the same on every platform, and a smaller sample is a prefix
    of a larger one.

    ``root`` is the folder that ``python -m mmq_sweeps.data prepare`` made, or another in the same layout. The other
    fields are paths below it (or absolute) in which ``{split}`` stands for the split.

    Annotations are read on first access, once per process. Raises ValueError naming the wrong key, folder or file.
    Images are not opened, but at least one must exist; ``images.problems`` decodes them.
    """

    root: str = field(metadata=LABEL)
    split: str
    count: int | None = None
    seed: int | None = None

    # Name of the set in ids and for the prepare command, and the fields with its annotation files.
    known_as: ClassVar[str]
    annotated_by: ClassVar[tuple[str, ...]] = ("annotations",)

    def __post_init__(self) -> None:
        check_draw(self.count, self.seed)
        if not self.folder.is_dir():
            raise ValueError(f"root={self.root}: there is no such folder. {self.way_out}")
        for path in self.sources():
            if not path.is_file():
                self.fail(f"{path} is missing", self.hint_of(path))

    def sources(self) -> list[Path]:
        """Return the annotation files that determine the examples."""
        return [self.below(key) for key in self.annotated_by]

    @abstractmethod
    def read(self) -> Sequence[AnExample]:
        """Return all examples of the split, in order; raises ValueError if the annotations cannot be read."""

    def hint_of(self, path: Path) -> str:
        """List the files beside a missing annotation file, and say how to get it."""
        beside = sorted(one.name for one in path.parent.glob("*.json")) if path.parent.is_dir() else []
        return (f"The folder has {', '.join(beside[:5])}. " if beside else "") + self.way_out

    def choose(self) -> list[AnExample]:
        """Return the examples that ``split``, ``count`` and ``seed`` select, whether or not their images exist."""
        examples = self.read()
        if not examples:
            self.fail(f"{self.sources()[0]} has no images of it")
        self._check_ids(examples)
        if self.count is not None and self.count > len(examples):
            self.fail(f"count={self.count}, but it has {len(examples)} images; choose 1 to {len(examples)}")
        if self.seed is None:
            return list(examples[: self.count])
        return drawn(examples, self.seed, self.count, lambda example: example.id)

    @cached_property
    def examples(self) -> Sequence[AnExample]:
        """Selected examples; raises ValueError if there are too few, or if none of their images exists."""
        chosen = self.choose()
        if not any(example.path.is_file() for example in chosen):
            self._tell_absent(chosen)
        return chosen

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> AnExample:
        return self.examples[index]

    def __iter__(self) -> Iterator[AnExample]:
        return iter(self.examples)

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def way_out(self) -> str:
        return f"To get it: python -m mmq_sweeps.data prepare {self.known_as} --root {shlex.quote(str(self.root))}"

    def below(self, key: str) -> Path:
        """Return the path below ``root`` that the field ``key`` holds, with ``{split}`` filled in."""
        return self.folder / self._filled(key)

    def files_of(self, images: Iterable[int | str], key: str = "file_names") -> dict[int | str, Path]:
        """Return the file in ``images`` of each image id, as the template in the field ``key`` names it.

        Raises ValueError if the template does not fit an id, or names one file for two.
        """
        folder = self.below("images")
        names = {image: self._filled(key, id=image) for image in images}
        first: dict[str, int | str] = {}
        for image, name in names.items():
            other = first.setdefault(name, image)
            # Ids that are spelled alike are reported by _check_ids.
            if str(other) != str(image):
                raise ValueError(
                    f"{key}={getattr(self, key)!r} names one file, {name}, for the images {other} and {image}; it needs "
                    "the whole {id}"
                )
        return {image: folder / name for image, name in names.items()}

    def _filled(self, key: str, **values: int | str) -> str:
        """Return the template in the field ``key`` with ``{split}`` and ``values`` filled in."""
        template, values = getattr(self, key), {"split": self.split, **values}
        try:
            filled: str = template.format(**values)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            given = " and ".join(f"{name}={value!r}" for name, value in values.items())
            allowed = " and ".join(f"{{{name}}}" for name in values)
            raise ValueError(
                f"{key}={template!r} does not fit {given} ({error!r}); only {allowed} may stand in braces"
            ) from None
        return filled

    def fail(self, what: str, hint: str = "") -> NoReturn:
        raise ValueError(f"root={self.root}, split={self.split}: {what}" + (f". {hint}" if hint else ""))

    def _check_ids(self, examples: Sequence[AnExample]) -> None:
        """Fail if two images, or two questions, share an id: the last would stand for both."""
        named = [(("image", example.id), example.path) for example in examples]
        questions = (example for example in examples if isinstance(example, Questioned))
        named += [(("question", asked.id), example.path) for example in questions for asked in example.questions]
        counts = Counter(key for key, _ in named)
        for noun, identity in (key for key, count in counts.items() if count > 1):
            first, second, *_ = (path for key, path in named if key == (noun, identity))
            self.fail(f"two {noun}s have the id {identity!r}, of {first} and {second}; each needs its own")

    def _tell_absent(self, chosen: Sequence[AnExample]) -> NoReturn:
        folders = sorted({example.path.parent for example in chosen})
        named = f"{len(chosen)} images, the first {chosen[0].path.name}"
        for folder in folders:
            there = sum(1 for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else 0
            if there:
                annotations = ", ".join(path.name for path in self.sources())
                self.fail(
                    f"{folder} has {there} images, but none of those that {annotations} names ({named}): "
                    "these are annotations of another split or set"
                )
        shown = ", ".join(str(folder) for folder in folders)
        self.fail(f"there are no images in {shown}; expected {named}", self.way_out)


def check_draw(count: object, seed: object) -> None:
    """Raise ValueError unless the fields ``count`` and ``seed`` of a reader are whole numbers or None."""
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ValueError(f"{name}={value!r}: choose an integer from {least}, or leave it out")


def drawn(items: Sequence[AnItem], seed: int, count: int | None, identity: Callable[[AnItem], str]) -> list[AnItem]:
    """Return the first ``count`` items, or all, in the order of digests of ``seed`` and their ``identity``."""

    def place(item: AnItem) -> bytes:
        return hashlib.sha256(f"{seed}/{identity(item)}".encode()).digest()

    return heapq.nsmallest(len(items) if count is None else count, items, key=place)


def is_other_split(split: str, named: str) -> bool:
    """Return whether ``split`` and ``named`` are two different splits of COCO's own.

    A split under any other name may hold any images.
    """
    return bool(_COCO_SPLIT.fullmatch(split) and _COCO_SPLIT.fullmatch(named) and split != named)


def stamped(path: Path) -> tuple[Path, int, int]:
    """Return a file with its size and ctime, as the cache key of its content.

    Programs can set a file's mtime but not its ctime.
    """
    status = path.stat()
    return path, status.st_size, status.st_ctime_ns


def read_json(
    path: Path, expected: str, hook: Callable[[dict[str, Any]], Any] | None = None, keyed_by_id: bool = False
) -> dict[str, Any]:
    """Return the object in a JSON file; ``hook`` replaces each nested object, ``expected`` completes error messages.

    With ``keyed_by_id``, a repeated key is an error; ``json`` would silently use the last.
    """

    def keep(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise ValueError(f"{path}: has {twice!r} twice; each needs its own id")
        return found if hook is None else hook(found)

    try:
        content = (
            json.loads(path.read_bytes(), object_pairs_hook=keep)
            if keyed_by_id
            else json.loads(path.read_bytes(), object_hook=hook)
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is cut short or no JSON ({error}); get it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected {expected}")
    return content


def listed(path: Path, content: Mapping[str, Any], key: str, expected: str) -> list[Any]:
    """Return the list under ``key``; raises ValueError naming the keys found instead."""
    found = content.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{path}: has no list {key!r} but {_keys(content)}; expected {expected}")
    return found


def fields(path: Path, where: str, entry: Any, keys: Sequence[str], expected: str) -> list[Any]:
    """Return the values of ``keys`` in one entry; raises ValueError naming the keys found instead."""
    known = entry if isinstance(entry, dict) else {}
    if missing := [key for key in keys if key not in known]:
        raise ValueError(f"{path}: {where} has no {missing[0]!r} but {_keys(entry)}; expected {expected}")
    return [entry[key] for key in keys]


def check_id(path: Path, where: str, identity: Any) -> int | str:
    """Return ``identity`` if it is an integer or text; else raise ValueError naming its place in the file."""
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise ValueError(f"{path}: {where} has the id {json.dumps(identity)}, which is neither a whole number nor text")
    return identity


def check_text(path: Path, where: str, key: str, value: Any) -> str:
    """Return ``value`` if it is text; else raise ValueError naming its key and its place in the file."""
    if not isinstance(value, str):
        raise ValueError(f"{path}: {where} has the {key} {json.dumps(value)[:80]}, which is not text")
    return value


def _keys(entry: Any) -> str:
    return ", ".join(list(map(str, entry))[:8]) or "nothing" if isinstance(entry, dict) else repr(entry)[:80]
