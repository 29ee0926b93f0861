"""Find the files of each split of a data set, from the names of its files and its README alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from mmq_sweeps.grouping import grouped

# Builder of ``datasets`` for each kind of file.
KINDS = {
    ".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".arrow": "arrow",
}  # fmt: skip
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# A data set written by ``save_to_disk``.
SAVED, STATE = "saved", "state.json"
PICTURE_FOLDER = "imagefolder"
CARD = "README.md"
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
# Describe data sets and hold no rows.
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", STATE)
# Names of a folder of pictures that say it is a split, not a class.
_SPLITS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation")
# Keys of a configuration in a README that do not go to the builder.
_OF_CARD = ("config_name", "data_files", "data_dir", "default", "version", "description")


@dataclass(frozen=True)
class Files:
    """Files of a split, relative to the data set's folder, and the builder of ``datasets`` with its options."""

    names: tuple[str, ...]
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)


def files_of(names: Iterable[str], card: str, name: str | None, split: str) -> Files:
    """Return the files of ``split`` of the configuration ``name``, from the ``names`` of all files and the README.

    Raises ValueError, listing the choices, if there is no such configuration or split, or if the split's files are of two
    kinds or incomplete.
    """
    every = _shown(names)
    splits, options = _splits(every, card, name)
    if not splits:
        raise ValueError(
            f"split={split}: no file of rows is there; put Parquet, Arrow, JSON lines, CSV or pictures there, named after "
            f"their split ({split}.jsonl, {split}/)"
        )
    if split not in splits:
        raise ValueError(f"split={split}: there is no such split; the splits there: {', '.join(sorted(splits))}")
    found = splits[split]
    if not found:
        raise ValueError(f"split={split}: none of its files is here; get the data set again")
    kinds = (
        {PICTURE_FOLDER}
        if _is_picture_folder(found)
        else {KINDS[_suffix(one)] for one in found if _suffix(one) in KINDS}
    )
    if len(kinds) != 1:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        what = f"of {len(kinds)} kinds ({shown})" if kinds else f"no Parquet, Arrow, JSON or CSV ({shown})"
        raise ValueError(
            f"split={split}: its files are {what}; keep files of one kind in the folder, the others elsewhere"
        )
    (kind,) = kinds
    _check_shards(found)
    if kind == "csv" and {_suffix(one) for one in found} == {".tsv"}:
        options = {"sep": "\t", **options}
    if kind == "arrow" and any(str(PurePosixPath(one).with_name(STATE)) in every for one in found):
        kind = SAVED
    kept = tuple(one for one in found if kind == PICTURE_FOLDER or _suffix(one) in KINDS)
    return Files(kept, kind, options)


def splits_of(names: Iterable[str], card: str, name: str | None) -> list[str]:
    """Return the splits of the configuration ``name``; raise ValueError, listing the choices, if there is none."""
    return sorted(_splits(_shown(names), card, name)[0])


def _shown(names: Iterable[str]) -> list[str]:
    return sorted(one for one in names if not any(part.startswith(".") for part in PurePosixPath(one).parts))


def _splits(names: Sequence[str], card: str, name: str | None) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Return the files of each split, and the options of their builder."""
    configured = _configurations(card)
    return _by_card(names, configured, name) if configured else (_by_name(names, name), {})


def head_of(card: str) -> dict[str, Any]:
    """Return the fields in a README's head; raise ValueError if it is no YAML."""
    head = re.match(r"\s*---\s*\n(.*?)\n---", card, flags=re.DOTALL)
    try:
        content = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise ValueError(f"the head of its {CARD} is no YAML ({' '.join(str(error).split())})") from None
    return content if isinstance(content, dict) else {}


def _configurations(card: str) -> list[Mapping[str, Any]]:
    """Return the ``configs`` of a README's head that name files or folders."""
    configs = head_of(card).get("configs")
    found = configs if isinstance(configs, list) else []
    return [one for one in found if isinstance(one, dict) and ("data_files" in one or "data_dir" in one)]


def _by_card(
    names: Sequence[str], configs: Sequence[Mapping[str, Any]], name: str | None
) -> tuple[dict[str, list[str]], dict[str, Any]]:
    known = {str(one.get("config_name", "default")): one for one in configs}
    chosen = name
    if name is None:
        defaults = [one for one, config in known.items() if config.get("default") or one == "default"]
        chosen = defaults[0] if defaults else next(iter(known)) if len(known) == 1 else None
    if chosen not in known:
        raise ValueError(f"name={name or 'null'}: choose one of its configurations: {', '.join(known)}")
    config = known[chosen]
    options = {key: value for key, value in config.items() if key not in _OF_CARD}
    folder = str(config.get("data_dir", "")).strip("/")
    inside = [one for one in names if not folder or one.startswith(f"{folder}/")]
    if "data_files" not in config:
        return _by_name(
            [one.removeprefix(f"{folder}/") for one in inside], None, f"{folder}/" if folder else ""
        ), options
    patterns = _patterns(config["data_files"])
    splits = {
        split: [one for one in inside if any(_matches(pattern, one, folder) for pattern in given)]
        for split, given in patterns.items()
    }
    return splits, options


def _patterns(given: Any) -> dict[str, list[str]]:
    """Return the patterns of each split; without splits they are of ``train``, as in ``datasets``."""
    if isinstance(given, dict):
        return {str(split): _listed(path) for split, path in given.items()}
    if isinstance(given, list) and all(isinstance(one, dict) for one in given):
        return {str(one.get("split", "train")): _listed(one.get("path", [])) for one in given}
    return {"train": _listed(given)}


def _listed(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _matches(pattern: str, name: str, folder: str) -> bool:
    whole = f"{folder}/{pattern}" if folder else pattern
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", whole.removeprefix("./"))
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(wild.get(part, re.escape(part)) for part in parts), name) is not None


def _by_name(names: Sequence[str], name: str | None, before: str = "") -> dict[str, list[str]]:
    """Return the files of each split as their names say: ``test.jsonl``, ``data/test-00000-of-00002.parquet``, ``test/``."""
    if name is not None:
        inside = [one.removeprefix(f"{name}/") for one in names if one.startswith(f"{name}/")]
        if not inside:
            folders = sorted({PurePosixPath(one).parts[0] for one in names if "/" in one})
            raise ValueError(
                f"name={name}: there is no such folder in it; the folders there: {', '.join(folders) or 'none'} (name=null "
                "reads the files that are in none)"
            )
        return _by_name(inside, None, f"{before}{name}/")
    tables = [one for one in names if _suffix(one) in KINDS and PurePosixPath(one).name not in _NO_ROWS]
    pictures = [one for one in names if _suffix(one) in PICTURES]
    if pictures and all(map(_is_metadata, tables)):
        found = _picture_splits([*tables, *pictures], labelled=not tables)
    else:
        found = grouped(tables, lambda one: _split_of(one, saved=STATE in names))
    return {split: [before + one for one in files] for split, files in found.items()}


def _split_of(name: str, saved: bool) -> str:
    if saved:
        return "train"  # ``save_to_disk`` of a single split.
    path = PurePosixPath(name.removeprefix("data/"))
    return path.parts[0] if len(path.parts) > 1 else _SHARD.sub("", path.stem)


def _picture_splits(names: Sequence[str], labelled: bool) -> dict[str, list[str]]:
    """Return the splits of folders of pictures; folders that are none of the usual splits are classes of ``train``."""
    tops = {PurePosixPath(one).parts[0] for one in names if "/" in one}
    loose = any("/" not in one for one in names)
    if loose or not tops or (labelled and not tops & set(_SPLITS)):
        return {"train": list(names)}
    return {top: [one for one in names if one.startswith(f"{top}/")] for top in tops}


def _is_picture_folder(names: Sequence[str]) -> bool:
    return any(_suffix(one) in PICTURES for one in names) and all(
        _is_metadata(one) for one in names if _suffix(one) in KINDS
    )


def _is_metadata(name: str) -> bool:
    return PurePosixPath(name).stem == "metadata"


def _check_shards(names: Sequence[str]) -> None:
    """Raise ValueError if a file says that it is one of more than there are."""
    there: dict[tuple[str, int], set[int]] = {}
    for one in names:
        if shard := _SHARD.search(PurePosixPath(one).stem):
            whole = (one[: one.rfind(shard[0])], int(shard[2]))
            there.setdefault(whole, set()).add(int(shard[1]))
    for (stem, count), found in there.items():
        if len(found) < count:
            raise ValueError(f"{stem}-*: {len(found)} of its {count} files are here; get the others as well")


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
