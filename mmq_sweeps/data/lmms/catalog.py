"""Find a task among lmms-eval's yaml files and read its configuration, without importing the library.

The rules are those of ``lmms_eval.tasks.TaskManager`` and ``lmms_eval.utils.load_yaml_config``; a function stays the name
that its yaml gives it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mmq_sweeps.data.lmms import installed

SHOWN = 8
_IGNORED = ("__pycache__", ".ipynb_checkpoints")
_KEY = re.compile(r"^[\"']?(task|group|tag|class)[\"']?[ \t]*:[ \t]*(.*?)[ \t]*$((?:\n[ \t]*-[ \t].*$)*)", re.MULTILINE)
# A group has a list of tasks; a task that names its group has one.
_ONE_TASK = re.compile(r"^[\"']?task[\"']?[ \t]*:[ \t]*[^\s\[#]", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A function that a yaml in ``folder`` names as ``utils.doc_to_text``."""

    path: str
    folder: Path

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def file(self) -> Path | None:
        """The file of its module: beside the yaml, else in the library; None for a module from elsewhere."""
        module = self.path.rpartition(".")[0]
        beside = self.folder / f"{module}.py"
        return beside if beside.is_file() else module_file(module)


@dataclass(frozen=True)
class Entry:
    """Meaning of a name: a ``task``, a ``python_task``, a ``group`` or a ``tag`` with ``members``."""

    kind: str
    path: Path
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskYaml:
    """Resolved configuration of a task, and the yaml files that it was read from."""

    name: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]

    def functions(self, *keys: str) -> list[Function]:
        """Return the functions in these keys of the configuration; in all without ``keys``."""
        wanted = self.config if not keys else {key: self.config[key] for key in keys if key in self.config}
        return list(dict.fromkeys(leaf for leaf in leaves(wanted) if isinstance(leaf, Function)))

    @property
    def metrics(self) -> list[str]:
        """The names of its metrics, in their order."""
        return [str(getattr(own["metric"], "name", own["metric"])) for own in self.config.get("metric_list") or ()]

    def split_named(self, split: str) -> str:
        """Return the data set's split for ``test_split`` and other keys of the yaml; any other name is a split itself.

        As in lmms-eval, the validation split is evaluated where there is no test split; a few-shot split may calibrate
        where there is no training split. Raises ValueError if the yaml has neither.
        """
        instead = {"test_split": "validation_split", "training_split": "fewshot_split"}
        if split not in (*instead, *instead.values()):
            return split
        keys = [split, *([instead[split]] if split in instead else [])]
        found = next((self.config[key] for key in keys if self.config.get(key) is not None), None)
        if found is None:
            raise ValueError(
                f"lmms-eval's task {self.name} has no {' and no '.join(keys)}; name a split of its data set in place of "
                f"{split}"
            )
        return str(found)


def find_task(name: str, include_path: str | None = None) -> TaskYaml:
    """Return the task ``name`` of the library, or of the yaml files below ``include_path``.

    Raises ValueError if there is none, with the closest names, or if the name is a group, a tag or a Python class.
    """
    own = _include(include_path)
    library = _library(installed.root() / "tasks")
    if name in own and name in library:
        raise ValueError(
            f"lmms_task={name}: is a task of {include_path} and of lmms-eval, which would take its own; rename yours"
        )
    entry = own.get(name) or library.get(name)
    if entry is None:
        close = get_close_matches(name, [*own, *library], n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        yours = (
            "; one of your own needs task.include_path=FOLDER" if include_path is None else f", nor has {include_path}"
        )
        raise ValueError(f"lmms_task={name}: lmms-eval {installed.version()} has no task of this name{yours}{hint}")
    if entry.kind in ("group", "tag"):
        members = list(entry.members)
        shown = ", ".join(members[:SHOWN]) + (f" and {len(members) - SHOWN} more" if len(members) > SHOWN else "")
        raise ValueError(f"lmms_task={name}: is a {entry.kind} of tasks; choose one of them: {shown}")
    if entry.kind == "python_task":
        raise ValueError(
            f"lmms_task={name}: is a Python class in {entry.path.name}; only tasks that are yaml can be read"
        )
    config, files = _load(entry.path)
    return TaskYaml(name, config, tuple(dict.fromkeys(files)))


def module_file(module: str) -> Path | None:
    """Return the file of a module of the library; None for any other."""
    if module.partition(".")[0] != installed.PACKAGE:
        return None
    below = installed.root().joinpath(*module.split(".")[1:])
    return next((path for path in (below.with_suffix(".py"), below / "__init__.py") if path.is_file()), None)


def _include(include_path: str | None) -> dict[str, Entry]:
    if include_path is None:
        return {}
    if not Path(include_path).is_dir():
        raise ValueError(f"include_path={include_path}: there is no such folder")
    return _index(Path(include_path))


def _index(folder: Path) -> dict[str, Entry]:
    """Return the meaning of each name below ``folder``; a later file wins, as in the library."""
    found: dict[str, Entry] = {}
    tagged: dict[str, tuple[Path, list[str]]] = {}
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if name not in _IGNORED]
        for file in files:
            if file.endswith(".yaml"):
                path = Path(place, file)
                _enter(path, found, tagged)
    for tag, (path, members) in tagged.items():
        found.setdefault(tag, Entry("tag", path, tuple(members)))
    return found


_library = lru_cache(maxsize=1)(_index)


def _enter(path: Path, found: dict[str, Entry], tagged: dict[str, tuple[Path, list[str]]]) -> None:
    text = path.read_text(encoding="utf-8-sig")
    keys = {key: _values(value, rest) for key, value, rest in _KEY.findall(text)}
    task = keys.get("task", [])
    if not keys and text.startswith("include:"):
        task = [own] if isinstance(own := _load(path)[0].get("task"), str) else []
    if "class" in keys and len(task) == 1:
        found[task[0]] = Entry("python_task", path)
    elif len(keys.get("group", [])) == 1 and not (len(task) == 1 and _ONE_TASK.search(text)):
        found[keys["group"][0]] = Entry("group", path, tuple(task))
    elif len(task) == 1:
        found[task[0]] = Entry("task", path)
        for tag in (*keys.get("tag", []), *keys.get("group", [])):
            tagged.setdefault(tag, (path, []))[1].append(task[0])


def _values(value: str, rest: str) -> list[str]:
    """Return the scalar or the list behind a key, of which ``rest`` has the lines that begin with a dash."""
    value = re.sub(r"(^|[ \t])#.*$", "", value).strip()
    if value.startswith("["):
        listed = value.strip("[]").split(",")
    else:
        listed = [value] if value else [line.strip()[1:] for line in rest.split("\n") if line.strip()]
    plain = (re.sub(r"[ \t]#.*$", "", one).strip().strip("\"'") for one in listed)
    return [one for one in plain if one]


class _Loader(yaml.FullLoader):  # type: ignore[misc]
    """The library's loader, with functions left as names."""


def _function(loader: _Loader, node: yaml.Node) -> Function:
    return Function(str(loader.construct_scalar(node)), Path(loader.name).parent)


_Loader.add_constructor("!function", _function)


def _load(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Return a yaml with its includes, the first of several includes winning, and all files read."""
    try:
        with path.open("rb") as stream:
            config = yaml.load(stream, _Loader)
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    included = config.pop("include", None) or []
    files, base = [path], {}
    for name in reversed([included] if isinstance(included, str) else included):
        inner, read = _load(Path(name) if os.path.isfile(name) else path.parent / name)
        base.update(inner)
        files += read
    return {**base, **config}, files


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in nested mappings and lists, in their order."""
    if isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(inner)
    else:
        yield value
