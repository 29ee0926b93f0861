"""Mistakes on a command line or in an experiment get a sentence that names the key, the value and the choices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from launch.plugin.sweeper import axes_of_grids
from mmq_sweeps.config.hydra_errors import explain
from mmq_sweeps.config.instantiate import READERS
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, unknown
from tests.faults.conftest import PLANNED, write
from tests.launch.multiruns import multirun
from tests.refusals import Told, refused

ADDED = [
    (
        "+task.generation.length_penalty=2",
        "+task.generation.length_penalty=2: task.generation is ${model.generation.caption}, which length_penalty would "
        "replace as a whole; set +model.generation.caption.length_penalty=2 instead.",
    ),
    (
        "++task.generation.num_beams=2",
        "++task.generation.num_beams=2: task.generation is ${model.generation.caption}, which num_beams would "
        "replace as a whole; set ++model.generation.caption.num_beams=2 instead.",
    ),
    (
        "+task.prompt.text=a",
        "+task.prompt.text=a: task.prompt is ${model.prompts.caption}, which text would replace as a whole; "
        "set model.prompts.caption=VALUE instead.",
    ),
    (
        "++method.calibration.seed=1",
        "++method.calibration.seed=1: method.calibration is ${calibration}, which seed would replace as a whole; "
        "set ++calibration.seed=1 instead.",
    ),
    (
        "+tracker.project.name=mine",
        "+tracker.project.name=mine: tracker.project is ${oc.env:WANDB_PROJECT,mmq-sweeps}, which name would replace as a "
        "whole; give tracker.project=VALUE.",
    ),
]


@pytest.mark.parametrize(("added", "sentence"), ADDED)
def test_a_key_added_below_a_reference_is_refused_with_the_key_to_set(added: str, sentence: str) -> None:
    assert refused("method=gptq", added) == [sentence]


def test_so_is_one_of_a_sweep_and_of_an_experiment(told: Callable[..., Told], own: Path) -> None:
    added, sentence = ADDED[0]
    key, _, text = added.partition("=")
    gptq = ("method=gptq", *PLANNED)
    assert told(*gptq, added)[::2] == (2, f"error: {sentence}\n")
    assert told("-m", *gptq, f"{key}={text},{text}0")[::2] == (2, f"error: {sentence}\n")
    write(own, "experiment/mine", f"hydra: {{sweeper: {{params: {{{key}: '{text},{text}0'}}}}}}")
    assert told("-m", f"--config-dir={own}", "experiment=mine", *gptq)[::2] == (2, f"error: {sentence}\n")


@pytest.mark.parametrize("limit", ["4", "null"])
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nope.absent.Class", "No module named 'nope'"),
        ("mmq_sweeps.tasks.caption.CaptionTusk", "module 'mmq_sweeps.tasks.caption' has no attribute 'CaptionTusk'"),
        ("os.path", "is no dataclass"),
        ("Alone", "Empty module name"),
    ],
)
@pytest.mark.parametrize("key", ["task._target_", "task.data._target_", "method._target_"])
def test_a_class_that_is_not_there_is_one_line_whatever_the_limit(
    composed: Callable[..., Any], key: str, target: str, reason: str, limit: str
) -> None:
    if (key, target) == ("task.data._target_", "Alone"):  # Readers have short names.
        reason = f"{unknown('reader', target, READERS)[:-1]}, or give the dotted path of a class."
    configs = [composed(f"{key}={target}", f"task.limit={limit}", f"bits={bits}") for bits in (2, 3)]
    with pytest.raises(ConfigError) as error:
        plan(configs)
    assert error.value.problems == [f"{key}={target}: {reason}"]


@pytest.mark.parametrize(
    "axis", ["bits=range(8,2)", "method=glob(zzz*)", "experiment=glob(zzz*)", "bits=choice()", "bits=range(2,2)"]
)
def test_an_axis_without_a_value_is_an_error_that_names_it(axis: str, told: Callable[..., Told]) -> None:
    status, out, err = told("-m", axis)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert axis in err
    assert "names no value" in err


@pytest.mark.parametrize("axis", [None, [], [2, 3], {"a": 1}], ids=str)
def test_an_axis_of_an_experiment_is_written_as_on_the_command_line(axis: object) -> None:
    with pytest.raises(ConfigError, match=r'the axis bits is .*; write its choices as text.*bits: "2,3"'):
        axes_of_grids({"params": {"bits": axis}})
    assert axes_of_grids({"params": {"bits": 3, "method.symmetric": True}}) == [["bits=3", "method.symmetric=true"]]


@pytest.mark.parametrize("again", ["bits=4,5", "bits=range(4,6)", "++bits=4,5"])
def test_a_key_that_is_swept_twice_is_an_error(again: str) -> None:
    with pytest.raises(ConfigError, match=r"bits: is swept twice, bits=2,3 and .*bits="), multirun("bits=2,3", again):
        pass
    with multirun("bits=2,3", "bits=4") as run:
        assert run.jobs == [["bits=4"]]


NONSENSE = [
    (
        ["-m", "method=rtn,hqq", "method.symmetric=true"],
        "method.symmetric: Unknown key 'symmetric'. Choose beta, group_size, iterations, kappa or lp_norm, the fields of "
        "method=hqq.",
    ),
    (["-m", "method=rtn,none", "method.group_size=64"], "method.group_size: method=none has no fields"),
    (["-m", "component=vision,language", "component.vision.bits=2,3"], "this component selects language, not vision; choose"),
    (["=3"], "=3: an override is KEY=VALUE"),
    (["model=null"], "model=null: Unknown option of model None. Choose "),
    (["component=3"], "component=3: Unknown option of component 3. Choose "),
    (["-m", "model=[tiny_blip2,tiny_llava]"], "model: takes one option, not a list"),
    (["model=tiny_blip2,tiny_llava"], "model=tiny_blip2,tiny_llava: several values are a sweep, which needs -m\n"),
    (["-m", "bits=range(2,4,0)"], "bits=range(2,4,0): range() arg 3 must not be zero."),
    (["-m", "bits=3,${nowhere}"], "bits=${nowhere}: there is no key 'nowhere'."),
    (["hydra.launcher=3"], "hydra.launcher=3: set its fields one by one, or choose hydra/launcher=NAME."),
    (["-m", "hydra/launcher=slurm", "+hydra.launcher.tim=3"], "hydra.launcher.tim: Unknown key 'tim'. Did you mean time?"),
    (["-m", "hydra/sweeper=basic", "bits=range(8,2)"], "Unknown option of hydra/sweeper 'basic'. Choose budget or grid."),
    (["-m", "hydra/launcher=basic", "bits=2,3"], "hydra/launcher=basic: Unknown option of hydra/launcher 'basic'."),
    (["hydra.searchpath=[/nowhere]"], "hydra.searchpath: /nowhere is no folder."),
    (["--config-dir=/nowhere"], "Additional config directory '/nowhere' not found"),
]  # fmt: skip

REFUSED = [
    ("method=[rtn,gptq]", "method: takes one option, not a list; for cells of each: -m method=A,B"),
    ("experiment=[gqa,vqav2]", "experiment: takes one option, not a list"),
    ("+method=rtn", "method: has an option already; write method=OPTION, without a +"),
    ("+experiment=gqa", "experiment: has an option already; write experiment=OPTION, without a +"),
    ("++method=rtn", "method: has an option already; write method=OPTION, without a +"),
    ("~nothing", "nothing: Unknown key 'nothing'. Choose "),
    ("~bits", "component.vision.bits=${bits}: there is no key 'bits'."),
    ("~method", "method: no value; give method=VALUE"),
    ("bits=${nowhere}", "bits=${nowhere}: there is no key 'nowhere'."),
    ("bits=${bits}", "bits=${bits}: Recursive interpolation detected"),
    ("store.dir=${oc.env:NOT_SET_ANYWHERE}", "store.dir=${oc.env:NOT_SET_ANYWHERE}: KeyError"),
    ("task.prompt=${model.prompts.riddle}", "task.prompt=${model.prompts.riddle}: there is no key 'model.prompts.riddle'."),
    ("store=abc", "store=abc: has the fields dir, max_gb, lease_seconds; set them one by one"),
    ("component.vision=3", "component.vision=3: has the fields bits, blocks, layers"),
    ("store.dir=null", "store.dir=null: cannot be null"),
    ("task.metrics={a:1}", "task.metrics={a:1}: is a list, as in task.metrics=[cider]"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), NONSENSE, ids=[" ".join(arguments) for arguments, _ in NONSENSE])
def test_nonsense_is_answered_in_a_sentence(arguments: list[str], message: str, told: Callable[..., Told]) -> None:
    status, out, err = told(*arguments)
    assert (status, out) == (2, ""), err
    assert all(line.startswith("error: ") for line in err.splitlines()), err
    assert message in err


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("bits=2,,3", "there is no value before or after a comma"),
        ("bits=2,", "there is no value before or after a comma"),
        ("component=vision bits=2", "it holds a second override; give each as an argument of its own"),
        ("bits", "an override is KEY=VALUE"),
        (
            "bits==3",
            "put a value with special characters in quotes, KEY='VALUE', and the whole in quotes of the shell",
        ),
        ("component.vision.blocks=[front", "a bracket is opened and not closed, or closed and not opened"),
        ("model='tiny_blip2", "a quotation mark is opened and not closed"),
    ],
)
def test_an_override_that_cannot_be_read_is_told_with_the_reason(override: str, reason: str) -> None:
    with pytest.raises(OverrideParseException) as error:
        OverridesParser.create().parse_overrides([override])
    assert explain(error.value, [override]) == [f"cannot read {override!r}: {reason}"]


@pytest.mark.parametrize(("override", "message"), REFUSED)
def test_an_override_that_fits_nothing_is_refused_in_a_sentence(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert any(message in line for line in refused(override))


EXPERIMENTS = {
    "hydra: {sweeper: {parms: {bits: '2,3'}}}": "hydra.sweeper.parms: Unknown key 'parms'. Did you mean params?",
    "hydra: {sweeper: {params: [bits]}}": "experiment/mine.yaml: has a list where there are fields, or fields where",
    "hydra: {sweeper: {params: {bits: '2,,3'}}}": "cannot read 'bits=2,,3': there is no value before or after a comma",
    "hydra: {sweeper: {params: {methd: 'rtn,gptq'}}}": "methd: Unknown key 'methd'. Did you mean method?",
    "hydra: {launcher: {workerz: 3}}": "hydra.launcher.workerz: Unknown key 'workerz'. Did you mean workers?",
    "bitz: 3": "experiment/mine.yaml: bitz: Unknown key 'bitz'. Did you mean bits?",
    "bits: three": "experiment/mine.yaml: bits: Value 'three' of type 'str' could not be converted to Integer",
    "bits: [3": "experiment/mine.yaml: line ",
    "defaults: [override /metod: gptq]": "experiment/mine.yaml: Unknown group 'metod'. Did you mean method?",
    "defaults: [override /method: gptqq]": "method=gptqq: Unknown option of method 'gptqq'. Did you mean gptq?",
    "defaults: [/method: gptq]": "method: a yaml chooses it a second time; write 'override /method: OPTION'",
}

# Mistakes for a run without -m: in settings of the grid, in settings of the launcher, and in the yaml itself.
ALONE = ("hydra: {sweeper: {parms: {bits: '2,3'}}}", "hydra: {launcher: {workerz: 3}}", "bits: [3")


@pytest.mark.parametrize(
    ("several", "text"), [*((["-m"], text) for text in EXPERIMENTS), *(([], text) for text in ALONE)], ids=str
)
def test_a_mistake_in_an_experiment_is_told_whole(
    several: list[str], text: str, own: Path, told: Callable[..., Told]
) -> None:
    write(own, "experiment/mine", text)
    status, out, err = told(f"--config-dir={own}", *several, "experiment=mine")
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert EXPERIMENTS[text] in err


def test_an_experiment_without_its_first_line_is_told(own: Path, told: Callable[..., Told]) -> None:
    write(own, "experiment/mine", "bits: 3", package="")
    status, _, err = told(f"--config-dir={own}", "experiment=mine")
    assert status == 2
    assert err.startswith("error: experiment/mine.yaml: its first line has to be '# @package _global_'")
