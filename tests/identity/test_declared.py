from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmq_sweeps.config.instantiate import find_class
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.identity import declared as module
from mmq_sweeps.identity.declared import declared, declared_by
from mmq_sweeps.identity.roles import EVALUATION, LABEL

Write = Callable[[str, str], None]


def targets(group: str) -> dict[str, list[str]]:
    """Return the classes that the yamls of a group name, by the yaml."""
    found: dict[str, list[str]] = {}
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        node = OmegaConf.load(path)
        found[path.stem] = [
            str(target) for target in (node["_target_"], node.get("data", {}).get("_target_")) if target
        ]
    return found


OURS = sorted(
    {target for group in ("method", "task") for names in targets(group).values() for target in names} - {"none"}
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def written(name: str, body: str) -> None:
        imports = (
            "from dataclasses import dataclass, field\nfrom typing import ClassVar\n"
            "from mmq_sweeps.identity import roles\nfrom mmq_sweeps.identity.roles import EVALUATION, LABEL\n"
        )
        (tmp_path / f"{name}.py").write_text(imports + body)
        made.append(name)

    yield written
    for name in made:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("target", OURS)
def test_what_is_read_from_the_source_is_what_the_class_has(target: str) -> None:
    assert declared(target) == declared_by(find_class("here", target))


def test_our_classes_have_names_of_their_own() -> None:
    methods = {option: declared(*names).known_as for option, names in targets("method").items() if names != ["none"]}
    assert methods == {option: option for option in methods}
    named = [declared(target).known_as for target in OURS]
    assert len(set(named)) == len(named)
    assert not [name for name in named if "." in name]


def test_reading_what_our_classes_declare_imports_neither_them_nor_torch() -> None:
    program = (
        "import sys; from mmq_sweeps.identity.declared import declared\n"
        f"for target in {OURS}: declared(target)\n"
        "ours = [name for name, own in sys.modules.items() if name.startswith(('mmq_sweeps.tasks.', 'mmq_sweeps.methods.'))\n"
        "    and not hasattr(own, '__path__')]\n"  # Finding a module imports the packages above it.
        "print(ours + [name for name in sys.modules if name.startswith('torch')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_field_that_is_declared_again_has_the_later_role(write: Write) -> None:
    write(
        "again",
        "@dataclass\nclass Base:\n    a: int = field(default=1, metadata=LABEL)\n"
        "    b: int = field(default=1, metadata=roles.EVALUATION)\n    c: int = field(default=1, metadata=LABEL)\n"
        "@dataclass\nclass Own(Base):\n    a: int = 2\n    d: ClassVar[int] = 3\n",
    )
    assert declared("again.Own").roles == {"a": None, "b": EVALUATION, "c": LABEL}
    assert "again" not in sys.modules


def test_a_version_is_inherited_and_a_field_of_that_name_is_none(write: Write) -> None:
    write(
        "versions",
        "@dataclass\nclass Base:\n    version: ClassVar[int] = 3\n    known_as: ClassVar[str] = 'base'\n"
        "class Own(Base): pass\n@dataclass\nclass Field:\n    version: int = 4\n",
    )
    found = {name: declared(f"versions.{name}") for name in ("Own", "Field")}
    assert {name: (one.version, one.known_as) for name, one in found.items()} == {
        "Own": (3, "versions.Own"),
        "Field": (None, "versions.Field"),
    }
    assert found == {name: declared_by(find_class("here", f"versions.{name}")) for name in found}


@pytest.mark.parametrize(
    "body",
    [
        "def label(value): return field(default=value, metadata=LABEL)\n@dataclass\nclass Own:\n    a: int = label(1)\n",
        "@dataclass\nclass Own:\n    a: int = field(default=1, metadata={**LABEL})\n",
        "@dataclass\nclass Own:\n    a: int = 1\n    if True:\n        a: int = field(default=1, metadata=LABEL)\n",
        "try:\n    pass\nfinally:\n    pass\n@dataclass\nclass Own:\n    a: int = field(default=1, metadata=LABEL)\n",
        "@dataclass\nclass One:\n    a: int = field(default=1, metadata=LABEL)\nOwn = One\n",
        "@dataclass\nclass A:\n    a: int = field(default=1, metadata=LABEL)\nclass B: pass\n"
        "@dataclass\nclass Own(B, A): pass\n",
    ],
)
def test_a_class_whose_source_leaves_something_open_is_imported(write: Write, body: str) -> None:
    write("open_class", body)
    assert declared("open_class.Own").roles == {"a": LABEL}
    assert "open_class" in sys.modules


@pytest.mark.parametrize(
    ("target", "error"), [("nowhere.Own", ModuleNotFoundError), ("dataclasses.Nothing", AttributeError)]
)
def test_a_class_that_is_not_there_is_an_error(target: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        declared(target)


def test_a_module_that_is_written_anew_is_read_anew(write: Write) -> None:
    write("rewritten", "@dataclass\nclass Own:\n    a: int = 1\n")
    assert declared("rewritten.Own").roles == {"a": None}
    write("rewritten", "@dataclass\nclass Own:\n    a: int = field(default=1, metadata=LABEL)\n")
    assert declared("rewritten.Own").roles == {"a": LABEL}
    assert module.OURS == "mmq_sweeps."
