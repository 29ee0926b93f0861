"""The settings of a command line, an experiment and a user's own folder are those that run, or a sentence says why not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mmq_sweeps.config.schema import Config
from mmq_sweeps.config.sweep import plan
from tests.faults.conftest import PLANNED, write
from tests.launch.multiruns import multirun
from tests.refusals import Told


def searched(folder: Path) -> str:
    return f"hydra.searchpath=['file://{folder}']"


# For every field of the configuration: the value in an experiment, its key, and a different value on the command line.
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


@pytest.mark.parametrize("fields", [list(FIELDS)[first::5] for first in range(5)], ids=str)
def test_axes_of_the_command_line_win_over_an_experiment(fields: list[str], own: Path) -> None:
    yamls, keys, expected, _, overridden = zip(*(FIELDS[field] for field in fields), strict=True)
    write(own, "experiment/mine", "\n".join(yamls))
    pairs = list(zip(expected, overridden, strict=True))
    axes = [f"{key}={one},{other}" for key, (one, other) in zip(keys, pairs, strict=True)]
    assert values([searched(own), "experiment=mine", *axes], keys) == list(product(*pairs))


def test_a_key_added_where_the_reference_leads_keeps_the_others() -> None:
    with multirun("+model.generation.caption.length_penalty=2", "++calibration.seed=1") as run:
        (config,) = run.configs()
    kept = {"num_beams": 1, "max_new_tokens": 40, "length_penalty": 2}
    assert OmegaConf.to_container(config, resolve=True)["task"]["generation"] == kept


def values(arguments: Sequence[str], keys: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return the values at ``keys`` of each configuration of a multirun; a single one must equal a run without ``-m``."""
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
    with multirun(searched(own), "experiment=first,second,third") as run:
        jobs = run.jobs
        found = [(config.method.symmetric, config.seed, config.bits, *config.component) for config in run.configs()]
    ends = ("embeddings", "head")
    parts = ("vision", "connector", "language", *ends)
    assert found == [
        *[(True, 0, bits, *parts) for bits in (2, 3)],
        *[(False, 5, bits, *parts) for bits in (3, 4)],
        (False, 5, 4, "vision", *ends),
        (False, 0, 8, *parts),
    ]
    with multirun(searched(own), "experiment=glob(*,exclude=[*_*,deployable,gallery,gqa,retrieval,vqav2])") as run:
        assert run.jobs == jobs
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


def test_a_value_means_in_a_sweep_what_it_means_alone() -> None:
    with multirun("task.prompt=str(1)", "bits=2,3") as run:
        assert [config.task.prompt for config in run.configs()] == ["1", "1"]
    with multirun("task.prompt=str(1),str(true),plain,'a, b',3") as run:
        assert [config.task.prompt for config in run.configs()] == ["1", "true", "plain", "a, b", 3]
    with multirun("~component.vision", "bits=2,3") as run:
        assert [list(config.component) for config in run.configs()] == [
            ["connector", "language", "embeddings", "head"]
        ] * 2


def test_the_version_is_ours_with_those_of_what_it_stands_on(told: Callable[..., Told]) -> None:
    status, out, _ = told("--version")
    assert status == 0
    assert re.fullmatch(
        r"mmq-sweeps \d\S* \(Python 3\S+, hydra-core \d\S+, torch \d\S+, transformers \d\S+, wandb \d\S+\)\n", out
    )
