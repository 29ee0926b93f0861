"""What the readers of published data sets share: examples, the choice among them, and what is checked of the files."""

from __future__ import annotations

import hashlib
import heapq
import json
import re
import shlex
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, NoReturn, TypeVar

from PIL import Image

from mmq_sweeps.data.images import SUFFIXES, open_image
from mmq_sweeps.identity.roles import LABEL


@dataclass(frozen=True)
class Pictured(ABC):
    """An image file by the set's own id; ``image`` decodes it anew at every access and keeps nothing."""

    id: str
    path: Path

    @property
    def image(self) -> Image.Image:
        """RGB; an ``ImageError`` (a ValueError) where the file is missing, truncated or no image."""
        return open_image(self.path)

    @property
    @abstractmethod
    def texts(self) -> int:
        """How many captions or questions it has."""


@dataclass(frozen=True)
class Captioned(Pictured):
    """An image with its captions as the file has them. A task says which of them are no texts, or that there are none."""

    references: tuple[Any, ...]

    @property
    def texts(self) -> int:
        return len(self.references)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question by the set's own id, what its annotators answered, and the set's own kind of question.

    Question and answers are as the file has them. A task says which of them are no texts.
    """

    id: str
    question: Any
    answers: tuple[Any, ...]
    kind: str


@dataclass(frozen=True)
class Questioned(Pictured):
    """An image with the questions about it, at least one."""

    questions: tuple[Asked, ...]

    @property
    def texts(self) -> int:
        return len(self.questions)


_COCO_SPLIT = re.compile(r"(train|val|test)20\d\d")

AnExample = TypeVar("AnExample", bound=Pictured)


@dataclass(frozen=True, kw_only=True)
class PublishedData(ABC, Generic[AnExample]):
    """A sequence of the examples of ``split``, one an image, in the order in which the published file names the images first.

    ``count`` takes the first so many, or all with None. With a ``seed`` they are drawn instead: the images of the split
    are ordered by a digest of seed and id, so a draw is the same on every platform and a smaller one is the beginning of
    a larger. ``root`` is the folder that ``python -m mmq_sweeps.data prepare`` made, or one's own in the same layout;
    the other fields are paths below it (or absolute), in which ``{split}`` stands for the split.

    The annotations are read when the first example is asked for, once a process. A ValueError says which key, folder or
    file is wrong. Images are not looked at, except that some must be there; ``images.problems`` decodes them.
    """

    root: str = field(metadata=LABEL)
    split: str
    count: int | None = None
    seed: int | None = None

    # The name under which prepare knows the set.
    prepared_as: ClassVar[str]

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name}={value!r}: choose an integer from {least}, or leave it out")
        if not self.folder.is_dir():
            raise ValueError(f"root={self.root}: there is no such folder. {self.way_out}")
        for path in self.sources():
            if not path.is_file():
                self.fail(f"{path} is missing", self.hint_of(path))

    @abstractmethod
    def sources(self) -> list[Path]:
        """The annotation files that decide what the examples are."""

    @abstractmethod
    def read(self) -> Sequence[AnExample]:
        """All examples of the split, in order; a ValueError where the annotations cannot be read."""

    def hint_of(self, path: Path) -> str:
        """What lies beside a missing annotation file, and how to get it."""
        beside = sorted(one.name for one in path.parent.glob("*.json")) if path.parent.is_dir() else []
        return (f"The folder has {', '.join(beside[:5])}. " if beside else "") + self.way_out

    def choose(self) -> list[AnExample]:
        """The examples that ``split``, ``count`` and ``seed`` choose, whether their images are there or not."""
        examples = self.read()
        if not examples:
            self.fail(f"{self.sources()[0]} has no images of it")
        self._check_ids(examples)
        if self.count is not None and self.count > len(examples):
            self.fail(f"count={self.count}, but it has {len(examples)} images; choose 1 to {len(examples)}")
        return self._drawn(examples) if self.seed is not None else list(examples[: self.count])

    @cached_property
    def examples(self) -> Sequence[AnExample]:
        """The chosen examples; a ValueError where there are too few, or where none of their images is there."""
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
    def paths(self) -> list[Path]:
        """The image files of the examples."""
        return [example.path for example in self.examples]

    @property
    def folder(self) -> Path:
        return Path(self.root).expanduser()

    @property
    def way_out(self) -> str:
        return f"To get it: python -m mmq_sweeps.data prepare {self.prepared_as} --root {shlex.quote(str(self.root))}"

    def below(self, template: str) -> Path:
        """The path that ``template`` names; a template with another field than ``{split}`` is a ValueError."""
        try:
            return self.folder / template.format(split=self.split)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"{template!r}: only {{split}} may stand in braces ({error!r})") from None

    def fail(self, what: str, hint: str = "") -> NoReturn:
        raise ValueError(f"root={self.root}, split={self.split}: {what}" + (f". {hint}" if hint else ""))

    def _drawn(self, examples: Sequence[AnExample]) -> list[AnExample]:
        def place(example: AnExample) -> bytes:
            return hashlib.sha256(f"{self.seed}/{example.id}".encode()).digest()

        return heapq.nsmallest(len(examples) if self.count is None else self.count, examples, key=place)

    def _check_ids(self, examples: Sequence[AnExample]) -> None:
        """Fail where two images, or two questions, have one id: the last would stand for both."""
        named = [("image", example.id, example) for example in examples]
        questions = (example for example in examples if isinstance(example, Questioned))
        named += [("question", asked.id, example) for example in questions for asked in example.questions]
        if len({(noun, identity) for noun, identity, _ in named}) == len(named):
            return
        first: dict[tuple[str, str], AnExample] = {}
        for noun, identity, example in named:
            other = first.setdefault((noun, identity), example)
            if other is not example or noun == "question":
                self.fail(
                    f"two {noun}s have the id {identity!r}, of {other.path} and {example.path}; each needs its own"
                )

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


def is_other_split(split: str, named: str) -> bool:
    """Whether ``split`` is one of COCO's own and ``named`` another of them; a split of one's own may hold any images."""
    return bool(_COCO_SPLIT.fullmatch(split) and _COCO_SPLIT.fullmatch(named) and split != named)


def stamped(path: Path) -> tuple[Path, int, int]:
    """A file with its size and the time of its last change, which nobody can set: what a cache of its content goes by."""
    status = path.stat()
    return path, status.st_size, status.st_ctime_ns


def read_json(
    path: Path, expected: str, hook: Callable[[dict[str, Any]], Any] | None = None, keyed_by_id: bool = False
) -> dict[str, Any]:
    """The object in a JSON file; ``hook`` turns each object inside it into what is kept. ``expected`` is for the error.

    Where the object is ``keyed_by_id``, a key that occurs twice is an error: JSON would keep the last.
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
    except KeyError as error:
        raise ValueError(f"{path}: an entry has no {error}; expected {expected}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected {expected}")
    return content


def listed(path: Path, content: Mapping[str, Any], key: str, expected: str) -> list[Any]:
    """The list under ``key``; a ValueError names the keys that are there instead."""
    found = content.get(key)
    if not isinstance(found, list):
        raise ValueError(f"{path}: has no list {key!r} but {_keys(content)}; expected {expected}")
    return found


def fields(path: Path, where: str, entry: Any, keys: Sequence[str], expected: str) -> list[Any]:
    """The values of ``keys`` in one entry; a ValueError names the keys that are there instead."""
    if not isinstance(entry, dict) or any(key not in entry for key in keys):
        there = _keys(entry) if isinstance(entry, dict) else repr(entry)[:80]
        missing = next((key for key in keys if not isinstance(entry, dict) or key not in entry), "")
        raise ValueError(f"{path}: {where} has no {missing!r} but {there}; expected {expected}")
    return [entry[key] for key in keys]


def check_id(path: Path, where: str, identity: Any) -> int | str:
    """``identity``, if it can be one: a whole number or text. A ValueError says where it stands."""
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise ValueError(f"{path}: {where} has the id {json.dumps(identity)}, which is neither a whole number nor text")
    return identity


def _keys(entry: Mapping[str, Any]) -> str:
    shown = ", ".join(list(map(str, entry))[:8])
    return shown if shown else "nothing"
