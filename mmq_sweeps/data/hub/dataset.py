"""The reader ``HubData``: rows of a data set as items with any number of images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from PIL import Image

from mmq_sweeps.data.hub.columns import (
    ImageColumn,
    TextColumn,
    chunks,
    image_column,
    joined,
    options,
    options_of_columns,
    text,
    text_column,
    texts,
)
from mmq_sweeps.data.hub.source import Place, Source, library, opened, source_of
from mmq_sweeps.data.images import Encoded, Picture, open_image
from mmq_sweeps.data.published import check_draw, drawn
from mmq_sweeps.identity.contents import content_digest
from mmq_sweeps.identity.roles import EVALUATION, LABEL

# Fields that name columns of texts.
_TEXTS = ("id", "question", "answers", "choices", "context", "kind", "group")
# Longer texts are hardly paths, but images written as text; Linux takes no longer name.
_LONGEST_PATH, _LONGEST_NAME = 1024, 255
_SLICE = re.compile(r"(?P<name>[^\[\]]+?)\s*(?P<slice>\[[^\]]*\])?")


@dataclass(frozen=True)
class Question:
    """Question with its right answers; ``options`` and ``context`` are empty if the data set has none."""

    id: str
    question: Any
    answers: tuple[Any, ...]
    kind: str
    options: tuple[str, ...] = ()
    context: str = ""


@dataclass(frozen=True, eq=False)
class Row:
    """Item of a data set: its images, which are decoded at every access, its question and its right texts."""

    id: str
    where: str  # for a person
    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]
    references: tuple[Any, ...]
    # None: the id counts rows, the group is told by the image.
    id_of_set: str | None = None
    named_group: str | None = None

    @property
    def images(self) -> list[Image.Image]:
        return [open_image(picture) for picture in self.pictures]

    @property
    def image(self) -> Image.Image | None:
        """The first image."""
        return open_image(self.pictures[0]) if self.pictures else None

    @property
    def path(self) -> Path | None:
        """The first image's file, if it is one."""
        return next((picture for picture in self.pictures if isinstance(picture, Path)), None)

    @cached_property
    def group(self) -> str:
        """Key that rows about the same thing share: the group's column, else the images' contents, else the id."""
        if self.named_group is not None or not self.pictures:
            return self.id if self.named_group is None else self.named_group
        digests = [one.digest if isinstance(one, Encoded) else content_digest([one]) for one in self.pictures]
        return "+".join(digest[:16] for digest in digests)


@dataclass(frozen=True, kw_only=True)
class HubData:
    """Sequence of the rows of ``split``, an item each, of a data set that Hugging Face's ``datasets`` reads.

    ``path`` is a name on the Hub, with the ``revision`` (a commit) that its rows are of, or a folder: files of Parquet,
    Arrow, JSON lines or CSV named after their split (``test.jsonl``, ``test/``, ``data/test-00000-of-00002.parquet``), what
    ``save_to_disk`` wrote, folders of pictures with ``metadata.jsonl``, or a copy of a data set of the Hub with its README.
    ``name`` is the configuration, else a subfolder. ``split`` may have a range, or join several: ``train[:10%]+test[5:9]``.

    ``image`` names the column of images, or several; paths in it are relative to ``images`` (default: the folder of the
    file that names them). The other columns are texts, ``answers.text`` leads into structs, and null means none: of the
    ``id`` column, rows are counted; of ``question``, each row has only right texts, as for captions. ``choices`` is a
    column of lists, or a list of columns. ``context`` may be several columns.

    ``count`` rows are taken from the front, or drawn by ``seed`` as by the other readers. Rows are read on access.
    Raises ValueError naming the field, its value and the choices.
    """

    path: str = field(metadata=LABEL)  # ids hold the files' contents
    split: str
    name: str | None = None
    revision: str | None = None
    image: Any = "image"
    question: str | None = "question"
    answers: str | None = "answers"
    choices: Any = None
    context: Any = None
    id: str | None = None
    kind: str | None = field(default=None, metadata=EVALUATION)
    group: str | None = field(default=None, metadata=EVALUATION)
    images: str | None = field(default=None, metadata=LABEL)
    count: int | None = None
    seed: int | None = None

    known_as: ClassVar[str] = "hub"

    def __post_init__(self) -> None:
        check_draw(self.count, self.seed)
        for name in ("image", "choices", "context"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str) or _is_names(value)):
                raise ValueError(f"{name}={value!r}: give the name of a column, a list of names, or null")
        for name in ("question", "answers", "id", "kind", "group", "images"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str)):
                raise ValueError(
                    f"{name}={value!r}: give the name of {'a folder' if name == 'images' else 'a column'}, or null"
                )

    def sources(self) -> list[Path]:
        """Return the files that hold the rows; raise ValueError if a column or a split is not there."""
        return [path for part in self._parts for path in part.source.paths]

    def __len__(self) -> int:
        return len(self._chosen) if self.count is None else min(self.count, len(self._chosen))

    def __getitem__(self, index: int) -> Row:
        chosen = self._chosen[: self.count]
        return next(self._rows([chosen[index]]))

    def __iter__(self) -> Iterator[Row]:
        yield from self._rows(self._chosen[: self.count])

    @cached_property
    def _parts(self) -> list[_Part]:
        parts = [_part(self, spelled.strip()) for spelled in self.split.split("+")]
        if not any(len(part.range) for part in parts):
            self._fail("has no rows")
        return parts

    @cached_property
    def _chosen(self) -> Sequence[tuple[int, int]]:
        """Part and row of every item, in order."""
        every = [(place, row) for place, part in enumerate(self._parts) for row in part.range]
        if self.count is not None and self.count > len(every):
            self._fail(f"count={self.count}, but it has {len(every)} rows; choose 1 to {len(every)}")
        if self.seed is None:
            return every
        ids = [identity for part in self._parts for identity in part.ids()]
        return [every[index] for index in drawn(range(len(every)), self.seed, self.count, ids.__getitem__)]

    def _rows(self, chosen: Sequence[tuple[int, int]]) -> Iterator[Row]:
        for part, together in groupby(chosen, key=lambda one: one[0]):
            yield from self._parts[part].rows_at([row for _, row in together])

    def _fail(self, what: str) -> NoReturn:
        raise ValueError(f"path={self.path}, split={self.split}: {what}")


def _is_too_long(path: str) -> bool:
    return len(path) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in path.split("/"))


def _is_names(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(one, str) for one in value)


def _named(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@dataclass(frozen=True)
class _Part:
    """Rows ``range`` of one split, with the columns that ``data`` names."""

    data: HubData
    split: str
    source: Source
    table: Any
    range: range
    texts: dict[str, list[TextColumn]]
    images: list[ImageColumn]

    def ids(self) -> list[str]:
        """Return the ids of all rows in the range."""
        if self.data.id is None and not self._pictured:
            return [f"{self.split}/{row}" for row in self.range]
        return [row.id for row in self.rows_at(list(self.range))]

    def rows_at(self, places: Sequence[int]) -> Iterator[Row]:
        columns = {one.column for found in self.texts.values() for one in found} | {one.column for one in self.images}
        chosen = self.table if places == list(range(len(self.table))) else self.table.select(places)
        done = 0
        for chunk in chunks(chosen, sorted(columns)):
            try:
                values = {key: [one.values(chunk) for one in found] for key, found in self.texts.items()}
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"path={self.data.path}, split={self.split}: holds a text that is not in UTF-8 ({error}); save the file so"
                ) from error
            entries = [one.entries(chunk) for one in self.images]
            for row in range(len(chunk)):
                yield self._row(
                    places[done + row],
                    {key: [column[row] for column in found] for key, found in values.items()},
                    [column[row] for column in entries],
                )
            done += len(chunk)

    def _row(self, place: int, values: dict[str, list[Any]], entries: list[list[Any]]) -> Row:
        where = f"row {place} of {self.data.path}, split {self.split}"
        pictures = tuple(
            self._picture(where, place, column, number, entry)
            for column, found in zip(self.images, entries, strict=True)
            for number, entry in enumerate(found)
            if entry is not None
        )
        own = self._own_id(where, values["id"][0]) if values["id"] else None
        identity = own if own is not None else self._counted(place, pictures)
        answers = texts(values["answers"][0]) if values["answers"] else ()
        group = values["group"][0] if values["group"] else None
        asked: tuple[Question, ...] = ()
        if values["question"]:
            kind, context = joined(values["kind"], ", "), joined(values["context"], "\n")
            question = text(values["question"][0])
            asked = (Question(identity, question, answers, kind, self._options(where, values["choices"]), context),)
        return Row(identity, where, pictures, asked, answers, own, None if group is None else joined([group], ", "))

    def _picture(self, where: str, place: int, column: ImageColumn, number: int, entry: Any) -> Picture:
        if isinstance(entry, bool) or not isinstance(entry, int):
            if not isinstance(entry, str):
                raise ValueError(f"{where}: image={column.column} is {entry!r}, no path of an image")
            if re.match(r"[a-z]+://", entry):
                raise ValueError(
                    f"{where}: image={column.column} is the address {entry}; download its images, and give their paths"
                )
            if entry.startswith("data:") or _is_too_long(entry):
                raise ValueError(
                    f"{where}: image={column.column} is {entry[:40]!r}..., a text of {len(entry):,} characters and no path; "
                    "if it is an image in base64, write it to a file, and give its path"
                )
            path = Path(entry)
            return path if path.is_absolute() else self._folder / path
        of_list = "" if number == 0 else f" {number}"
        key = f"{self._digest}/{place}/{column.column}/{number}"
        return Encoded(f"{where}, {column.column}{of_list}", key, entry, partial(self._read, place, column, number))

    def _read(self, place: int, column: ImageColumn, number: int) -> bytes:
        return column.read(self.table.select_columns([column.column]).with_format("arrow")[place : place + 1], number)

    def _own_id(self, where: str, value: Any) -> str:
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            shown = "null" if value is None else repr(value)
            raise ValueError(f"{where}: id={self.data.id} is {shown}; each row needs a text or a whole number there")
        return str(value)

    def _counted(self, place: int, pictures: Sequence[Picture]) -> str:
        if self._pictured and pictures and isinstance(pictures[0], Path):
            return pictures[0].relative_to(self.source.folder.absolute()).as_posix()
        return f"{self.split}/{place}"

    def _options(self, where: str, values: list[Any]) -> tuple[Any, ...]:
        if not isinstance(self.data.choices, str):
            try:
                return options_of_columns(values)
            except ValueError as error:
                raise ValueError(f"{where}: choices=[{','.join(_named(self.data.choices))}]: {error}") from None
        if (found := options(values[0])) is None:
            raise ValueError(f"{where}: choices={self.data.choices} is {str(values[0])[:80]!r}, no list of texts")
        return found

    @property
    def _pictured(self) -> bool:
        """True for a folder of pictures, whose classes only their paths tell."""
        return self.source.files.kind == "imagefolder"

    @cached_property
    def _digest(self) -> str:
        return content_digest(self.source.paths)

    @cached_property
    def _folder(self) -> Path:
        """Folder that paths of images are relative to."""
        if self.data.images is not None:
            return self.source.folder / Path(self.data.images).expanduser()
        folders = {path.parent for path in self.source.paths}
        if len(folders) > 1:
            raise ValueError(
                f"path={self.data.path}, split={self.split}: its files lie in several folders, so it is not clear what the "
                "paths of images are relative to; give the folder as images"
            )
        return next(iter(folders))


def _part(data: HubData, spelled: str) -> _Part:
    """Open the split that ``spelled`` names, with or without a range, and check its columns."""
    whole = _SLICE.fullmatch(spelled)
    if whole is None:
        raise ValueError(
            f"split={data.split}: give the name of a split, with or without a range: test, test[:100], test[-10%:]"
        )
    place = Place(data.path, data.name, data.revision, whole["name"])
    source = source_of(place)
    table = opened(source, place)
    if not len(table):
        raise ValueError(f"path={data.path}, split={whole['name']}: has no rows")
    try:
        named = {key: _named(getattr(data, key)) for key in _TEXTS}
        columns = {key: [text_column(key, name, table) for name in names] for key, names in named.items()}
        images = [image_column("image", name, table) for name in _named(data.image)]
    except ValueError as error:
        raise ValueError(f"path={data.path}, split={whole['name']}: {error}") from None
    return _Part(data, whole["name"], source, table, _range(data, whole["slice"], len(table)), columns, images)


def _range(data: HubData, slice: str | None, rows: int) -> range:
    if slice is None:
        return range(rows)
    try:
        (found,) = library().ReadInstruction.from_spec(f"rows{slice}").to_absolute({"rows": rows})
    except (ValueError, AssertionError) as error:
        raise ValueError(f"split={data.split}: {' '.join(str(error).split())}; {rows} rows are there") from None
    return range(found.from_, found.to)
