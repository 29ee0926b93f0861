"""What a command line, an experiment and a folder of one's own ask for is what runs, or one sentence says why not."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.plugin.sweeper import axes_of_grids
from mmq_sweeps.config.instantiate import READERS
from mmq_sweeps.config.schema import Config
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError, unknown
from tests.launch.multiruns import multirun

Told = tuple[int, str, str]
PLANNED = ("hydra.launcher.check=false", "--json")


@pytest.fixture
def told(tmp_path: Path) -> Callable[..., Told]:
    """Runs the command in a process forked off this one; its exit status, standard output and standard error."""

    def run(*arguments: str, module: str = "mmq_sweeps") -> Told:
        paths = [tmp_path / "standard-output", tmp_path / "standard-error"]
        child = os.fork()
        if not child:
            status = 99
            try:
                for number, path in enumerate(paths, start=1):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
                os.chdir(tmp_path)
                sys.argv = [module, *arguments]
                __import__(f"{module}.__main__", fromlist=["main"]).main()
                status = 0
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return status, *(path.read_text() for path in paths)

    return run


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of configuration outside the package, as ``--config-dir`` names it."""
    folder = tmp_path / "own"
    (folder / "experiment").mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str, package: str = "# @package _global_\n") -> None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(package + text)


def searched(folder: Path) -> str:
    return f"hydra.searchpath=['file://{folder}']"


# Of every field of the configuration: what an experiment says, where, and what a command line says instead.
FIELDS: dict[str, tuple[str, str, Any, str, Any]] = {
    "model": ("model: {dtype: bfloat16}", "model.dtype", "bfloat16", "model.dtype=float16", "float16"),
    "component": ("component: {vision: {bits: 3}}", "component.vision.bits", 3, "component.vision.bits=5", 5),
    "method": ("method: {group_size: 64}", "method.group_size", 64, "method.group_size=tensor", "tensor"),
    "task": ("task: {limit: 11}", "task.limit", 11, "task.limit=12", 12),
    "tracker": ("tracker: {project: mine}", "tracker.project", "mine", "tracker.project=its", "its"),
    "bits": ("bits: 3", "bits", 3, "bits=5", 5),
    "assignment": ("assignment: x.yaml", "assignment", "x.yaml", "assignment=y.yaml", "y.yaml"),
    "seed": ("seed: 7", "seed", 7, "seed=8", 8),
    "calibration": ("calibration: {samples: 4}", "calibration.samples", 4, "calibration.samples=6", 6),
    "store": ("store: {dir: x}", "store.dir", "x", "store.dir=y", "y"),
    "retry": ("retry: all", "retry", "all", "retry=none", "none"),
    "retries": ("retries: 5", "retries", 5, "retries=6", 6),
    "view": ("view: {max_bpw: 3}", "view.max_bpw", 3.0, "view.max_bpw=5", 5.0),
    "output": ("output: json", "output", "json", "output=table", "table"),
}


def test_an_experiment_wins_over_the_defaults_and_loses_to_the_command_line(own: Path) -> None:
    assert FIELDS.keys() == Config.__dataclass_fields__.keys()
    yamls, keys, expected, overrides, overridden = zip(*FIELDS.values(), strict=True)
    write(own, "experiment/mine", "\n".join(yamls))
    alone = [searched(own), "experiment=mine"]
    assert values(alone, keys) == [expected]
    assert values([*alone, *overrides], keys) == [overridden]
    # The sweep of another axis, as jobs of SLURM are told of it.
    assert values([*alone, "task.batch_size=6,7"], keys) == [expected] * 2
    assert values([*alone, "task.batch_size=6,7", *overrides], keys) == [overridden] * 2


@pytest.mark.parametrize("field", FIELDS)
def test_an_axis_of_the_command_line_wins_over_an_experiment(field: str, own: Path) -> None:
    yaml, key, expected, _, overridden = FIELDS[field]
    write(own, "experiment/mine", yaml)
    swept = values([searched(own), "experiment=mine", f"{key}={expected},{overridden}"], [key])
    assert swept == [(expected,), (overridden,)]


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
def test_a_key_added_below_a_reference_is_refused_with_the_key_to_set(
    added: str, sentence: str, told: Callable[..., Told], own: Path
) -> None:
    key, _, text = added.partition("=")
    gptq = ("method=gptq", *PLANNED)
    assert told(*gptq, added)[::2] == (2, f"error: {sentence}\n")
    assert told("-m", *gptq, f"{key}={text},{text}0")[::2] == (2, f"error: {sentence}\n")
    write(own, "experiment/mine", f"hydra: {{sweeper: {{params: {{{key}: '{text},{text}0'}}}}}}")
    assert told("-m", f"--config-dir={own}", "experiment=mine", *gptq)[::2] == (2, f"error: {sentence}\n")


def test_a_key_added_where_the_reference_leads_keeps_the_others() -> None:
    with multirun("+model.generation.caption.length_penalty=2", "++calibration.seed=1") as run:
        (config,) = run.configs()
    kept = {"num_beams": 1, "max_new_tokens": 40, "length_penalty": 2}
    assert OmegaConf.to_container(config, resolve=True)["task"]["generation"] == kept


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


def values(arguments: Sequence[str], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """What each configuration of a multirun has at ``keys``; a single one has what a run without ``-m`` has."""
    with multirun(*arguments) as run:
        master, configs = run.master, list(run.configs())
    if len(configs) == 1:
        configs.append(master)
    found = [tuple(OmegaConf.select(config, key) for key in keys) for config in configs]
    if configs[-1] is master:
        assert found.pop() == found[0], "a single run has another value"
    return found


def test_the_cells_of_a_sweep_have_the_experiments_values(own: Path) -> None:
    write(own, "experiment/mine", "bits: 3\ncalibration: {samples: 4}\nseed: 7\nstore: {dir: x}\n")
    with multirun(searched(own), "experiment=mine", "method=gptq", "component=vision,language") as run:
        sweep = plan(run.configs())
    assert sweep.settings["store"]["dir"] == "x"
    quantized = [cell for cell in sweep.cells if cell.parts]
    assert [next(iter(cell.parts.values()))["bits"] for cell in quantized] == [3, 3]
    assert [(cell.calibration["samples"], cell.calibration["seed"]) for cell in quantized] == [(4, 7)] * 2


def test_options_and_groups_of_a_folder_of_ones_own_win_over_the_defaults(own: Path) -> None:
    write(own, "study/short", "calibration: {samples: 4}\ntask: {limit: 9}\n")
    write(own, "task/brief", "defaults: [scenes_caption]\nlimit: 5\n", package="")
    with multirun(searched(own), "+study=short", "bits=2,3") as run:
        found = [(config.calibration.samples, config.task.limit, config.bits) for config in run.configs()]
    assert found == [(4, 9, 2), (4, 9, 3)]
    with multirun(searched(own), "task=brief,scenes_caption", "task.batch_size=7") as run:
        assert [(config.task.limit, config.task.batch_size) for config in run.configs()] == [(5, 7), (500, 7)]


@pytest.mark.parametrize("module", ["mmq_sweeps", "launch"])
def test_a_plan_takes_a_folder_of_ones_own(module: str, told: Callable[..., Told], own: Path, tmp_path: Path) -> None:
    write(own, "experiment/mine", "bits: 3\nstore: {dir: x}\nhydra: {sweeper: {params: {seed: '1,2'}}}\n")
    # Options may stand between overrides.
    asked = ["method=gptq", f"--config-dir={own}", "experiment=mine", "component=vision,all", *PLANNED]
    command = ["plan", *asked] if module == "launch" else ["-m", *asked, "hydra.launcher.dry_run=true"]
    status, out, err = told(*command, module=module)
    assert status == 0, err
    found = json.loads(out)
    assert (found["configurations"], found["store"]) == (4, str(tmp_path / "x"))


def test_a_file_that_another_of_its_name_hides_is_an_error(told: Callable[..., Told], own: Path) -> None:
    write(own, "method/rtn", "_target_: mmq_sweeps.methods.rtn.RoundToNearest\ngroup_size: 32\n", package="")
    for arguments in (["bits=3"], ["-m", "method=rtn,gptq"]):
        status, _, err = told("--config-dir", str(own), *arguments, "hydra.launcher.dry_run=true")
        assert status == 2
        assert re.fullmatch(rf"error: method/rtn: \S+ is read and {own}/method/rtn.yaml is not; .*\n", err), err
    write(own, "config", "bits: 3")
    (own / "method" / "rtn.yaml").unlink()
    status, _, err = told("--config-dir", str(own), "hydra.launcher.dry_run=true")
    assert status == 2
    assert err.startswith("error: config: ")


def test_an_experiment_with_a_grid_needs_m_or_a_value_for_every_axis(told: Callable[..., Told]) -> None:
    small = ["experiment=retrieval", "model=tiny_blip2_itm", "task=scenes_retrieval"]
    status, _, err = told(*small, "component.vision.bits=2")
    assert (status, err) == (
        2,
        "error: experiment=retrieval: is a grid over method, component.vision.bits, component.connector.bits, which needs "
        "-m: python -m mmq_sweeps -m experiment=retrieval model=tiny_blip2_itm task=scenes_retrieval "
        "component.vision.bits=2; for one cell of it give method=VALUE component.connector.bits=VALUE\n",
    )
    one = ["component.vision.bits=2", "component.connector.bits=3", "method=rtn"]
    status, out, err = told(*small, *one, "hydra.launcher.dry_run=true", *PLANNED)
    assert status == 0, err
    assert json.loads(out)["cells"] == 2
    status, out, err = told("-m", *small, *one, "hydra.launcher.dry_run=true", *PLANNED)
    assert json.loads(out)["configurations"] == 1


def test_an_experiment_may_say_itself_that_it_is_a_sweep(told: Callable[..., Told], own: Path) -> None:
    write(own, "experiment/swept", "hydra: {mode: MULTIRUN, sweeper: {params: {bits: '2,3'}}}\n")
    status, out, err = told(f"--config-dir={own}", "experiment=swept", "hydra.launcher.dry_run=true", *PLANNED)
    assert status == 0, err
    assert json.loads(out)["configurations"] == 2


def test_two_experiments_in_one_sweep_run_both_grids(own: Path) -> None:
    write(own, "experiment/first", "method: {symmetric: true}\nhydra: {sweeper: {params: {bits: '2,3'}}}\n")
    write(own, "experiment/second", "seed: 5\nhydra: {sweeper: {grids: [{bits: '3,4'}, {component: vision}]}}\n")
    write(own, "experiment/third", "bits: 8\n")
    for arguments in (
        ["experiment=first,second,third"],
        ["experiment=glob(*,exclude=[*_*,deployable,gallery,gqa,retrieval,vqav2])"],
    ):
        with multirun(searched(own), *arguments) as run:
            found = [(config.method.symmetric, config.seed, config.bits, *config.component) for config in run.configs()]
        ends = ("embeddings", "head")
        parts = ("vision", "connector", "language", *ends)
        assert found == [
            *[(True, 0, bits, *parts) for bits in (2, 3)],
            *[(False, 5, bits, *parts) for bits in (3, 4)],
            (False, 5, 4, "vision", *ends),
            (False, 0, 8, *parts),
        ]
    with multirun(searched(own), "experiment=first,second", "bits=6") as run:
        assert len(run.jobs) == 3


def test_a_sweep_has_one_launcher_and_says_so(told: Callable[..., Told], own: Path) -> None:
    write(own, "experiment/here", "bits: 3\n")
    write(own, "experiment/wide", "bits: 3\nhydra: {launcher: {workers: 2}}\n")
    write(own, "study/gridded", "hydra: {sweeper: {params: {bits: '2,3'}}}\n")
    folder = f"--config-dir={own}"
    status, _, err = told(folder, "-m", "experiment=here,wide", "hydra.launcher.dry_run=true")
    assert status == 2
    assert err.startswith("error: experiment=here,wide: these experiments set hydra.launcher differently")
    write(own, "study/plain", "bits: 3\n")
    status, _, err = told(folder, "-m", "+study=plain,gridded", "hydra.launcher.dry_run=true")
    assert status == 2
    assert err.startswith("error: +study=gridded: sets hydra.sweeper, which a sweep reads once for all its cells")


def test_an_experiment_may_choose_the_launcher(own: Path) -> None:
    text = "defaults: [override /hydra/launcher: slurm]\nhydra: {launcher: {time: '4:00:00'}}\n"
    write(own, "experiment/mine", text)
    for arguments, expected in (([], ("slurm", "4:00:00")), (["hydra.launcher.time=5"], ("slurm", 5))):
        with multirun(searched(own), "experiment=mine", "bits=2,3", *arguments) as run:
            found = (run.master.hydra.runtime.choices["hydra/launcher"], run.master.hydra.launcher.time)
        assert found == expected
    write(own, "experiment/mine", text.partition("\n")[0])
    with multirun(searched(own), "experiment=mine", "hydra/launcher=local") as run:
        assert run.master.hydra.runtime.choices["hydra/launcher"] == "local"
    with multirun("bits=2,3") as run:
        choices = run.master.hydra.runtime.choices
        assert (choices["hydra/launcher"], choices["hydra/sweeper"], choices["hydra/job_logging"]) == (
            "local",
            "grid",
            "none",
        )


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


def test_a_value_means_in_a_sweep_what_it_means_alone() -> None:
    with multirun("task.prompt=str(1)", "bits=2,3") as run:
        assert [config.task.prompt for config in run.configs()] == ["1", "1"]
    with multirun("task.prompt=str(1),str(true),plain,'a, b',3") as run:
        assert [config.task.prompt for config in run.configs()] == ["1", "true", "plain", "a, b", 3]
    with multirun("~component.vision", "bits=2,3") as run:
        assert [list(config.component) for config in run.configs()] == [
            ["connector", "language", "embeddings", "head"]
        ] * 2


NONSENSE = [
    (
        ["-m", "method=rtn,hqq", "method.symmetric=true"],
        "method.symmetric: Unknown key 'symmetric'. Choose beta, group_size, iterations, kappa or lp_norm, the fields of "
        "method=hqq.",
    ),
    (["-m", "method=rtn,none", "method.group_size=64"], "method.group_size: method=none has no fields"),
    (["-m", "component=vision,language", "component.vision.bits=2,3"], "this component selects language, not vision; choose"),
    (["-m", "bits=2,,3"], "cannot read 'bits=2,,3': there is no value before or after a comma"),
    (["-m", "bits=2,"], "cannot read 'bits=2,': there is no value before or after a comma"),
    (["component=vision bits=2"], "it holds a second override; give each as an argument of its own"),
    (["bits"], "cannot read 'bits': an override is KEY=VALUE"),
    (["=3"], "=3: an override is KEY=VALUE"),
    (["bits==3"], "cannot read 'bits==3': put a value with special characters in quotes"),
    (["component.vision.blocks=[front"], "a bracket is opened and not closed"),
    (["model='tiny_blip2"], "a quotation mark is opened and not closed"),
    (["model=null"], "model=null: Unknown option of model None. Choose "),
    (["component=3"], "component=3: Unknown option of component 3. Choose "),
    (["method=[rtn,gptq]"], "method: takes one option, not a list; for cells of each: -m method=A,B"),
    (["-m", "model=[tiny_blip2,tiny_llava]"], "model: takes one option, not a list"),
    (["experiment=[gqa,vqav2]"], "experiment: takes one option, not a list"),
    (["model=tiny_blip2,tiny_llava"], "model=tiny_blip2,tiny_llava: several values are a sweep, which needs -m\n"),
    (["+method=rtn"], "method: has an option already; write method=OPTION, without a +"),
    (["+experiment=gqa"], "experiment: has an option already; write experiment=OPTION, without a +"),
    (["-m", "bits=range(2,4,0)"], "bits=range(2,4,0): range() arg 3 must not be zero."),
    (["++method=rtn"], "method: has an option already; write method=OPTION, without a +"),
    (["~nothing"], "nothing: Unknown key 'nothing'. Choose "),
    (["~bits"], "component.vision.bits=${bits}: there is no key 'bits'."),
    (["~method"], "method: no value; give method=VALUE"),
    (["bits=${nowhere}"], "bits=${nowhere}: there is no key 'nowhere'."),
    (["-m", "bits=3,${nowhere}"], "bits=${nowhere}: there is no key 'nowhere'."),
    (["bits=${bits}"], "bits=${bits}: Recursive interpolation detected"),
    (["store.dir=${oc.env:NOT_SET_ANYWHERE}"], "store.dir=${oc.env:NOT_SET_ANYWHERE}: KeyError"),
    (["task.prompt=${model.prompts.riddle}"], "task.prompt=${model.prompts.riddle}: there is no key 'model.prompts.riddle'."),
    (["store=abc"], "store=abc: has the fields dir, max_gb, lease_seconds; set them one by one"),
    (["component.vision=3"], "component.vision=3: has the fields bits, blocks, layers"),
    (["store.dir=null"], "store.dir=null: cannot be null"),
    (["task.metrics={a:1}"], "task.metrics={a:1}: is a list, as in task.metrics=[cider]"),
    (["hydra.launcher=3"], "hydra.launcher=3: set its fields one by one, or choose hydra/launcher=NAME."),
    (["-m", "hydra/launcher=slurm", "+hydra.launcher.tim=3"], "hydra.launcher.tim: Unknown key 'tim'. Did you mean time?"),
    (["-m", "hydra/sweeper=basic", "bits=range(8,2)"], "Unknown option of hydra/sweeper 'basic'. Choose budget or grid."),
    (["-m", "hydra/launcher=basic", "bits=2,3"], "hydra/launcher=basic: Unknown option of hydra/launcher 'basic'."),
    (["hydra.searchpath=[/nowhere]"], "hydra.searchpath: /nowhere is no folder."),
    (["--config-dir=/nowhere"], "Additional config directory '/nowhere' not found"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), NONSENSE, ids=[" ".join(arguments) for arguments, _ in NONSENSE])
def test_nonsense_is_answered_in_a_sentence(arguments: list[str], message: str, told: Callable[..., Told]) -> None:
    status, out, err = told(*arguments)
    assert (status, out) == (2, ""), err
    assert all(line.startswith("error: ") for line in err.splitlines()), err
    assert message in err


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


@pytest.mark.parametrize("text", EXPERIMENTS)
@pytest.mark.parametrize("run", ["-m", "alone"])
def test_a_mistake_in_an_experiment_is_told_whole(text: str, run: str, own: Path, told: Callable[..., Told]) -> None:
    write(own, "experiment/mine", text)
    several = ["-m"] if run == "-m" else []
    status, out, err = told(f"--config-dir={own}", *several, "experiment=mine")
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    # Alone, a grid is refused before its axes are read.
    assert EXPERIMENTS[text] in err or (run == "alone" and "experiment=mine: is a grid over" in err)


def test_an_experiment_without_its_first_line_is_told(own: Path, told: Callable[..., Told]) -> None:
    write(own, "experiment/mine", "bits: 3", package="")
    status, _, err = told(f"--config-dir={own}", "experiment=mine")
    assert status == 2
    assert err.startswith("error: experiment/mine.yaml: its first line has to be '# @package _global_'")


def test_the_version_is_ours_with_those_of_what_it_stands_on(told: Callable[..., Told]) -> None:
    status, out, _ = told("--version")
    assert status == 0
    assert re.fullmatch(
        r"mmq-sweeps \d\S* \(Python 3\S+, hydra-core \d\S+, torch \d\S+, transformers \d\S+, wandb \d\S+\)\n", out
    )
