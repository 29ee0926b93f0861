"""Read the name, version and field roles that a class declares; from its source if possible, so planning imports no torch.

Classes of this package declare ``known_as: ClassVar[str] = "gptq"``. Ids contain that name instead of the dotted path, so
a class can be moved. Classes of users are known by their dotted path. Any class may declare ``version: ClassVar[int] = 2``
and raise it when the same fields start to mean a different computation. For field roles see ``roles.py``.

The source is parsed only for plain dataclasses: at most a single base, and fields written directly in the class body. Any
other class is imported and inspected.
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
    """Raised if the source alone does not determine the declaration; the class is then imported."""


@dataclass(frozen=True)
class Declared:
    """Declaration of a class: its name, its version, and the role of each field."""

    known_as: str
    version: int | None
    roles: Mapping[str, Role]

    def counting(self, node: Mapping[str, Any], *left_out: Mapping[str, str]) -> dict[str, Any]:
        """Return ``node`` without fields of the roles ``left_out``, with the class's declared name in place of its path."""
        fields = {
            name: value
            for name, value in node.items()
            if (role := self.roles.get(name)) not in left_out and not (role == roles.UNLESS_NULL and value is None)
        }
        if "_target_" in node:
            fields["_target_"] = self.known_as
        if self.version is not None:
            fields["_version_"] = self.version
        return fields


def declared(target: str) -> Declared:
    """Return the declaration of the class at a dotted path; raise ImportError or AttributeError if it does not exist."""
    module, _, name = target.rpartition(".")
    try:
        found = _from_source(module, name)
    except UnreadableError:
        return declared_by(getattr(importlib.import_module(module), name))
    return _declared(target, found.constants, found.roles)


def declared_by(own: type) -> Declared:
    """Return the declaration of an imported dataclass."""
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
    """Constants and field roles read from a class body, including the fields of its base."""

    constants: Mapping[str, Any]
    roles: Mapping[str, Role]


@dataclass(frozen=True)
class _Module:
    """Top level of a module: its classes, and the dotted path of every imported name."""

    classes: Mapping[str, ast.ClassDef]
    imports: Mapping[str, str]

    def path(self, node: ast.expr, name: str) -> str:
        """Return the dotted path that an expression in module ``name`` refers to; empty if none."""
        if isinstance(node, ast.Subscript):
            return self.path(node.value, name)
        if isinstance(node, ast.Attribute):
            inner = self.path(node.value, name)
            return f"{inner}.{node.attr}" if inner else ""
        if not isinstance(node, ast.Name):
            return ""
        return f"{name}.{node.id}" if node.id in self.classes else self.imports.get(node.id, "")


def _from_source(module: str, name: str) -> _Source:
    """Parse a class; raise ``UnreadableError`` if the source leaves anything open."""
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
    # A subclass inherits its base's version, since it shares the computation, but not its name.
    constants = {name: value for name, value in base.constants.items() if name == "version"}
    for statement in body.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if "ClassVar" not in ast.dump(statement.annotation):
                known[statement.target.id] = _role(top, statement.value, module)
                constants.pop(statement.target.id, None)
            elif isinstance(statement.value, ast.Constant):
                constants[statement.target.id] = statement.value.value
        elif isinstance(statement, ast.Assign):
            # May change the default of a base's field, or anything else.
            raise UnreadableError(name)
        elif not isinstance(statement, PLAIN_STATEMENTS):
            raise UnreadableError(name)
    return _Source(constants, known)


def _base(top: _Module, body: ast.ClassDef, module: str) -> _Source:
    bases = [path for base in body.bases if (path := top.path(base, module)) not in PLAIN_BASES]
    if len(bases) > 1 or "" in bases:
        raise UnreadableError(body.name)
    if not bases:
        return _Source({}, {})
    elsewhere, _, own = bases[0].rpartition(".")
    return _from_source(elsewhere, own)


def _role(top: _Module, value: ast.expr | None, module: str) -> Role:
    """Return the role in ``field(metadata=LABEL)``; raise ``UnreadableError`` for any other call."""
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
def _parsed(file: Path, module: str, size: int, changed: int) -> _Module:  # noqa: ARG001 - cache key
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
            # The name no longer refers to the class or import.
            for name in [node.id for node in statement.targets if isinstance(node, ast.Name)]:
                classes.pop(name, None)
                imports.pop(name, None)
        elif not isinstance(statement, (*PLAIN_STATEMENTS, ast.AnnAssign, ast.If)):
            # May create or change a class.
            raise UnreadableError(module)
    return _Module(classes, imports)
