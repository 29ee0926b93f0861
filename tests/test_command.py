"""The command as people run it: real processes, real stores, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmq_sweeps.reporting.table import rows
from tests.commands import Forked, run_forked
from tests.conftest import SMALL, command_environment
from tests.launch.cells import record
from tests.launch.multiruns import multirun
from tests.own_method import write_method
from tests.refusals import answered, refused

Command = Callable[..., subprocess.CompletedProcess[str]]


def cells(done: subprocess.CompletedProcess[str]) -> list[dict]:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["cells"]


@pytest.mark.parametrize("command", ["mmq_sweeps --help", "launch store --store ."])
def test_whoever_reads_the_output_may_leave(command: str, tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    reader, writer = os.pipe()
    os.close(reader)
    started = [sys.executable, "-m", *command.split()]
    done = subprocess.run(
        started, cwd=tmp_path, env=command_environment(), stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_sweep_a_second_run_and_a_wider_one(command: Command, tmp_path: Path) -> None:
    few = (*SMALL, "task.limit=4", "component=connector")
    first = command("-m", "method=rtn,hqq", "bits=2,8", *few)
    assert first.returncode == 0, first.stderr
    assert "CIDEr" in first.stdout
    assert f"store: {tmp_path / 'runs'}" in first.stdout
    assert "\x1b[" not in first.stdout + first.stderr
    assert first.stderr.count("cell ") == 5, first.stderr
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "cells").rglob("*.json")}
    assert len(stamps) == 10

    second = command("-m", "method=rtn,hqq", "bits=2,8", *few)
    assert second.returncode == 0
    assert second.stdout == first.stdout
    assert second.stderr == ""
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / "cells").rglob("*.json")}

    wider = command("-m", "method=rtn,hqq,none", "bits=2,4,8", *few, "--json")
    assert wider.stderr.count("cell ") == 2, wider.stderr
    found = cells(wider)
    assert len(found) == 7
    assert [row["bpw_paper"] for row in found] == sorted((row["bpw_paper"] for row in found), reverse=True)
    assert found[0]["method"] == "none"


def test_one_cell_alone_by_the_script_in_any_folder_equals_the_same_cell_inside_a_sweep(
    command: Command, tmp_path: Path
) -> None:
    script = Path(sys.executable).parent / "mmq-sweeps"
    if not script.exists():
        pytest.skip("the package is not installed; run: pip install -e '.[test]'")
    few = (*SMALL, "task.limit=8", "--json")
    inside = cells(command("-m", "method=gptq", "bits=2,3", *few))
    elsewhere = tmp_path / "a folder with spaces, and ünïcode"
    elsewhere.mkdir()
    arguments = [str(script), "method=gptq", "bits=2", *few, "store.dir=alone"]
    done = subprocess.run(arguments, cwd=elsewhere, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (elsewhere / "alone" / "cells").is_dir()
    alone = cells(done)
    by_id = {row["id"]: row for row in inside}
    assert len(alone) == 2
    for row in alone:
        ours, theirs = ({name: dict(one) for name, one in own["metrics"].items()} for own in (row, by_id[row["id"]]))
        for one, other in zip(ours.values(), theirs.values(), strict=True):
            # Drawn for all cells of a table together, whose number decides the last digit.
            drawn = [own.pop("difference_interval", None) for own in (one, other)]
            assert drawn[0] == (drawn[1] and pytest.approx(drawn[1], rel=1e-12))
        assert ours == theirs
        assert row["bpw_exact"] == by_id[row["id"]]["bpw_exact"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["component.vision.bits=8", "component.language.bits=3,4"], [("8", "4", "3"), ("8", "4", "4")]),
        (["component=language", "component.language.blocks=[end]"], [(None, None, "4 (end)")]),
        (["component=vision,connector"], [("4", None, None), (None, "4", None)]),
        (["component.vision.layers=[mlp]", "bits=2,16"], [("2 (mlp)", "2", "2")]),
        (["method.group_size=64", "bits=3"], [("3", "3", "3")]),
    ],
    ids=str,
)
def test_overrides_choose_the_bits_that_a_table_shows(overrides: list[str], expected: list) -> None:
    size = {"total": {"bpw_paper": 4.0, "bpw_exact": 4.0, "size_bytes": 1}}
    with multirun(*overrides, "tracker=none") as run:
        shown = rows([record(cell, size=size) for cell in run.plan().cells], lambda cell_id: [])
    found = [tuple(row["bits"].get(part) for part in ("vision", "connector", "language")) for row in shown]
    assert sorted(map(str, found)) == sorted(map(str, [(None, None, None), *expected]))


# An example of each kind, and all that need -m; ``REFUSED`` has more of these kinds.
TOLD = [
    (["methd=gptq"], "methd: Unknown key 'methd'. Did you mean method?"),
    (
        ["method=gptqq"],
        "method=gptqq: Unknown option of method 'gptqq'. Did you mean gptq? Choose auto_gptq, auto_round, autoawq",
    ),
    (["hydra/launcher=slrm"], "hydra/launcher=slrm: Unknown option of hydra/launcher 'slrm'."),
    (["component.visoin.bits=3"], "component.visoin.bits: Unknown part 'visoin'. Did you mean vision?"),
    (["bits=1"], "bits=1: choose 2 to 8, or 16 for full precision."),
    (["bits=three"], "bits=three: Value 'three' of type 'str' could not be converted to Integer; choose 2 to 8"),
    (["bits=2,3"], "bits=2,3: several values are a sweep, which needs -m"),
    (["bits=[2"], "cannot read 'bits=[2': a bracket is opened and not closed"),
    (["-m", "bits=2,3,44"], "bits=44: choose 2 to 8, or 16"),
    (["-m", "bits="], "bits=: Value ''"),
    (["-m", "method=gptq,awk"], "method=awk: Unknown option of method 'awk'. Did you mean awq?"),
    (
        ["-m", "method=gptq,rtn", "method.vision_weight=0.5"],
        "method.vision_weight: Unknown key 'vision_weight'. Choose group_size or symmetric, the fields of method=rtn.",
    ),
    (["-m", "method=gptq,awq", "method.vision_weight=2"], "method.vision_weight=2: choose a number from 0 (text"),
    (["-m", "store.dir=a,b"], "store: differs between the cells of one sweep"),
    (["method.group_size=7"], "method.group_size: group_size=7 does not divide"),
    (
        ["task.data._target_=tests.tasks.test_generation.FromFile"],
        "task.data: cannot read no/such/images/captions.json: No such file or directory",
    ),
    (["model.checkpoint=/tmp"], "model.checkpoint=/tmp: holds no weights; expected *.safetensors"),
    (["store.dir=/dev/null/runs"], "cannot write /dev/null/runs"),
    (["-m", "method=uniform", "method.group_size=tensor", "bits=3"], "method.group_size: method=uniform has no fields"),
]
REFUSED = [
    (["model=blip"], "model=blip: Unknown option of model 'blip'."),
    (["bitz=3"], "bitz: Unknown key 'bitz'. Did you mean bits?"),
    (["+bitz=3"], "bitz: Unknown key 'bitz'. Did you mean bits?"),
    (["method.group_sizee=64"], "method.group_sizee: Unknown key 'group_sizee'. Did you mean group_size?"),
    (
        ["+component.audio.bits=3"],
        "component.audio.bits: Unknown part 'audio'. Choose connector, embeddings, head, language or vision.",
    ),
    (["component.vision.bitz=3"], "component.vision.bitz: Unknown key 'bitz'. Did you mean bits?"),
    (["component=vision", "component.language.bits=3"], "this component selects vision, not language"),
    (
        ["component=vision", "component.language.bits.mlp=3"],
        "component.language.bits.mlp: this component selects vision, not",
    ),
    (
        ["component=vision", "component.language.method.damping=1"],
        "component.language.method.damping: this component selects",
    ),
    (["component.foo.bits.mlp=3"], "component.foo.bits.mlp: Unknown part 'foo'"),
    (["component.vision.blocks=[frnt]"], "component.vision.blocks: Unknown block 'frnt'. Did you mean front?"),
    (["component.vision.blocks=front"], "give a list of front, middle, end"),
    (["component.vision.layers=[]"], "component.vision.layers=[]: selects nothing. Choose attention or mlp."),
    (["bits=9"], "bits=9: choose 2 to 8, or 16"),
    (["component.connector.bits=12"], "component.connector.bits=12: choose 2 to 8, or 16"),
    (["bits=[]"], "bits=[]: Value '[]' of type 'list' could not be converted to Integer; choose 2 to 8"),
    (["bits="], "bits=: Value '' of type 'str' could not be converted to Integer; choose 2 to 8"),
    (
        ["task.allow_missing=true"],
        "task=scenes_caption does not have this field, though its class does; add it as +task.al",
    ),
    (["method.group_size=rows"], "group_size='rows': choose tensor, channel or a positive number of input columns"),
    (
        ["method=normal_float", "component.language.bits={attention: 4, mlp: 5}"],
        "component.language: bits=5: method normal_float has 2 to 4 bits; choose these, or another method",
    ),
    (["method.symmetric=perhaps"], "method.symmetric='perhaps'"),
    (["method=gptq", "method.damping=-2"], "damping=-2.0: choose a fraction from 0 to 10"),
    (["method=kmeans", "method.damping=nan"], "method.damping=nan: choose a finite number."),
    (["method=gptq", "calibration.samples=0"], "calibration.samples=0: choose a whole number above 0."),
    (["task.limit=0"], "task.limit=0: choose a whole number above 0."),
    (["task.limit=many"], "task.limit='many': choose a whole number above 0."),
    (["task.data={_target_:some.Reader,path:x}"], "task.data: has the fields _target_, seed; set them one by one"),
    (["task.split=evaluatoin"], "evaluatoin"),
    (["task.metrics=cider"], "task.metrics='cider': give a list of names, for instance task.metrics=[cider]"),
    (["task.metrics=[3]"], "task.metrics=[3]: give a list of names"),
    (["task.data=photos"], "task.data='photos': give its fields one by one, for instance task.data.root=FOLDER"),
    (["task.data=null"], "task.data=None: give its fields one by one"),
    (["task._target_=3"], "task._target_=3: give the dotted path of a class"),
    (["task.data._target_=3"], "task.data._target_=3: give the dotted path of a class"),
    (["method._target_=3"], "method._target_=3: give the dotted path of a class"),
    (["task.metrics=[cidr]"], "task.metrics: Unknown metric 'cidr'. Did you mean cider?"),
    (["task.metrics=[vqa_accuracy]"], "vqa_accuracy"),
    (
        ["model=tiny_llava", "task=scenes_vqa", "task.metrics=[ece,aurc]"],
        "task.metrics=[ece,aurc]: needs a metric that says which answers are right. Choose vqa_accuracy, vqa_accuracy_2021",
    ),
    (["method=gptq", "task.calibration_split=evaluation"], "calibration samples are also evaluated in task.split"),
    (
        ["tracker=wandb", "tracker.mode=onlin"],
        "mode='onlin' (tracker.mode, or WANDB_MODE): Choose offline, online or disabled.",
    ),
    (["model.checkpoint=./absent"], "is not a folder; expected *.safetensors"),
    (["model.revision=sha256:0123456789abcdef"], "they are not those that the yaml names"),
    (["model.class_name=Blip3"], "model.class_name=Blip3: transformers"),
    (
        ["model.device=cuda"],
        "model.device=cuda: this machine and this build of torch have no such device; choose auto or cpu",
    ),
    (["model.device=tpu"], "model.device=tpu: Unknown choice 'tpu'. Did you mean cpu? Choose auto, cpu, cuda or mps."),
    (["model.dtype=int8"], "model.dtype=int8: Unknown choice 'int8'. Choose float32, float16 or bfloat16."),
    (["model.parts.vision.blocks=[layers]"], "model.parts.vision.blocks: none of layers is a module of"),
    (["retry=maybe"], "retry=maybe: Unknown choice 'maybe'. Choose failed, all or none."),
]


def with_defaults(arguments: list[str]) -> list[str]:
    """Add small limits and no tracker to ``arguments``, unless they say otherwise."""
    given = {argument.partition(".")[0] if argument.startswith("tracker") else key(argument) for argument in arguments}
    return [*arguments, *(one for one in SMALL if key(one) not in given)]


def key(override: str) -> str:
    return override.partition("=")[0]


@pytest.mark.parametrize(("arguments", "message"), TOLD, ids=[" ".join(arguments) for arguments, _ in TOLD])
def test_bad_input_is_told_before_any_work(tmp_path: Path, arguments: list[str], message: str) -> None:
    status, _, told = answered(tmp_path, *with_defaults(arguments))
    assert status == 2, told
    lines = told.splitlines()
    assert all(line.startswith("error: ") for line in lines), told
    assert any(message in line for line in lines), told
    assert not list(tmp_path.glob("*/cells/*")), "a cell ran"


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(arguments) for arguments, _ in REFUSED])
def test_what_a_cell_cannot_have_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = refused(*with_defaults(arguments))
    assert any(message in line for line in lines), lines
    assert not list(tmp_path.glob("*/cells/*")), "a cell ran"


def test_help_names_groups_and_fields(command: Command) -> None:
    told = command("--help")
    assert told.returncode == 0
    for expected in (
        "method: auto_gptq, auto_round, autoawq, awq, coordinate_descent, gptq, hqq, kmeans, none, normal_float, rtn, uniform",
        "bits: 4",
        "component: all",
        "python -m mmq_sweeps -m",
    ):
        assert expected in told.stdout


def test_killed_at_any_moment_the_next_run_does_what_is_missing(tmp_path: Path) -> None:
    def start() -> Forked:
        arguments = ["-m", "method=rtn", "bits=2,3,4,5,6,8", *SMALL, "task.limit=40", "component=language"]
        return Forked("mmq_sweeps", arguments, tmp_path, command_environment())

    kept: set[str] = set()
    for wanted in (1, 3):
        process = start()
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(tmp_path.glob("runs/cells/*/record.json"))) >= wanted:
                break
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        recorded = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/cells/*/record.json")}
        assert len(recorded) >= wanted
        assert kept <= set(recorded.items()), "a finished cell was run again"
        kept = set(recorded.items())
    process = start()
    told = process.communicate()[1]
    assert process.returncode == 0, told
    assert told.count("cell ") == 7 - len(kept)
    assert "warning" not in told
    recorded = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/cells/*/record.json")}
    assert len(recorded) == 7
    assert kept <= set(recorded.items())


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["-m", "method=rtn", "bits=2,3,4,5,6,8", *SMALL, "task.limit=40", "component=language"]
    process = Forked("mmq_sweeps", arguments, tmp_path, command_environment())
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/cells/*/record.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 130, told
    assert "finished cells are in the store, run the same command again" in told


def failing_method(folder: Path) -> dict[str, str]:
    """Write a method that fails at three bits, and its yaml, as a user would add it outside the package."""
    write_method(folder, "fragile", "raise RuntimeError('three is too many')")
    return {"PYTHONPATH": str(folder)}


def test_a_failing_cell_stops_no_other_and_is_told_last(command: Command, tmp_path: Path) -> None:
    environment = failing_method(tmp_path)
    arguments = [
        "-m",
        "method=fragile",
        "bits=2,3,4",
        *SMALL,
        "task.limit=4",
        f"hydra.searchpath=[file://{tmp_path}/own]",
    ]
    done = command(*arguments, **environment)
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-2:]
    failure = (
        "failed: fragile vision 3 connector 3 language 3: RuntimeError: vision_model.encoder.layers.0.self_attn.qkv: "
    )
    assert last[0].startswith(f"{failure}three is too many")
    assert last[1] == "1 of 4 cells failed"
    told = [line for line in done.stdout.splitlines() if "fragile" in line]
    assert [line.split()[0] for line in told] == ["fragile", "fragile", "failed"]
    records = [json.loads(path.read_text()) for path in tmp_path.glob("runs/cells/*/record.json")]
    error = next(record["error"] for record in records if record["status"] == "failed")
    assert error["class"] == "RuntimeError"
    assert "raise RuntimeError('three is too many')" in error["traceback"]

    kept = command(*arguments, "retry=none", **environment)
    assert kept.returncode == 1
    assert "cell " not in kept.stderr.replace("cells", "")
    (tmp_path / "fragile.py").write_text((tmp_path / "fragile.py").read_text().replace("== 3", "== 33"))
    mended = command(*arguments, **environment)
    assert mended.returncode == 0, mended.stderr
    assert mended.stderr.count("cell ") == 1


def test_a_corrupt_record_and_artifact_are_computed_again_and_said(command: Command, tmp_path: Path) -> None:
    arguments = ["method=rtn", "bits=3", "component=connector", *SMALL, "task.limit=4", "--json"]
    before = cells(command(*arguments))
    identity = before[-1]["id"]
    record = tmp_path / "runs" / "cells" / identity / "record.json"
    record.write_text(record.read_text().replace('"done"', '"dome"'))
    artifact = next((tmp_path / "runs" / "artifacts" / "quantized").glob("*.safetensors"))
    artifact.write_bytes(artifact.read_bytes()[:-1])
    after = command(*arguments)
    assert after.returncode == 0, after.stderr
    assert f"{record} does not match its sha256: moved to" in after.stderr
    assert f"{artifact} does not match its sha256: moved to" in after.stderr
    assert [row["metrics"] for row in cells(after)] == [row["metrics"] for row in before]
    assert len(list((tmp_path / "runs" / "corrupt").iterdir())) == 3


def test_a_disk_that_fills_up_stops_the_sweep_and_loses_nothing(tmp_path: Path) -> None:
    """Set a real limit on file sizes, which a cell's items reach: earlier records are shown and stay."""
    small = ["-m", "method=none,rtn", "bits=8", *SMALL, "component=connector", "component.connector.layers=[mlp]"]

    def run(limit: int, *overrides: str) -> subprocess.CompletedProcess[str]:
        return run_forked(
            "tests.execution.little_disk", [str(limit), *small, *overrides], tmp_path, command_environment()
        )

    references = run(9_000)
    assert references.returncode == 1, references.stderr
    assert f"stopped: cannot write {tmp_path}/runs/artifacts/references" in references.stderr
    assert run(50_000_000, "method=none").returncode == 0
    weights = run(9_000)
    assert weights.returncode == 1, weights.stderr
    assert f"stopped: cannot write {tmp_path}/runs/artifacts/quantized" in weights.stderr
    assert "File too large. Choose another folder with store.dir=FOLDER" in weights.stderr
    assert weights.stderr.endswith("; 1 cell is missing\n")
    assert "none" in weights.stdout, "the cell that is there is shown"
    roomy = run(50_000_000)
    assert roomy.returncode == 0, roomy.stderr
    assert roomy.stderr.count("cell ") == 1
