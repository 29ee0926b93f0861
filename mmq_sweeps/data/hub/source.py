"""Get the files of a split from a folder, the Hub's cache or the Hub, and open them as a table."""

from __future__ import annotations

import glob
import importlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    list_repo_files,
    snapshot_download,
)

from mmq_sweeps.data.hub.layout import CARD, SAVED, STATE, Files, files_of, head_of, splits_of
from mmq_sweeps.data.published import stamped
from mmq_sweeps.identity.contents import content_digest
from mmq_sweeps.identity.hub import COMMIT, TransportError, cached_commit, reachable

logger = logging.getLogger(__name__)
HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
# Name of the split inside the copy that ``datasets`` makes; the real one need not be a name that it takes.
_SPLIT = "train"


@dataclass(frozen=True)
class Place:
    """Where a data set is: a folder of the user's, or a commit of the Hub."""

    path: str
    name: str | None
    revision: str | None
    split: str

    @property
    def local(self) -> Path | None:
        folder = Path(self.path).expanduser()
        return folder if folder.exists() else None


@dataclass(frozen=True)
class Source:
    """Files of a split on this machine."""

    folder: Path
    files: Files

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in self.files.names]


def source_of(place: Place) -> Source:
    """Return the files of a split, downloading them if the Hub has them and they are not in its cache.

    Raises ValueError naming the field that is wrong, with its choices.
    """
    if (folder := place.local) is not None:
        return Source(folder, _in_folder(place, folder))
    if not HUB_NAME.fullmatch(place.path):
        raise ValueError(f"path={place.path}: there is no such folder, and it is no name on the Hub (OWNER/NAME)")
    return _of_hub(place)


def _in_folder(place: Place, folder: Path) -> Files:
    if not folder.is_dir():
        raise ValueError(f"path={place.path}: is a file; give its folder ({folder.parent}), and its name as the split")
    if place.revision is not None:
        raise ValueError(
            f"revision={place.revision}: path={place.path} is a folder here, which has no revisions; leave it null, or run "
            "the command elsewhere if the Hub's data set is meant"
        )
    try:
        return _files_in(folder, place)
    except ValueError as error:
        raise ValueError(f"path={place.path}, {error}") from None


def _files_in(folder: Path, place: Place) -> Files:
    return files_of(_names(folder), _text(folder / CARD), place.name, place.split)


def _of_hub(place: Place) -> Source:
    commit = place.revision
    if commit is None or not COMMIT.fullmatch(commit):
        raise ValueError(_unpinned(place))
    folder = Path(constants.HF_HUB_CACHE, f"datasets--{place.path.replace('/', '--')}", "snapshots", commit)
    problem = ""
    if folder.is_dir():
        try:
            return Source(folder, _files_in(folder, place))
        except ValueError as error:
            problem = f" (of its cached files: {error})"
    if not reachable():
        raise ValueError(_absent(place, problem))
    try:
        return _downloaded(place, commit)
    except (OSError, TransportError) as error:
        raise ValueError(f"path={place.path}, revision={commit}: {' '.join(str(error).split())}") from error


def _downloaded(place: Place, commit: str) -> Source:
    asked: dict[str, Any] = {"repo_type": "dataset", "revision": commit}
    names = list_repo_files(place.path, **asked)
    card = _text(Path(hf_hub_download(place.path, CARD, **asked))) if CARD in names else ""
    try:
        files = files_of(names, card, place.name, place.split)
    except ValueError as error:
        raise ValueError(f"path={place.path}, {error}") from None
    logger.info("downloading %d files of %s", len(files.names), place.path)
    states = {Path(name).with_name(STATE).as_posix() for name in files.names if files.kind == SAVED}
    wanted = [glob.escape(name) for name in (CARD, *files.names, *states) if name in names]
    return Source(Path(snapshot_download(place.path, allow_patterns=wanted, **asked)), files)


def _unpinned(place: Place) -> str:
    named = "null" if place.revision is None else place.revision
    known = _current(place)
    remedy = (
        f"task.data.revision={known}, its commit now"
        if known
        else (
            f"the first word of `git ls-remote https://huggingface.co/datasets/{place.path} {place.revision or 'HEAD'}`"
        )
    )
    return (
        f"revision={named}: path={place.path} is no folder here but a name on the Hub, whose rows may change; pin the commit, "
        f"40 hexadecimal digits: {remedy}"
    )


def _current(place: Place) -> str | None:
    """Return the commit of a branch as the cache knows it, else as the Hub says."""
    if (known := cached_commit(place.path, place.revision, "datasets")) is not None or not reachable():
        return known
    asked = hf_hub_url(place.path, CARD, repo_type="dataset", revision=place.revision or "main")
    try:
        return get_hf_file_metadata(asked).commit_hash
    except (OSError, ValueError, TransportError):
        return None


def _absent(place: Place, problem: str) -> str:
    offline = "HF_HUB_OFFLINE forbids asking the Hub"
    why = offline if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    return (
        f"path={place.path}: no folder here, not (wholly) in the cache {constants.HF_HUB_CACHE}{problem}, and {why}; either "
        f"run `hf download --repo-type dataset {place.path} --revision {place.revision}` where there is network, and set "
        "HF_HOME to the folder it fills and HF_HUB_OFFLINE=1, or give a folder that holds the data set as task.data.path=FOLDER"
    )


def splits_in(folder: Path, name: str | None) -> list[str]:
    """Return the splits of a data set on this machine."""
    return splits_of(_names(folder), _text(folder / CARD), name)


def _names(folder: Path) -> list[str]:
    return [
        Path(parent, name).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder, followlinks=True)
        for name in files
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def opened(source: Source, place: Place) -> Any:
    """Return the split as a ``datasets.Dataset`` whose images are not decoded.

    ``datasets`` makes an Arrow copy in its own cache, here by the files' contents: by itself it goes by their times.
    """
    stamps = tuple(map(stamped, source.paths))
    rows = _opened(source.folder, source.files.kind, tuple(sorted(source.files.options.items())), stamps)
    if (told := _told_rows(_text(source.folder / CARD), place)) not in (None, len(rows)):
        raise ValueError(
            f"path={place.path}, split={place.split}: its {CARD} says {told} rows, and the files here have {len(rows)}; get "
            "the others as well"
        )
    return rows


@lru_cache(maxsize=8)
def _opened(
    folder: Path, kind: str, options: tuple[tuple[str, Any], ...], stamps: tuple[tuple[Path, int, int], ...]
) -> Any:
    datasets = library()
    paths = [path for path, *_ in stamps]
    with _quiet(datasets):
        try:
            if kind == SAVED:
                return datasets.load_from_disk(str(paths[0].parent))
            cache = Path(datasets.config.HF_DATASETS_CACHE, "mmq-sweeps", content_digest(paths))
            # It takes each for a pattern.
            files = {_SPLIT: [glob.escape(str(path.absolute())) for path in paths]}
            given = dict(options) | (_all_texts(datasets, paths[0], dict(options)) if kind == "csv" else {})
            return datasets.load_dataset(kind, data_files=files, split=_SPLIT, cache_dir=str(cache), **given)
        # The last of an empty file of JSON lines.
        except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError, StopIteration) as error:
            if isinstance(error, StopIteration):
                raise ValueError(f"{folder}: {', '.join(path.name for path in paths)}: has no rows") from None
            reason = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"{folder}: cannot be read as {kind}: {reason}") from error


def _all_texts(datasets: Any, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options to read all columns of CSV as they are written: ``007`` is no number, ``None`` an answer."""
    import pandas as pd

    names = pd.read_csv(path, nrows=0, **options).columns
    columns = datasets.Features({str(name): datasets.Value("string") for name in names})
    return {"features": columns, "keep_default_na": False, "na_values": [""]}


def library() -> Any:
    """Import ``datasets``; raise ValueError with the command that installs it."""
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise ValueError(
            "HubData needs the package datasets; install it with pip install 'mmq-sweeps[hub]' (in a checkout: "
            "pip install -e '.[hub]')"
        ) from error


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _told_rows(card: str, place: Place) -> int | None:
    """Return how many rows the README says that the split has."""
    infos = head_of(card).get("dataset_info")
    infos = infos if isinstance(infos, list) else [infos]
    infos = [one for one in infos if isinstance(one, Mapping)]
    own = [one for one in infos if place.name is None or str(one.get("config_name", place.name)) == place.name]
    found = (
        [one for info in own for one in info.get("splits") or () if one.get("name") == place.split]
        if len(own) == 1
        else []
    )
    return found[0].get("num_examples") if len(found) == 1 else None
