"""What a class declares about its identity, read from its source where that is possible, so that planning imports no torch.

A class of ours says in its body ``known_as: ClassVar[str] = "gptq"``: ids hold that name, not the module's, so a class can
be moved. A class of a user's own is known by its dotted path. Any class may have ``version: ClassVar[int] = 2``, to be
raised when the same fields start to mean another computation. Fields have ``roles``.

Only plain sources are read: dataclasses with at most one base whose fields are written at the top of their body. Any
other class is imported instead, and asked.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmq_sweeps.identity import roles

OURS = "mmq_sweeps."
# Bases that have no fields.
PLAIN_BASES = ("abc.ABC", "typing.Generic", "typing.Protocol", "builtins.object")
PLAIN_STATEMENTS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Expr, ast.Pass, ast.ClassDef)
Role = Mapping[str, str] | None


class UnreadableError(Exception):
    """The source does not say everything about a class."""


@dataclass(frozen=True)
class Declared:
    """The name and version of a class, and the role of each of its fields."""

    known_as: str
    version: int | None
    roles: Mapping[str, Role]

    def counting(self, node: Mapping[str, Any], *left_out: Mapping[str, str]) -> dict[str, Any]:
        """The fields of ``node`` but for those of the roles ``left_out``, with the class's name in place of its path."""
        fields = {name: value for name, value in node.items() if self.roles.get(name) not in left_out}
        if "_target_" in node:
            fields["_target_"] = self.known_as
        if self.version is not None:
            fields["_version_"] = self.version
        return fields


def declared(target: str) -> Declared:
    """What the class at the dotted path ``target`` declares; an ImportError or AttributeError if there is no such class."""
    module, _, name = target.rpartition(".")
    try:
        found = _from_source(module, name)
    except UnreadableError:
        return declared_by(getattr(importlib.import_module(module), name))
    return _declared(target, found.constants, found.roles)


def declared_by(own: type) -> Declared:
    """What a class that is imported declares."""
    known = {field.name: roles.role(field.metadata) for field in dataclasses.fields(own)}
    version = None if "version" in known else getattr(own, "version", None)
    constants = {"known_as": vars(own).get("known_as"), "version": version}
    return _declared(f"{own.__module__}.{own.__qualname__}", constants, known)


def _declared(target: str, constants: Mapping[str, Any], known: Mapping[str, Role]) -> Declared:
    name = constants.get("known_as") if target.startswith(OURS) else None
    version = constants.get("version")
    return Declared(
        known_as=name if isinstance(name, str) else target,
        version=version if isinstance(version, int) else None,
        roles=known,
    )


@dataclass(frozen=True)
class _Source:
    """What the body of a class says: constants, and the roles of fields with those of its base."""

    constants: Mapping[str, Any]
    roles: Mapping[str, Role]


@dataclass(frozen=True)
class _Module:
    """The top of a module: its classes, and the dotted path of every name that it imports."""

    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, str]

    def path(self, node: ast.expr, name: str) -> str:
        """The dotted path that an expression in module ``name`` names; empty if it names none."""
        if isinstance(node, ast.Subscript):
            return self.path(node.value, name)
        if isinstance(node, ast.Attribute):
            inner = self.path(node.value, name)
            return f"{inner}.{node.attr}" if inner else ""
        if not isinstance(node, ast.Name):
            return ""
        return f"{name}.{node.id}" if node.id in self.classes else self.imports.get(node.id, "")


def _from_source(module: str, name: str) -> _Source:
    """An ``UnreadableError`` if the source leaves anything open."""
    file = _file_of(module)
    status = file.stat()
    top = _parsed(file, module, status.st_size, status.st_mtime_ns)
    body = top.classes.get(name)
    if body is None:
        elsewhere, _, own = top.imports.get(name, "").rpartition(".")
        if not elsewhere:
            raise UnreadableError(name)
        return _from_source(elsewhere, own)
    decorators = [node.func if isinstance(node, ast.Call) else node for node in body.decorator_list]
    if body.keywords or any(top.path(node, module) != "dataclasses.dataclass" for node in decorators):
        raise UnreadableError(name)
    base = _base(top, body, module)
    known = dict(base.roles)
    # A subclass has a name of its own, and computes what its base does.
    constants = {name: value for name, value in base.constants.items() if name == "version"}
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if "ClassVar" not in ast.dump(statement.annotation):
                known[statement.target.id] = _role(top, statement.value, module)
                constants.pop(statement.target.id, None)
            elif isinstance(statement.value, ast.Constant):
                constants[statement.target.id] = statement.value.value
        elif isinstance(statement, ast.Assign):
            # It may give a field of the base another default; what else it is cannot be told here.
            raise UnreadableError(name)
        elif not isinstance(statement, PLAIN_STATEMENTS):
            raise UnreadableError(name)
    return _Source(constants, known)


def _base(top: _Module, body: ast.ClassDef, module: str) -> _Source:
    bases = [path for base in body.bases if (path := top.path(base, module)) not in PLAIN_BASES]
    if len(bases) > 1 or "" in bases:
        raise UnreadableError(body.name)
    return _from_source(*_split(bases[0])) if bases else _Source({}, {})


def _role(top: _Module, value: ast.expr | None, module: str) -> Role:
    """The role in ``field(metadata=LABEL)``; any other call may return anything."""
    if not isinstance(value, ast.Call):
        return None
    if top.path(value.func, module) != "dataclasses.field" or any(given.arg is None for given in value.keywords):
        raise UnreadableError(ast.unparse(value))
    metadata = next((given.value for given in value.keywords if given.arg == "metadata"), None)
    if metadata is None:
        return None
    known = {f"{roles.__name__}.{name}": role for name, role in roles.ROLES.items()}
    path = top.path(metadata, module)
    if path not in known:
        raise UnreadableError(ast.unparse(value))
    return known[path]


def _file_of(module: str) -> Path:
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError) as error:
        raise UnreadableError(module) from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UnreadableError(module)
    return Path(spec.origin)


@lru_cache(maxsize=256)
def _parsed(file: Path, module: str, size: int, changed: int) -> _Module:  # noqa: ARG001 - what the cache goes by
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise UnreadableError(module) from error
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    classes: dict[str, ast.ClassDef] = {}
    imports: dict[str, str] = {}
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef):
            classes[statement.name] = statement
        elif isinstance(statement, ast.Import):
            for alias in statement.names:
                imports[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(statement, ast.ImportFrom):
            above = package.rsplit(".", statement.level - 1)[0] if statement.level else ""
            source = ".".join(filter(None, (above, statement.module)))
            imports |= {alias.asname or alias.name: f"{source}.{alias.name}" for alias in statement.names}
        elif isinstance(statement, ast.Assign):
            # What is given another value is no longer what was defined or imported.
            for name in [node.id for node in statement.targets if isinstance(node, ast.Name)]:
                classes.pop(name, None)
                imports.pop(name, None)
        elif not isinstance(statement, (*PLAIN_STATEMENTS, ast.AnnAssign, ast.If)):
            # A class may be made or changed there.
            raise UnreadableError(module)
    return _Module(classes, imports)


def _split(path: str) -> tuple[str, str]:
    module, _, name = path.rpartition(".")
    return module, name
