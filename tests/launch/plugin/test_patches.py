"""Plain values that are patched together equal those that Hydra composes and OmegaConf resolves, job by job."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import ConfigCompositionException, HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from launch.plugin import patches
from launch.plugin.compose import Composer
from launch.plugin.patches import plain_all
from mmq_sweeps.config.overrides import kept_apart
from mmq_sweeps.config.sweep import plan, resolved
from mmq_sweeps.errors import ConfigError
from tests.launch.multiruns import multirun

# The overrides of an axis, of which a grid has some; the defaults' own values are among them.
AXES = [
    ["bits=2", "bits=3", "bits=4", "bits='3'", "bits=4.0", "bits=many", "bits=${seed}"],
    ["seed=0", "seed=1", "seed=2"],
    ["method=gptq", "method=rtn", "method=awq"],
    ["component=all", "component=vision", "component=vision_language"],
    ["component.vision.bits=3", "component.vision.bits=4", "component.vision.bits=16", "component.vision.bits=${bits}"],
    ["component.language.bits={attention: 4, mlp: 3}", "component.language.bits={mlp: 2}", "component.language.bits=4"],
    ["++component.vision.bits_at.mlp=2", "++component.vision.bits_at.mlp=3", "++component.vision.bits_at.mlp={a: 1}"],
    ["++component.vision.bits_at.attention=2", "++component.vision.bits_at.attention=null"],
    [
        "+component.extra={bits: 3}",
        "++component.extra={bits: 2, blocks: [front]}",
        "++component.extra={bits: '${bits}'}",
    ],
    ["component.vision.blocks=[front]", "component.vision.blocks=[front,middle,end]", "component.vision.blocks=[]"],
    ["component.vision.group_size=null", "component.vision.group_size=32", "component.vision.group_size='32'"],
    ["component.vision.layers=${component.vision.blocks}", "component.vision.layers=[mlp]"],
    ["component.connector.blocks.0=front", "component.connector.bits=null"],
    [
        "+component.connector={bits: 3}",
        "+component.language.bits=8",
        "++component.language.bits=8",
        "~component.language",
    ],
    ["calibration.samples=8", "calibration.samples=128", "calibration.samples=${bits}", "calibration={seed: 5}"],
    ["method.calibration.samples=4", "method.group_size=32", "method.group_size=channel", "method.absent=1"],
    ["++method.extra=1", "++method.extra=2", "+method.extra=null", "+method.extra=true"],
    ["task=scenes_caption", "task=scenes_vqa", "task=scenes_retrieval", "task=absent"],
    ["task.limit=4", "task.limit=4.0", "task.limit=true", "task.limit=null", "task.limit=1", "task.limit=${bits}"],
    ["task.limit='${oc.decode:${bits}}'", "task.limit=???", "+task.limit=3", "~task.limit", "~task.limit=500"],
    ["task.metrics=[cider]", "task.metrics=[cider,meteor]", "task.metrics=['${seed}','${bits}']"],
    ["task.name=a", "task.name='${seed}${bits}'", "task.name='${oc.env:HOME,none}x'", "task.name=${..seed}"],
    ["~task.generation", "~task.generation.num_beams", "+task.generation.num_beams=2", "task.generation=null"],
    ["task.data={seed:3}", "task.data.seed=3", "task.data.seed=4", "task.data=null", "task.data=5"],
    [
        "+task.kind={a: '${component.vision}'}",
        "+task.kind='${component.${task.which}.bits}'",
        "+task.kind=${component}",
    ],
    ["+task.which=vision", "+task.which=connector", "++task.which=language"],
    ["model=tiny_llava", "model=tiny_blip2", "model=custom"],
    ["model.parts.vision.module=[]", "model.parts.vision.module=[vision_model]", "model.parts.vision.module=[a,b]"],
    ["model.max_memory={0: 1GB}", "model.device_map=null", "model.device_map=cpu"],
    ["model.generation.caption.num_beams=1", "model.generation.caption={num_beams: 3}"],
    ["model.prompts.caption='a, b=c'", "model.prompts.caption=''", "model.prompts.caption='${model.name}'"],
    ["store.dir='a folder, with ünïcode'", "store.dir=b", "store.dir='\\${bits}'"],
    ["tracker=none", "~tracker", "tracker.mode=online"],
]


FAILURES = (ConfigError, HydraException, OmegaConfBaseException)


@pytest.fixture(scope="module")
def composer() -> Iterator[Composer]:
    with multirun() as run:
        yield run.composer()


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_grid_is_as_composed_in_full(composer: Composer, data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(AXES), min_size=2, max_size=5, unique_by=id))
    lines = [data.draw(st.lists(st.sampled_from(axis), min_size=1, max_size=3, unique=True)) for axis in chosen]
    # The first job, in any order, is the base that the others are patched from.
    check_as_in_full(composer, data.draw(st.permutations([list(job) for job in product(*lines)]))[:8])


def check_as_in_full(composer: Composer, jobs: Sequence[list[str]]) -> None:
    check_patched(composer, jobs, outcomes(composer, jobs))


def outcomes(composer: Composer, jobs: Sequence[list[str]]) -> dict[tuple[str, ...], str]:
    return {tuple(job): outcome(lambda job=job: composer.compose(job)) for job in jobs}


def check_patched(composer: Composer, jobs: Sequence[list[str]], in_full: Mapping[tuple[str, ...], str]) -> None:
    failing = [job for job in jobs if in_full[tuple(job)].startswith(FAILED)]
    composed = [job for job in jobs if job not in failing]
    for end in [[], *([job] for job in failing)]:  # A job that cannot be composed ends a sweep.
        configs = plain_all(composer, [*composed, *end])
        for job in [*composed, *end]:
            assert outcome(lambda: next(configs)) == in_full[tuple(job)], job  # noqa: B023 - called at once


ENTANGLED = [
    # A value made of several.
    [["bits=2", "bits=3"], ["seed=0", "seed=1"], ["task.name='${seed}${bits}'"]],
    [["bits=2", "bits=3"], ["seed=0", "seed=1"], ["task.metrics=['${seed}','${bits}']"]],
    [["bits=2", "bits=3"], ["seed=0", "seed=1"], ["+task.sum='${oc.decode:\"[${seed},${bits}]\"}'"]],
    # A reference to a place that a value names.
    [
        ["task.name=vision", "task.name=connector"],
        ["component.vision.bits=2", "component.vision.bits=3"],
        ["component.connector.bits=4", "component.connector.bits=5"],
        ["+task.kind='${component.${task.name}.bits}'"],
    ],
    # A key below another, whose order counts.
    [
        ["component.vision.blocks=[front,end]", "component.vision.blocks=[end,front,middle]"],
        ["component.vision.blocks.0=middle", "component.vision.blocks.0=front"],
    ],
    [["task.data.seed=2", "task.data.seed=3"], ["task.data={seed: 4}", "task.data={seed: 5}"]],
    # A mapping in place of a value, whose own keys refer to another.
    [["method.calibration=null", "method.calibration={samples: 4}"], ["seed=0", "seed=1"], ["method=gptq"]],
    [["calibration={samples: 4}", "calibration={samples: 5, batch_size: 2}"], ["seed=0", "seed=1"], ["method=gptq"]],
    [["task.data=5", "task.data={seed: 4}", "task.data={seed: 4, other: 1}"], ["+task.kind=${task.data}"]],
    [
        ["component.vision.bits=4", "component.vision.bits={attention: 4, mlp: 3}", "component.vision.bits={mlp: 3}"],
        ["bits=2", "bits=3"],
        ["component.connector.bits=${component.vision.bits}"],
    ],
    [
        ["model.parts.vision={module: [a]}", "model.parts.vision={module: []}"],
        ["model.parts.connector.module=[b]", "model.parts.connector.module=[]"],
    ],
    [
        ["++task.more.a=1", "++task.more.a={b: 2}", "++task.more.a={b: 3}"],
        ["++task.more.c=1", "++task.more.c=2"],
        ["+task.kind=${task.more}"],
    ],
    # Overrides that look at the value that is there.
    [["model.prompts.caption=null", "model.prompts.caption=a"], ["+task.prompt=b"]],
    [["model.prompts.caption=a", "model.prompts.caption=null"], ["~task.prompt"]],
    [["model.prompts.caption=a", "model.prompts.caption=b"], ["~task.prompt=a"]],
    # A part goes, and keys with it.
    [["model.parts.vision.module=[a]", "model.parts.vision.module=[]"], ["bits=2", "bits=3"]],
    # A value that the first is copied to, and a value that stays as it was.
    [
        ["bits=4", "bits=3"],
        ["component.vision.bits=4", "component.vision.bits=3"],
        ["component.connector.bits=${bits}"],
    ],
    [["task.limit=1", "task.limit=1.0", "task.limit=true", "task.limit=-0.0", "task.limit=0.0"], ["bits=2", "bits=3"]],
]


@pytest.mark.parametrize("axes", ENTANGLED, ids=lambda axes: axes[-1][0])
def test_keys_that_touch_each_other_are_as_composed_in_full(composer: Composer, axes: list[list[str]]) -> None:
    jobs = [list(job) for job in product(*axes)]
    in_full = outcomes(composer, jobs)
    for first in range(len(jobs)):
        check_patched(composer, [*jobs[first:], *jobs[:first]], in_full)


FAILED = "not composed: "


def outcome(compose: Callable[[], DictConfig | dict[str, Any]]) -> str:
    """Return the resolved values of a job, types and order of keys included, or the error of composing or resolving it."""
    try:
        config = compose()
    except FAILURES as error:
        return f"{FAILED}{error!r} {getattr(error, 'problems', '')}"
    try:
        return json.dumps(config if isinstance(config, dict) else resolved(config))
    except FAILURES as error:
        return repr(error)


def test_a_reference_that_an_override_replaces_counts(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: lab.Mine\nsize: ${component.${task.name}.group_size}\n")
    parts = ("vision", "connector")
    axes = [f"component.{part}.group_size=null,32" for part in parts]
    with multirun(f"hydra.searchpath=[file://{tmp_path}]", "method=mine", "task.name=vision,connector", *axes) as run:
        # Hydra adds a key in place of null only, so some of these jobs fail.
        check_as_in_full(run.composer(), [[*job, "+method.size=16"] for job in run.jobs])


GRID = [
    "bits=2,3,4",
    "component.vision.bits=2,3,4,16",
    "component.vision.blocks=[front],[end]",
    "seed=0,1",
    "task.limit=4",
]


@pytest.mark.parametrize(
    ("arguments", "jobs", "resolutions"),
    [
        (GRID, 48, 1 + 2 + 3 + 1 + 1),
        (
            [
                "++component.vision.bits_at.attention=2,3,4", "++component.vision.bits_at.mlp=2,3",
                "component.language.bits=3,{attention:4,mlp:3},{front:4,middle:3,end:2}", "seed=0,1",
            ],
            36,
            1 + 2 + 1 + 2 + 1,
        ),
    ],
    ids=["plain", "kinds and mappings"],
)  # fmt: skip
def test_a_grid_is_resolved_once_a_value(
    monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], jobs: int, resolutions: int
) -> None:
    with multirun(*arguments) as run:
        resolved_of: list[DictConfig] = []
        monkeypatch.setattr(patches, "resolved", lambda config: resolved_of.append(config) or resolved(config))
        configs = list(plain_all(run.composer(), run.jobs))
        assert len(configs) == jobs
        assert all(isinstance(config, dict) for config in configs)
        # The first, and each other value of an axis.
        assert len(resolved_of) == resolutions


# Sweeps of every kind of override, with groups, experiments, references, additions and deletions.
SWEEPS = [
    [
        *("experiment=gptq_captioning", "component.vision.bits=2,16", "component.connector.bits=4"),
        *("component.language.bits=3", "seed=0,1"),
    ],
    [
        *("experiment=deployable", "method=gptq,rtn", "component.vision.bits=2", "component.connector.bits=2"),
        "component.language.bits=3,{attention:3,mlp:2}",
    ],
    ["component=vision,vision_language", "bits=2,3", "component.vision.group_size=null,32"],
    ["model=tiny_blip2,tiny_llava", "task=scenes_vqa", "~task.limit", "calibration.samples=8,${bits}"],
    ["method=gptq", "++method.extra=1,2", "+task.kind=a,b", "component.vision.blocks=[front],[middle,end]"],
    ["component.vision.bits={attention:4,mlp:3},{front:3},5", "component.language.bits.mlp=2,3", "~task.generation"],
    ["component.connector.method=rtn,gptq", "component.connector.method.group_size=32,64", "bits=2,3"],
]


@pytest.mark.parametrize("arguments", SWEEPS, ids=lambda arguments: arguments[0])
def test_a_sweep_is_what_hydra_composes(arguments: list[str]) -> None:
    with multirun(*kept_apart(arguments)) as run:
        assert len(run.jobs) > 3
        check_as_in_full(run.composer(), run.jobs)
        *_, last = plain_all(run.composer(), run.jobs)
        by_hydra = resolved(run.loader.load_sweep_config(run.master, run.jobs[-1]))
        assert json.dumps(last if isinstance(last, dict) else resolved(last)) == json.dumps(by_hydra)


def test_cells_share_what_none_of_their_values_changes() -> None:
    with multirun("bits=2,3", "seed=0,1") as run:
        first, other_seed, other_bits, both = plain_all(run.composer(), run.jobs)
    assert isinstance(first, dict)
    assert first["model"] is other_bits["model"] is both["model"]
    assert other_bits["component"] is both["component"]
    assert other_bits["component"] is not first["component"]
    assert other_seed["calibration"]["seed"] == both["calibration"]["seed"] == 1


@pytest.mark.parametrize(
    "override",
    [
        "task.name='${seed}${bits}'",
        "task.metrics=['${seed}','${bits}']",
        "task.name='${oc.select:bits}'",
        "+task.kind='${component.${task.name}.bits}'",
    ],
)
def test_values_that_may_depend_on_two_keys_are_composed_in_full(override: str) -> None:
    with multirun("bits=2,3", "seed=0,1", "task.name=vision") as run:
        jobs = [[*job, override] for job in run.jobs]
        if not override.startswith("task.name"):
            assert isinstance(next(plain_all(run.composer(), run.jobs)), dict)
        assert all(isinstance(config, DictConfig) for config in plain_all(run.composer(), jobs))


def test_the_environment_may_be_read() -> None:
    with multirun("bits=2,3", "task.data.root='${oc.env:HOME,none}/data'", "task=coco_caption") as run:
        assert all(isinstance(config, dict) for config in plain_all(run.composer(), run.jobs))


def test_a_job_that_cannot_be_composed_raises_in_its_place() -> None:
    with multirun("bits=2,many,3") as run:
        configs = plain_all(run.composer(), run.jobs)
        next(configs)
        with pytest.raises(ConfigCompositionException, match="bits=many"):
            next(configs)


def test_a_plan_of_plain_values_is_that_of_configurations() -> None:
    axes = ["bits=2,16", "method=rtn,gptq", "model=tiny_blip2,tiny_llava", "task=scenes_vqa", "seed=0,1"]
    with multirun(*axes) as run:
        plain = list(plain_all(run.composer(), run.jobs))
        before = json.dumps(plain)
        quick = plan(plain)
        assert json.dumps(plain) == before
        in_full = plan(run.configs())
        assert quick == in_full
        assert json.dumps(quick.to_json()) == json.dumps(in_full.to_json())
