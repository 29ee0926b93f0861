"""Say which functions of a task's code may ask the network, from their source and what it calls.

A body is followed by the names in it: to functions and variables of its module and of the library's task modules that it
imports, and to methods of these names. A function counts as asking if such a body names something of a package that talks to
servers. Code that hides its calls (a subprocess, a package that is not listed) is not seen here; ``tasks/lmms/rehearsal``
runs the functions once with the network refused.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from mmq_sweeps.data.lmms.catalog import Function, TaskYaml, module_file

PACKAGES = (
    "aiohttp", "anthropic", "azure", "dashscope", "google.genai", "google.generativeai", "httpx", "litellm",
    "lmms_eval.llm_judge", "lmms_eval.verifiers", "openai", "reka", "requests", "urllib.request", "zhipuai",
)  # fmt: skip
# The functions that every metric needs, and how they are told.
_EVERYWHERE = ("process_results", "process_docs", "doc_to_text", "doc_to_visual", "doc_to_target", "doc_to_choice")
EVERYWHERE = "every metric"


@dataclass(frozen=True)
class _Module:
    """Bodies of a module's functions, methods and variables by name, and what its imported names stand for."""

    bodies: dict[str, list[ast.AST]] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    modules: tuple[Path, ...] = ()
    opened: tuple[Path, ...] = ()  # files beside it that its texts name, such as prompts


def packages_asked(functions: Iterable[Function]) -> list[str]:
    """Return the packages that talk to servers and that ``functions``, or what they call, name."""
    found: dict[str, None] = {}
    for function in functions:
        if function.file is not None:
            found |= dict.fromkeys(_asked(function.file, function.name))
    return list(found)


def asking(task: TaskYaml, metrics: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the packages that talk to servers of the functions that all metrics need, else of each of ``metrics``."""
    if every := packages_asked(task.functions(*_EVERYWHERE)):
        return {EVERYWHERE: every}
    listed = zip(task.metrics, task.config.get("metric_list") or (), strict=True)
    asked = {name: packages_asked(TaskYaml(name, own, ()).functions()) for name, own in listed if name in metrics}
    return {name: packages for name, packages in asked.items() if packages}


def refuse_asking(task: TaskYaml, metrics: Sequence[str] = ()) -> None:
    """Raise ValueError if scoring ``task`` by ``metrics`` may ask a server."""
    if not (found := asking(task, metrics)):
        return
    told = ", ".join(f"{what} ({', '.join(packages)})" for what, packages in found.items())
    free = [] if EVERYWHERE in found else [name for name in task.metrics if not asking(task, [name])]
    instead = f"choose task.metrics=[{','.join(free)}], or " if free else ""
    raise ValueError(
        f"lmms_task={task.name}: its code may ask a server, such as a judge: {told}; {instead}set task.allow_network=true to "
        "run it all the same"
    )


def read_by(file: Path) -> list[Path]:
    """Return ``file``, the modules that it imports, and the files beside them that they name."""
    modules = modules_of(file)
    return [*modules, *(path for module in modules for path in _module(module).opened)]


def modules_of(file: Path) -> list[Path]:
    """Return ``file`` and the modules that it imports, of the library's tasks or from beside it, and so on."""
    found, left = [], [file]
    while left:
        path = left.pop()
        if path not in found:
            found.append(path)
            left += _module(path).modules
    return found


def _asked(file: Path, name: str) -> Iterator[str]:
    modules = [_module(path) for path in modules_of(file)]
    seen: set[str] = set()
    left = [name]
    while left:
        current = left.pop()
        if current in seen:
            continue
        seen.add(current)
        for module in modules:
            for body in module.bodies.get(current, ()):
                for used in _names(body):
                    if (package := _talks(module.imports.get(used, ""))) is not None:
                        yield package
                    left.append(used)


def _talks(imported: str) -> str | None:
    return next((one for one in PACKAGES if imported == one or imported.startswith(f"{one}.")), None)


def _names(body: ast.AST) -> Iterator[str]:
    """Yield the names and attributes in a body, and what it imports itself."""
    for node in ast.walk(body):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


def _module(file: Path) -> _Module:
    try:
        told = file.stat()
        return _parsed(file, told.st_mtime_ns, told.st_size)
    except (OSError, SyntaxError, ValueError):
        return _Module()


@lru_cache(maxsize=256)
def _parsed(file: Path, changed: int, size: int) -> _Module:  # noqa: ARG001 - they tell an edited file from the one before
    tree = ast.parse(file.read_bytes())
    bodies: dict[str, list[ast.AST]] = {}
    imports: dict[str, str] = {}
    beside: list[Path] = []
    opened: list[Path] = []
    for node in ast.walk(tree):
        beside += _beside(node, file.parent)
        opened += _opened(node, file.parent)
        if isinstance(node, ast.Import):
            imports |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in tree.body:
        _enter(node, bodies)
    named = (candidate for path in imports.values() for candidate in (path, path.rpartition(".")[0]))
    files = (module_file(name) for name in named if name.startswith("lmms_eval.tasks."))
    modules = [path for path in (*files, *beside) if path is not None]
    return _Module(bodies, imports, tuple(dict.fromkeys(modules)), tuple(dict.fromkeys(opened)))


def _beside(node: ast.AST, folder: Path) -> Iterator[Path]:
    """Yield the files beside a module that an import names; by ``sys.path``, some look a folder above too."""
    if isinstance(node, ast.Import):
        names, above = [alias.name for alias in node.names], 0
    elif isinstance(node, ast.ImportFrom):
        module = f"{node.module}." if node.module else ""
        names, above = [module[:-1], *(f"{module}{alias.name}" for alias in node.names)], node.level
    else:
        return
    folders = [folder, folder.parent] if not above else [folder.joinpath(*[".."] * (above - 1))]
    for name in filter(None, names):
        for place in folders:
            path = place.joinpath(*name.split("."))
            yield from (found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file())


def _opened(node: ast.AST, folder: Path) -> Iterator[Path]:
    if (
        isinstance(node, ast.Constant)
        and isinstance(text := node.value, str)
        and re.fullmatch(r"[\w ./-]{1,200}", text)
    ):
        try:
            # Also names that code adds to its folder's, as "/prompt.txt".
            yield from (path for path in {folder / text, folder / text.lstrip("/")} if path.is_file())
        except OSError:
            return  # A text too long for a file's name.


def _enter(node: ast.AST, bodies: dict[str, list[ast.AST]]) -> None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        bodies.setdefault(node.name, []).append(node)
    elif isinstance(node, ast.ClassDef):
        for inner in node.body:
            _enter(inner, bodies)
            if isinstance(inner, ast.FunctionDef) and inner.name == "__init__":
                bodies.setdefault(node.name, []).append(inner)  # Whoever makes an instance runs it.
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]:
            bodies.setdefault(name, []).append(node.value)
    elif isinstance(node, ast.If | ast.Try | ast.With):
        for child in ast.iter_child_nodes(node):
            _enter(child, bodies)
