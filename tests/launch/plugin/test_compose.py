"""Quick composition gives the same configurations as Hydra's own."""

from __future__ import annotations

import pytest
from hydra.errors import ConfigCompositionException, MissingConfigException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from tests.launch.multiruns import Multirun, multirun

AXES = [
    "bits=2,3", "bits=3", "seed=1,2", "method=gptq,rtn", "method=hqq,awq", "component=vision,all", "component=all",
    "component.vision.bits=8,${bits}", "component.vision.blocks=[front],[middle,end]", "task.limit=4,null",
    "task=scenes_caption,scenes_vqa", "model=tiny_llava,tiny_blip2", "model.dtype=float16", "calibration.samples=8,16",
    "++method.extra=1,2", "~task.generation", "~tracker", "tracker=none", "store.dir='a folder, with ünïcode'",
    "task.data={seed:3},{seed:4}", "task.metrics=[cider],[cider,meteor]", "model.prompts.caption='a, b=c'",
    "+component.connector.group_size=16", "hydra.verbose=true",
]  # fmt: skip


def key(axis: str) -> str:
    return axis.lstrip("+~").partition("=")[0]


# Every kind of override: groups, values of all types, references, text with signs, additions and deletions.
EVERY = [
    "method=gptq,rtn", "component=vision,all", "task=scenes_vqa", "model=tiny_llava", "bits=2,3", "task.limit=null",
    "component.vision.bits=${bits}", "component.vision.blocks=[front],[middle,end]", "++method.extra=1", "~task.generation",
    "tracker=none", "store.dir='a folder, with ünïcode'", "task.data={seed:3}", "task.metrics=[vqa_accuracy]",
    "model.prompts.caption='a, b=c'", "+component.vision.group_size=16", "hydra.verbose=true",
]  # fmt: skip


@example(EVERY)
@settings(max_examples=3, deadline=None)
@given(st.lists(st.sampled_from(AXES), min_size=3, max_size=6, unique_by=key))
def test_any_grid_is_as_composed_in_full(axes: list[str]) -> None:
    with multirun(*axes) as run:
        # The first has the first value of every axis, the last the last.
        for job in {tuple(job): job for job in (run.jobs[0], run.jobs[-1])}.values():
            expected, failure = in_full(run, job)
            if failure:
                with pytest.raises(ConfigCompositionException) as found:
                    run.composer().compose(job)
                assert str(found.value) == failure
            else:
                config = run.composer().compose(job)
                assert OmegaConf.to_yaml(config) == OmegaConf.to_yaml(expected)
                assert config == expected
                assert OmegaConf.is_struct(config)


def in_full(run: Multirun, job: list[str]) -> tuple[DictConfig | None, str]:
    """Compose a job with Hydra; return the configuration, or None and the error."""
    try:
        full = run.loader.load_sweep_config(run.master, job)
    except ConfigCompositionException as error:
        return None, str(error)
    return OmegaConf.masked_copy(full, [str(key) for key in full if key != "hydra"]), ""


def test_options_are_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with multirun("method=gptq,rtn", "bits=2,3,4,5", "component.vision.bits=2,3") as run:
        composed: list[list[str]] = []
        original = type(run.loader).load_sweep_config

        def counted(self: object, master: object, overrides: list[str]) -> object:
            composed.append(overrides)
            return original(self, master, overrides)

        monkeypatch.setattr(type(run.loader), "load_sweep_config", counted)
        configs = list(run.configs())
    assert composed == [["method=gptq"], ["method=rtn"]]
    assert len(configs) == 16
    assert len({(one.method._target_, one.bits, one.component.vision.bits) for one in configs}) == 16


def test_cells_do_not_share_what_one_changes() -> None:
    with multirun("bits=2", "component.vision.blocks=[front],[end]") as run:
        first, second = run.configs()
    first.component.vision.blocks.append("middle")
    assert second.component.vision.blocks == ["end"]


@pytest.mark.parametrize(
    ("axes", "error"),
    [
        ("method=gptq,absent", MissingConfigException),
        ("bits=2,many", ConfigCompositionException),
        ("method.absent=2,3", ConfigCompositionException),
    ],
)
def test_what_cannot_be_composed_is_an_error(axes: str, error: type[Exception]) -> None:
    with multirun(axes) as run, pytest.raises(error):
        list(run.configs())
