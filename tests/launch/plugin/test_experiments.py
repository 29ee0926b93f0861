"""The study's grids by name: planned whole, and run in small on the embedded siblings of their models."""

from __future__ import annotations

import csv
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from launch.planning.plan import passes, quantizations
from launch.planning.preflight import look
from launch.start import run_sweep
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import Sweep
from mmq_sweeps.identity.cell import Cell, digest
from mmq_sweeps.models.shapes import build_on_meta, find_shape
from mmq_sweeps.quantization.loaders import loaders
from mmq_sweeps.quantization.requests import requests
from mmq_sweeps.quantization.size import StoredLinear
from mmq_sweeps.quantization.targets import find_parts
from mmq_sweeps.store.store import Store
from tests.conftest import command_environment
from tests.data import layouts
from tests.launch.multiruns import multirun

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
GROUPS = {"FIRST": "front", "MIDDLE": "middle", "LAST": "end"}
PARTS = {"VIT": "vision", "QFORMER": "connector", "LLM": "language"}
KINDS = {"ATTENTION": {"attention"}, "MLP": {"mlp"}, "BOTH": {"attention", "mlp"}}


@pytest.fixture
def published() -> Path:
    """Return the folder of the study's own rows."""
    folder = Path(os.environ.get("MMQ_PUBLISHED", Path(__file__).resolve().parents[4] / "shared" / "published"))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: git clone https://github.com/gautomdas/mmq and set MMQ_PUBLISHED")
    return folder


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the annotations of the study's sets, whose digests enter the ids of cells."""
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))
    for split in ("val2017", "train2017"):
        layouts.write_coco(tmp_path / "coco_caption", split)
    layouts.write_flickr30k(tmp_path / "flickr30k")
    for split in ("val2014", "train2014"):
        layouts.write_vqav2(tmp_path / "vqav2", split)
    for split in ("testdev_balanced", "train_balanced"):
        layouts.write_gqa(tmp_path / "gqa", split)


def planned(*arguments: str) -> tuple[int, Sweep]:
    with multirun(*arguments) as run:
        return len(run.jobs), run.plan()


# Of each: configurations; distinct cells; part-quantizations; passes of vision, connector and language.
SIZES = {
    # A single part in 6 sets of groups that are not all of it, beside each of the 4 choices for the two others, and the 7 of
    # whole parts: 79 selections, of 3 choices of layer kinds and 5 bit-widths below 16.
    "uniform_captioning": (3 * 7 * 4 * 3 * 6, 79 * 3 * 5 + 1, 3 * 7 * 3 * 5, 7 * 3 * 5 + 1, None, None),
    "gptq_captioning": (448, 448, 7 + 7 + 6, 8, 64, 448),
    "awq_captioning": (343, 343, 3 * 6, 7, 49, 343),
    "deployable": (750, 745, 6 * 3 * 4, 6 * 4 + 1, 6 * (5 * 5 - 1) + 1, 745),
    "retrieval": (98, 97, 2 * 2 * 6, 2 * 6 + 1, 97, None),
    "vqav2": (686 + 98, 685 + 97, 2 * (3 * 6) + 2 * (2 * 6), 2 * (2 * 6 + 1), 97, 685 + 97),
    "gqa": (686 + 98, 685 + 97, 2 * (3 * 6) + 2 * (2 * 6), 2 * (2 * 6 + 1), 97, 685 + 97),
}


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"gqa"}))
def test_an_experiment_is_planned_whole(name: str, request: pytest.FixtureRequest) -> None:
    asked, sweep = planned(f"experiment={name}")
    work = passes(sweep.cells)
    found = (asked, len(sweep.cells), quantizations(sweep.cells).needed, *(
        work[part].needed if part in work else None for part in PARTS.values()
    ))  # fmt: skip
    assert all(count == expected for count, expected in zip(found, SIZES[name], strict=True) if expected is not None), (
        found
    )
    models = {cell.names["model"] for cell in sweep.cells}
    assert not any(model.startswith("tiny") for model in models), models
    if name == "uniform_captioning":
        found_rows = [selected(row) for row in rows(request.getfixturevalue("published") / "uniform_captioning.csv")]
        assert len(set(found_rows)) > 1000
        assert set(found_rows) <= set(map(assigned, sweep.cells))
    if name == "gptq_captioning":
        published = rows(request.getfixturevalue("published") / "gptq_captioning.csv")
        levels = {tuple(int(row[f"{part.lower()}_bits"]) for part in PARTS) for row in published}
        assert {tuple(bits(cell, part) for part in PARTS.values()) for cell in sweep.cells} == levels


@pytest.mark.usefixtures("data")
def test_gqa_is_the_grid_of_vqav2() -> None:
    """As the grids are equal, GQA's sizes and small command need no test of their own beside VQA v2's."""
    own, other = (OmegaConf.load(conf_dir() / "experiment" / f"{name}.yaml") for name in ("gqa", "vqav2"))
    assert own.hydra == other.hydra
    assert (own.defaults, other.defaults) == ([{"override /task": "gqa"}], [{"override /task": "vqav2"}])
    assert commands("gqa") == [["experiment=gqa", *more] for _, *more in commands("vqav2")]
    _, sweep = planned("experiment=gqa", "method=gptq", "component.vision.bits=3", "component.language.bits=3")
    assert {(cell.names["model"], cell.names["task"]) for cell in sweep.cells} == {
        ("blip2_opt_2_7b", "gqa"),
        ("llava_1_5_7b", "gqa"),
    }


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def selected(row: dict[str, str]) -> tuple | None:
    """Return the quantized blocks of a published row of the uniform grid, as ``assigned`` does; ``None`` for full precision."""
    parts = {
        name: frozenset(group for column, group in GROUPS.items() if row[f"{part}_{column}"] == "1")
        for part, name in PARTS.items()
    }
    blocks = frozenset((name, groups) for name, groups in parts.items() if groups)
    if not blocks or row["bit_size"] == "16":
        return None
    return int(row["bit_size"]), frozenset(KINDS[row["type"]]), blocks


def assigned(cell: Cell) -> tuple | None:
    if not cell.parts:
        return None
    widths = {selection["bits"] for selection in cell.parts.values()}
    kinds = {frozenset(selection["layers"]) for selection in cell.parts.values()}
    assert len(widths) == len(kinds) == 1
    return *widths, *kinds, frozenset((part, frozenset(selection["blocks"])) for part, selection in cell.parts.items())


def bits(cell: Cell, part: str) -> int:
    return cell.parts[part]["bits"] if part in cell.parts else 16


def commands(name: str) -> list[list[str]]:
    """Return the commands that an experiment's yaml opens with, as lists of arguments."""
    opening = re.match(r"(#.*\n)+", (conf_dir() / "experiment" / f"{name}.yaml").read_text())
    assert opening is not None, name
    text = re.sub(r"\\\n#\s*", "", opening[0])
    found = re.findall(r"^#\s+python -m mmq_sweeps -m (.*?)(?: && .*)?$", text, re.MULTILINE)
    return [shlex.split(arguments) for arguments in found]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_opens_with_its_command(name: str) -> None:
    assert commands(name)[0] == [f"experiment={name}"]


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"gqa"}))
def test_the_command_for_the_embedded_siblings_passes_every_check(name: str, tmp_path: Path) -> None:
    asked, sweep = planned(*commands(name)[1])
    assert 1 < len(sweep.cells) <= asked + len({cell.names["model"] for cell in sweep.cells})
    assert look(sweep, tmp_path) == {"problems": [], "unchecked": []}
    if name == "deployable":
        assert all("transformers" in loaders for loaders in planned_loaders(sweep))


def planned_loaders(sweep: Sweep) -> list[list[str]]:
    """Return the loaders that take each cell of a model, from the formats that its methods announce before they run."""
    (config,) = {digest(config["model"]): config["model"] for config in sweep.configs.values()}.values()
    model = build_on_meta(config, find_shape(config))
    parts = find_parts(model, config)
    return [
        loaders(
            model,
            parts.values(),
            {
                # AWQ that is not to fold its scales stores them.
                name: StoredLinear(one.format, shape, getattr(one.method, "fuse", True) is False)
                for one in (requests(cell, build, parts) if cell.parts else ())
                for name, shape in one.unit.linears.items()
            },
        )
        for cell in sweep.cells
    ]


# Small commands that are thinned further, to a few cells.
THINNED = {
    "uniform_captioning": [
        "bits=3", "component.vision.layers=[mlp]", "component.connector.bits=16", "component.language.bits=${bits}",
        "component.vision.blocks=[front]", "component.language.blocks=[front]",
    ],
    "gptq_captioning": [], "awq_captioning": [], "retrieval": ["task.limit=12"], "vqav2": ["component.language.bits=16"],
    "deployable": ["component.language.bits=16", "method.symmetric=true"],
}  # fmt: skip


@pytest.mark.parametrize("name", THINNED)
def test_an_experiment_runs_thinned_on_the_embedded_siblings(name: str, tmp_path: Path) -> None:
    whole, small = commands(name)
    assert whole == small[:1]
    corners = [
        f"{axis.partition('=')[0]}={axis.partition('=')[2].split(',')[0]}" for axis in small if ".bits=2" in axis
    ]
    limits = ["task.limit=4", f"store.dir={tmp_path}", "calibration.samples=4", "tracker=none"]
    metrics = [] if "retrieval" in name or "qa" in name else ["task.metrics=[cider]"]
    with multirun(*small, *corners[1:], *limits, *metrics, *THINNED[name]) as run:
        assert 1 < len(run.jobs) <= 8
        assert run_sweep(run.configs()) == 0
    records = Store.reading(tmp_path).records()
    assert len(records) > 1
    assert all(record.names["model"].startswith("tiny") for record in records)
    assert all(record.done for record in records)
    if name == "deployable":
        assert all("transformers" in record.loads_in for record in records)
        assert any("vllm" not in record.loads_in for record in records)


def test_planning_a_whole_grid_imports_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from launch.__main__ import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'transformers', 'wandb', 'submitit') if name in sys.modules])\n"
    )
    small = ["experiment=retrieval", "model=tiny_blip2_itm", "task=scenes_retrieval", "hydra.launcher.check=false"]
    done = subprocess.run(
        [sys.executable, "-c", program, "plan", *small],
        cwd=tmp_path, env=command_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "to run          97" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert not list(tmp_path.iterdir()), "a dry run writes nothing"


def test_the_documents_give_the_sizes_of_the_grids() -> None:
    docs = Path(__file__).resolve().parents[3] / "docs"
    with (docs / "tables" / "grids.csv").open(newline="") as file:
        found = {row["experiment"]: (row["configurations"], row["distinct cells"]) for row in csv.DictReader(file)}
    for name, (asked, distinct, *_) in SIZES.items():
        assert found[name] == (str(asked), str(distinct)), name
    assert all(f"`{name}`" in (docs / "sweeps.md").read_text() for name in found)
