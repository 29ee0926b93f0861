"""Who may import whom, and what stays light."""

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

# Prefix of a module -> prefixes of ours that it may import. The longest prefix that fits holds.
MAY_IMPORT = {
    "mmq_sweeps.methods.affine": (),
    "mmq_sweeps.identity.cell": (),
    "mmq_sweeps.errors": (),
    "mmq_sweeps.config.paths": (),
    "mmq_sweeps.metrics": ("mmq_sweeps.metrics",),
    "mmq_sweeps.identity": ("mmq_sweeps.identity",),
    "mmq_sweeps.config.data_files": ("mmq_sweeps.identity", "mmq_sweeps.config.instantiate", "mmq_sweeps.errors"),
    "mmq_sweeps.config.effective": (
        "mmq_sweeps.identity", "mmq_sweeps.identity.cell", "mmq_sweeps.errors", "mmq_sweeps.config.schema",
    ),
    "mmq_sweeps.methods": ("mmq_sweeps.methods.affine", "mmq_sweeps.methods"),
    "mmq_sweeps.models": ("mmq_sweeps.models", "mmq_sweeps.identity.contents"),
    "mmq_sweeps.config.model_catalog": ("mmq_sweeps.errors", "mmq_sweeps.config.paths", "mmq_sweeps.config.schema"),
    "mmq_sweeps.models.__main__": (
        "mmq_sweeps.models", "mmq_sweeps.methods.affine", "mmq_sweeps.identity.cell", "mmq_sweeps.errors", "mmq_sweeps.config.schema",
        "mmq_sweeps.quantization.size", "mmq_sweeps.reporting.table", "mmq_sweeps.quantization.targets",
    ),
    "mmq_sweeps.data": ("mmq_sweeps.data", "mmq_sweeps.models", "mmq_sweeps.identity.roles"),
    "mmq_sweeps.tasks": (
        "mmq_sweeps.tasks", "mmq_sweeps.models", "mmq_sweeps.data", "mmq_sweeps.metrics", "mmq_sweeps.config.instantiate",
        "mmq_sweeps.errors", "mmq_sweeps.identity",
    ),
    "mmq_sweeps.store.record": ("mmq_sweeps.identity.cell",),
    "mmq_sweeps.reporting.compare": ("mmq_sweeps.metrics", "mmq_sweeps.store.record"),
    "mmq_sweeps.reporting.table": ("mmq_sweeps.identity.cell", "mmq_sweeps.store.record", "mmq_sweeps.reporting.compare"),
    "mmq_sweeps.store.atomic_files": ("mmq_sweeps.errors",),
    "mmq_sweeps.store.lock_owner": (),
    "mmq_sweeps.store.checkpoint_names": ("mmq_sweeps.identity.cell",),
    "mmq_sweeps.store.locks": ("mmq_sweeps.store.atomic_files", "mmq_sweeps.store.lock_owner"),
    "mmq_sweeps.store.eviction": ("mmq_sweeps.store.atomic_files", "mmq_sweeps.store.locks"),
    "mmq_sweeps.store.artifacts": ("mmq_sweeps.identity.cell", "mmq_sweeps.store.eviction", "mmq_sweeps.store.atomic_files"),
    "mmq_sweeps.store.store": (
        "mmq_sweeps.store.artifacts", "mmq_sweeps.identity.cell", "mmq_sweeps.errors", "mmq_sweeps.store.eviction", "mmq_sweeps.store.atomic_files",
        "mmq_sweeps.store.locks", "mmq_sweeps.store.checkpoint_names", "mmq_sweeps.store.lock_owner", "mmq_sweeps.store.record",
    ),
    "mmq_sweeps.__main__": ("mmq_sweeps", "launch"),
    "mmq_sweeps": ("mmq_sweeps",),
    "launch": ("mmq_sweeps", "launch"),
    "analysis": (
        "analysis", "mmq_sweeps.store.record", "mmq_sweeps.reporting.compare", "mmq_sweeps.config.paths", "mmq_sweeps.identity.cell",
        "mmq_sweeps.store.store", "mmq_sweeps.reporting.table", "mmq_sweeps.errors",
        "mmq_sweeps.reporting.trackers",
    ),
}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> set[str]:
    """Modules of ours that ``path`` imports anywhere, inside functions as well."""
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


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_follow_the_layers(module: str) -> None:
    rule = max((prefix for prefix in MAY_IMPORT if under(module, prefix)), key=len)
    for name in imported(modules()[module]):
        # The version, and nothing else of the package itself, is for everyone.
        if name in ("mmq_sweeps", "mmq_sweeps.__version__"):
            continue
        assert any(under(name, allowed) for allowed in MAY_IMPORT[rule]), f"{module} imports {name}"


LIGHT = [
    "mmq_sweeps.__main__", "mmq_sweeps.config.schema", "mmq_sweeps.config.sweep", "mmq_sweeps.config.ordering",
    "mmq_sweeps.config.effective", "analysis.__main__",
    "launch.__main__", "launch.slurm.scheduler", "launch.plugin.launchers", "launch.dispatch.local", "launch.slurm.options", "launch.planning.plan",
    "launch.start", "launch.commands.store", "launch.sweep_file", "launch.commands.cancel", "launch.commands.logs", "launch.workers.pool", "launch.commands.retry",
    "launch.commands.status", "launch.workers.slurm_job", "launch.dispatch.slurm",
    "analysis.report.content", "mmq_sweeps.data.scenes", "mmq_sweeps.data.coco",
]  # fmt: skip
# Each module is imported in a fork of an interpreter that has imported nothing of ours, only what most of ours do.
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


@pytest.fixture(scope="module")
def heavy_imports() -> dict[str, list[str]]:
    """What each of ``LIGHT`` imports of the libraries that take seconds."""
    command = [sys.executable, "-c", IMPORT_EACH, *LIGHT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("module", LIGHT)
def test_planning_and_reading_back_import_no_torch(heavy_imports: dict[str, list[str]], module: str) -> None:
    assert heavy_imports[module] == []


def test_every_package_is_in_the_wheel() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in modules().values() if path.name == "__init__.py"}
    assert listed == found | {"mmq_sweeps.conf"}
