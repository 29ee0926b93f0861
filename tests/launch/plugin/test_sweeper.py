"""The jobs that a command line and an experiment ask for."""

from __future__ import annotations

import pytest
from hydra.errors import HydraException

from launch.plugin.sweeper import axes_of_grids
from mmq_sweeps.errors import ConfigError
from tests.launch.multiruns import multirun


def jobs(*arguments: str) -> list[list[str]]:
    with multirun(*arguments) as run:
        return run.jobs


def test_every_combination_is_a_job() -> None:
    assert jobs("bits=2,3", "method=rtn", "seed=0,1") == [
        [f"bits={bits}", "method=rtn", f"seed={seed}"] for bits in (2, 3) for seed in (0, 1)
    ]
    assert jobs("bits=range(2,5)") == [["bits=2"], ["bits=3"], ["bits=4"]]
    assert len(jobs("method=glob(*)")) >= 9


def test_of_one_key_the_last_value_holds() -> None:
    assert jobs("bits=2,3", "bits=4") == [["bits=4"]]
    (job,) = jobs("experiment=embedded_table", "bits=3", "method=rtn", "component=all")
    assert set(job) == {"experiment=embedded_table", "bits=3", "method=rtn", "component=all"}


def test_grids_are_united_and_what_both_have_is_one_job() -> None:
    grids = 'hydra.sweeper.grids=[{seed: "0,1"}, {seed: "1,2", method: gptq}, {seed: "1"}]'
    found = [sorted(job) for job in jobs("bits=2,3", grids)]
    expected = [(bits, [], seed) for seed in (0, 1) for bits in (2, 3)]
    expected += [(bits, ["method=gptq"], seed) for seed in (1, 2) for bits in (2, 3)]
    assert found == [[f"bits={bits}", *method, f"seed={seed}"] for bits, method, seed in expected]


def test_an_axis_may_be_the_value_of_another_key() -> None:
    with multirun("bits=2,3", 'hydra.sweeper.grids=[{component.vision.bits: "${bits},16"}]') as run:
        assert [(config.bits, config.component.vision.bits) for config in run.configs()] == [
            (2, 2), (3, 3), (2, 16), (3, 16),
        ]  # fmt: skip


@pytest.mark.parametrize("grids", ["bits", {"bits": "2"}, 3])
def test_grids_that_are_no_list_are_told(grids: object) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweeper\.grids=.*: give a list of mappings"):
        axes_of_grids({"params": {}, "grids": grids})


def test_axes_that_are_no_mapping_are_told() -> None:
    with pytest.raises(ConfigError, match="'bits=2' is no mapping from keys to choices"):
        axes_of_grids({"params": {}, "grids": ["bits=2"]})


def test_a_sweep_without_end_is_told() -> None:
    with pytest.raises(HydraException, match="give choices, a range or a glob"):
        jobs("seed=interval(0,1)")
