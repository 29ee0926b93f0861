"""The documents are right: their examples run as written, on a copy of the checkout."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mmq_sweeps.data.scenes import Scenes
from tests.commands import run_forked
from tests.conftest import SMALL, command_environment

ROOT = Path(__file__).resolve().parent.parent
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "findings").glob("*.md")])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("mmq_sweeps", "launch", "analysis", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    return tmp_path


def write_examples(section: str, folder: Path) -> None:
    """Write every code block of a section that opens with its path, and every file that the section copies."""
    text = CONTRIBUTING.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    blocks += [
        (path, (ROOT / example).read_text()) for example, path in re.findall(r"^    cp (\S+) (\S+)$", text, re.M)
    ]
    assert blocks
    for path, content in blocks:
        assert not (folder / path).exists()
        (folder / path).write_text(content)


def run(folder: Path, *arguments: str) -> list[dict]:
    environment = command_environment(PYTHONPATH=str(folder))
    done = run_forked("mmq_sweeps", [*arguments, "--json"], folder, environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["cells"]


def test_adding_a_method_a_model_and_a_task(checkout: Path) -> None:
    for section in ("Add a method", "Add a model", "Add a task"):
        write_examples(section, checkout)
    shutil.copytree(
        checkout / "mmq_sweeps" / "models" / "embedded" / "tiny_blip2", checkout / "checkpoints" / "my_blip2"
    )
    for split, source, count in (("test", "evaluation", 8), ("train", "calibration", 4)):
        folder = checkout / "my_images" / split
        folder.mkdir(parents=True)
        examples = list(Scenes(split=source, count=count))
        for number, example in enumerate(examples):
            example.image.save(folder / f"{number}.png")
        captions = {f"{number}.png": list(example.references) for number, example in enumerate(examples)}
        (folder / "captions.json").write_text(json.dumps(captions))
    small = ("calibration.samples=4", "calibration.batch_size=4", "task.limit=8", "tracker=none")
    own = ("model=my_blip2", "task=my_captions", "method=gptq,rtn,rtn_mse")
    rows = run(checkout, "-m", *own, "bits=3", "component=vision_language", *small)
    assert {(row["model"], row["task"]) for row in rows} == {("my_blip2", "my_captions")}
    found = {row["method"]: row for row in rows}
    assert set(found) == {"none", "gptq", "rtn", "rtn_mse"}
    assert found["gptq"]["bits"] == {"vision": "3", "language": "3"}
    assert found["rtn_mse"]["bpw_exact"] == found["rtn"]["bpw_exact"]


def test_every_experiment_opens_with_its_command() -> None:
    """The commands are composed in tests/launch/plugin/test_experiments.py."""
    files = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))
    assert files
    for path in files:
        assert f"python -m mmq_sweeps -m experiment={path.stem}" in path.read_text()


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", document.read_text()):
        page = document.parent / target if target else document
        assert page.exists(), f"{document.name} links to {target}"
        assert not anchor or anchor in anchors(page), f"{document.name} links to {target}#{anchor}"
    for target in re.findall(r"`((?:docs|benchmarks|conf|mmq_sweeps)/[\w/.]+\.(?:md|py|yaml))`", document.read_text()):
        known_example = document.name == "CONTRIBUTING.md"
        assert (ROOT / target).exists() or known_example, f"{document.name} names {target}"


def test_every_method_has_a_line_on_its_page() -> None:
    rows = [line for line in (ROOT / "docs" / "methods.md").read_text().splitlines() if line.startswith("|")]
    for path in (ROOT / "conf" / "method").glob("*.yaml"):
        assert any(f"`{path.stem}`" in row.split("|")[1] for row in rows), path


def test_every_experiment_is_in_the_table_of_grids() -> None:
    """The sizes are compared in tests/launch/plugin/test_experiments.py."""
    with (ROOT / "docs" / "tables" / "grids.csv").open(newline="") as file:
        rows = {row["experiment"]: row["grid"] for row in csv.DictReader(file)}
    shown_elsewhere = {"embedded_table"}  # docs/embedded.md
    assert set(rows) | shown_elsewhere == {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
    assert all(rows.values())


def test_methods_without_calibration_are_named() -> None:
    (named,) = re.findall(r"^(.*) need no calibration", (ROOT / "docs" / "methods.md").read_text(), flags=re.MULTILINE)
    methods = {
        path.stem for path in (ROOT / "conf" / "method").glob("*.yaml") if "calibration" not in OmegaConf.load(path)
    }
    assert {*re.findall(r"`(\w+)`", named)} == methods - {"none"}


def test_every_table_is_whole_and_linked() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    tables = sorted((ROOT / "docs" / "tables").glob("*.csv"))
    assert tables
    for path in tables:
        with path.open() as file:
            assert len({len(row) for row in csv.reader(file)}) == 1, path
        assert f"](tables/{path.name})" in pages, path


def test_every_output_opens_with_its_command_and_date_and_is_linked() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    outputs = sorted((ROOT / "benchmarks" / "output").glob("*.txt"))
    assert outputs
    for path in outputs:
        command, measured = path.read_text().splitlines()[:2]
        (what,) = re.findall(r"^# (?:[A-Z_]+=\d+ )?python (-m mmq_sweeps|-m launch|benchmarks/\w+\.py)( .*)?$", command)
        assert what[0].startswith("-m ") or (ROOT / what[0]).exists(), path
        assert re.match(r"# 20\d\d-\d\d-\d\d, ", measured), path
        assert f"](../benchmarks/output/{path.name})" in pages, path


@pytest.mark.parametrize("name", ["tasks", "metrics", "readers"])
def test_a_table_has_what_the_code_says_and_no_empty_row(name: str) -> None:
    """The models' table is compared in tests/models/test_models_command.py, where their shapes are built."""
    table = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    assert table["updated"](name) == (table["TABLES"] / f"{name}.csv").read_text(), "run python docs/tables.py"
    described = {"tasks": "data", "metrics": "is", "readers": "holds"}[name]
    assert all(row[described] for row in table["read"](name)[1])


def test_every_task_is_on_its_page_and_has_its_paper() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text()
    for row in runpy.run_path(str(ROOT / "docs" / "tables.py"))["read"]("tasks")[1]:
        assert f"`{row['task']}`" in page
        assert row["paper (arXiv)"] in (ROOT / "conf" / "task" / f"{row['task']}.yaml").read_text()


@pytest.mark.parametrize("program", ["analysis", "launch"])
def test_every_verb_is_named(program: str) -> None:
    shown = run_forked(program, ["--help"], ROOT, command_environment())
    verbs = re.findall(r"^    ([a-z-]+)(?:  |$)", shown.stdout, flags=re.MULTILINE)
    assert {"analysis": "importance", "launch": "cancel"}[program] in verbs
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    for verb in verbs:
        assert f"python -m {program} {verb}" in pages, verb


def test_the_embedded_table_has_a_row_for_each_of_its_cells() -> None:
    with (ROOT / "docs" / "tables" / "embedded_table.csv").open() as file:
        rows = list(csv.DictReader(file))
    sweeper = OmegaConf.load(ROOT / "conf" / "experiment" / "embedded_table.yaml").hydra.sweeper
    bits = str(sweeper.params.bits).split(",")
    assert [*rows[0]] == ["method", "parts", *bits]
    everything = "vision + connector + language"
    assert {(row["method"], row["parts"]) for row in rows} == {
        (method, everything if part == "all" else part)
        for grid in sweeper.grids
        for method in grid.method.split(",")
        for part in grid.component.split(",")
    }


def test_an_experiment_of_ones_own(checkout: Path) -> None:
    text = (ROOT / "docs" / "sweeps.md").read_text()
    (block,) = re.findall(r"```yaml\n# (conf/experiment/\S+)\n(.*?)```", text, flags=re.DOTALL)
    (checkout / block[0]).write_text(block[1])
    bits = [row["bits"] for row in run(checkout, "-m", "experiment=mine", *SMALL, "task.limit=4")]
    assert {str(one.get("vision")) for one in bits} == {"None", "3", "4"}
    assert sorted(str(one.get("language")) for one in bits if "(" in str(one.get("language"))) == [
        "3 (end)", "3 (front)", "4 (end)", "4 (front)",
    ]  # fmt: skip
    assert len(bits) == 1 + 4 + 4
