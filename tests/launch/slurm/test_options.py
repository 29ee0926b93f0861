"""The settings of ``hydra/launcher=slurm``, without a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from launch.slurm.options import Options
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.errors import ConfigError

YAML: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "hydra" / "launcher" / "slurm.yaml"))


def problems(**settings: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Options.of({**YAML, **settings})
    return caught.value.problems


def test_the_yaml_says_the_defaults_and_how_long() -> None:
    options = Options.of(YAML)
    assert options.time == 60
    assert options.gpus_per_node == "1"
    assert options.requeues == Options().requeues
    assert options.signal_seconds == Options().signal_seconds
    assert options.flags() == [
        "--gpus-per-node=1", "--time=60", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=2",
    ]  # fmt: skip


def test_what_is_asked_of_submitit_is_what_sbatch_is_asked_before() -> None:
    settings = {
        "partition": "gpu", "account": "study", "qos": "high", "constraint": "a100", "gpus_per_node": None,
        "gres": "gpu:a100:2", "cpus_per_task": 8, "mem": 1000, "time": "1-12", "setup": ["module load cuda"],
        "sbatch": {"mail-type": "FAIL", "exclusive": True},
    }  # fmt: skip
    options = Options.of({**YAML, **settings})
    parameters = options.parameters()
    assert parameters["additional_parameters"] == {"requeue": True, "mail-type": "FAIL", "exclusive": True}
    assert parameters["setup"] == ["module load cuda"]
    assert options.flags() == [
        "--partition=gpu", "--account=study", "--qos=high", "--constraint=a100", "--gres=gpu:a100:2", "--mem=1000",
        "--time=2160", "--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=8", "--mail-type=FAIL", "--exclusive",
    ]  # fmt: skip
    for flag in options.flags()[:8]:
        key, value = flag.removeprefix("--").split("=")
        assert str(parameters[key.replace("-", "_")]) == value


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"partiton": "gpu"}, "hydra.launcher.partiton: Unknown setting 'partiton'. Did you mean partition?"),
        ({"cpus_per_task": 0}, "hydra.launcher.cpus_per_task=0: choose a whole number, 1 or more."),
        ({"requeues": 1.5}, "hydra.launcher.requeues=1.5: choose a whole number, 0 or more."),
        ({"parallelism": True}, "hydra.launcher.parallelism=True: choose a whole number, 1 or more."),
        ({"gpus_per_node": "a100"}, "hydra.launcher.gpus_per_node=a100: choose a number or TYPE:NUMBER"),
        ({"gres": "gpu:1"}, "hydra.launcher.gpus_per_node and hydra.launcher.gres: give one of them."),
        ({"time": "soon"}, "hydra.launcher.time=soon: choose minutes, or hours as 4:00:00"),
        ({"time": 2, "signal_seconds": 120}, "hydra.launcher.signal_seconds=120: is as long as the job's whole time."),
        ({"wait": "no"}, "hydra.launcher.wait=no: choose true or false."),
        ({"setup": "module load cuda"}, "hydra.launcher.setup=module load cuda: give it a list of lines of shell."),
        (
            {"sbatch": ["exclusive"]},
            "hydra.launcher.sbatch=['exclusive']: give it flags and values: {exclusive: true}.",
        ),
        ({"sbatch": {"array": "0-9"}}, "hydra.launcher.sbatch.array: the launcher sets it itself."),
        ({"partition": ["gpu"]}, "hydra.launcher.partition=['gpu']: give it a text."),
    ],
)
def test_each_wrong_setting_is_named(settings: dict[str, Any], told: str) -> None:
    (problem,) = problems(**settings)
    assert problem.startswith(told)


def test_all_wrong_settings_are_told_at_once() -> None:
    assert len(problems(time="soon", cpus_per_task=0, partiton="gpu", wait=1)) == 4
