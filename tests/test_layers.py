"""Which packages may import which, and which modules stay free of torch."""

from __future__ import annotations

import ast
import configparser
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("mmq_sweeps", "launch", "analysis")

# A folder (or module) -> folders of ours that it may import, beside itself. The longest prefix that fits holds.
MAY_IMPORT = {
    # Nothing of ours but errors: every other folder may build on these.
    "mmq_sweeps.errors": (),
    "mmq_sweeps.memory": (),
    "mmq_sweeps.whole_files": (),
    "mmq_sweeps.grouping": (),
    "mmq_sweeps.config.paths": (),
    "mmq_sweeps.identity": ("whole_files",),
    "mmq_sweeps.metrics": (),
    # Formats and solvers know tensors, the roles of their fields, and nothing else.
    "mmq_sweeps.methods": ("identity.roles",),
    "mmq_sweeps.models": ("errors", "grouping", "identity", "memory"),
    "mmq_sweeps.data": ("grouping", "identity", "models", "whole_files"),
    "mmq_sweeps.config": ("errors", "identity", "metrics"),
    "mmq_sweeps.store": ("errors", "identity"),
    "mmq_sweeps.tasks": ("config.instantiate", "data", "errors", "grouping", "identity", "memory", "metrics", "models"),
    # Quantization is given batches, not tasks.
    "mmq_sweeps.quantization": ("errors", "grouping", "identity", "memory", "methods", "models", "store"),
    "mmq_sweeps.reporting": ("errors", "grouping", "identity", "metrics", "store"),
    "mmq_sweeps.execution": (
        "config", "errors", "grouping", "identity", "memory", "methods", "metrics", "models", "quantization", "reporting",
        "store", "tasks",
    ),
    "mmq_sweeps.export.formats": ("errors", "grouping", "methods"),
    # The card has the cell's assignment as a file.
    "mmq_sweeps.export": (
        "assignment", "config", "errors", "execution", "grouping", "identity", "memory", "methods", "metrics", "models",
        "quantization", "reporting", "store", "tasks",
    ),
    # A command: the cell may be the analysis's recommendation, and its configuration lies in the sweep's file.
    "mmq_sweeps.export.__main__": (
        "analysis", "assignment", "errors", "identity.cell", "identity.loads_in", "launch.sweep_file", "reporting", "store",
    ),
    # Launch drives a search, batch by batch.
    "mmq_sweeps.search": ("config", "errors", "grouping", "identity", "memory", "methods", "metrics", "quantization", "store"),
    # A command imports all that it shows.
    "mmq_sweeps.models.__main__": ("config", "errors", "identity", "methods", "quantization", "reporting"),
    "mmq_sweeps.data.__main__": ("errors",),
    "mmq_sweeps.data.scenes.train": ("errors",),
    "mmq_sweeps.tasks.score": ("config", "errors", "metrics", "reporting"),
    "mmq_sweeps.__main__": ("config", "errors", "reporting", "launch"),
    "mmq_sweeps.assignment": ("config.paths", "errors", "identity", "store"),
    "launch": ("mmq_sweeps",),
    "analysis": (
        "config.paths", "errors", "identity.assignment", "identity.cell", "identity.end_parts", "identity.loads_in",
        "metrics.answers.normalize", "metrics.intervals", "metrics.names", "metrics.probability", "reporting", "store",
    ),
}  # fmt: skip


def may_import(module: str, name: str) -> bool:
    rule = max((prefix for prefix in MAY_IMPORT if under(module, prefix)), key=len)
    package = module.split(".")[0]
    own = ".".join(module.split(".")[:2]) if package == "mmq_sweeps" and module.count(".") > 1 else package
    allowed = [one if one.split(".")[0] in OURS else f"mmq_sweeps.{one}" for one in MAY_IMPORT[rule]]
    return any(under(name, prefix) for prefix in (own, *allowed))


def folder_of(module: str) -> str:
    """Return ``launch.monitor`` for ``launch.monitor.live_table``; a loose module of a package is a folder of its own."""
    return ".".join(module.split(".")[:2])


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """Return modules of ours that ``path`` imports anywhere, inside functions as well."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def test_imports_follow_the_layers() -> None:
    # The version, and nothing else of the package itself, is for everyone.
    everyones = {"mmq_sweeps", "mmq_sweeps.__version__"}
    wrong = [
        f"{module} imports {name}"
        for module, path in sorted(modules().items())
        for name in sorted(imported(path) - everyones)
        if not may_import(module, name)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_folder_imports_one_that_imports_it() -> None:
    """Commands are left out: ``__main__`` stands above everything in its package."""
    arrows: dict[str, set[str]] = {}
    for module, path in modules().items():
        if not module.endswith("__main__"):
            folders = {folder_of(name) for name in imported(path) if name.count(".")}
            arrows.setdefault(folder_of(module), set()).update(folders - {folder_of(module)})
    left = dict(arrows)
    while lowest := [folder for folder in left if not left[folder] & set(left)]:
        for folder in lowest:
            del left[folder]
    assert not left, f"these import each other: {left}"


@pytest.mark.parametrize("package", OURS)
def test_few_modules_lie_loose(package: str) -> None:
    loose = [path.stem for path in (ROOT / package).glob("*.py") if path.stem not in ("__init__", "__main__")]
    assert len(loose) <= 5, loose


LIGHT = [
    "mmq_sweeps.__main__", "mmq_sweeps.config.problems", "mmq_sweeps.config.sweep", "mmq_sweeps.config.ordering",
    "mmq_sweeps.config.effective", "mmq_sweeps.export.__main__", "analysis.__main__", "launch.__main__",
    "launch.slurm.scheduler",
    "launch.plugin.launchers", "launch.dispatch.local", "launch.slurm.options", "launch.planning.plan",
    "launch.start", "launch.commands.store", "launch.sweep_file", "launch.commands.cancel", "launch.commands.logs",
    "launch.workers.pool", "launch.commands.retry", "launch.commands.status", "launch.workers.slurm_job",
    "launch.plugin.budget", "launch.search.choices", "launch.search.journal", "launch.dispatch.slurm",
    "analysis.report.content", "mmq_sweeps.data.scenes", "mmq_sweeps.data.coco", "mmq_sweeps.data.lmms.documents",
    "mmq_sweeps.search.loop",
    "mmq_sweeps.models.quantized.checkpoint", "mmq_sweeps.export.check",
]  # fmt: skip
# Each module is imported in a fork of an interpreter that has imported only third-party modules that most of ours need.
IMPORT_EACH = """
import hydra, omegaconf, numpy
import importlib, json, os, sys
for module in sys.argv[1:]:
    if not os.fork():
        try:
            importlib.import_module(module)
            heavy = [name for name in ('torch', 'transformers', 'wandb') if name in sys.modules]
        except BaseException as error:
            heavy = [repr(error)]
        print(json.dumps([module, heavy]), flush=True)
        os._exit(0)
    os.wait()
"""


def test_planning_and_reading_back_import_no_torch() -> None:
    command = [sys.executable, "-c", IMPORT_EACH, *LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert dict(map(json.loads, done.stdout.splitlines())) == {module: [] for module in LIGHT}


def test_every_package_is_in_the_wheel() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in modules().values() if path.name == "__init__.py"}
    assert listed == found | {"mmq_sweeps.conf"}
