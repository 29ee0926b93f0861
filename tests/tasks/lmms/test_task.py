"""Questions, scores and refusals of lmms-eval's tasks, and the settings that their cells' ids depend on."""

from __future__ import annotations

import copy
import random
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from mmq_sweeps.config import schema
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.data.lmms import library
from mmq_sweeps.data.lmms.documents import LmmsDocuments
from mmq_sweeps.metrics.intervals import SEED
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.tasks.lmms_eval import LmmsEvalTask
from tests.data.lmms.folders import COUNT, UTILS, needs_lmms_eval
from tests.metrics.lmms import lmms

pytestmark = needs_lmms_eval
Tasks = Callable[..., LmmsEvalTask]
AGGREGATIONS = """
def again(entries):
    return sum(entry["score"] for entry in entries) / len(entries)


def once(entries):
    assert len(set(map(id, entries))) == len(entries)
    return again(entries)


def total(entries):
    return once(entries) * len(entries)


RIGHT = {"""
CALIBRATION = [{"samples": 4, "seed": 0}]


@pytest.fixture(scope="module")
def bases() -> dict[str, DictConfig]:
    """Compose the configuration of each model once."""
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        given = ("task=lmms_eval", "calibration.samples=4")
        return {name: compose("config", overrides=[f"model={name}", *given]) for name in ("tiny_llava", "tiny_blip2")}


@pytest.fixture
def planned(bases: dict[str, DictConfig], tasks: Path) -> Callable[..., Sweep]:
    """Return ``planned("mine", "task.limit=4")``, which plans a cell of the task, by default below ``tasks``."""

    def made(name: str, *overrides: str, folder: Path = tasks, model: str = "tiny_llava") -> Sweep:
        config = copy.deepcopy(bases[model])
        OmegaConf.set_struct(config, False)
        for key, value in (override.split("=", 1) for override in overrides):
            OmegaConf.update(config, key, yaml.safe_load(value))
        OmegaConf.update(config, "task.lmms_task", name)
        OmegaConf.update(config, "task.include_path", str(folder))
        return plan([config])

    return made


@pytest.fixture
def task(planned: Callable[..., Sweep]) -> Tasks:
    return lambda *given, **named: build("task", next(iter(planned(*given, **named).configs.values()))["task"])


@pytest.fixture
def changed(tasks: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return ``changed(("utils.py", "old", "new"), name="more lines")``, which copies ``tasks`` with changes and more tasks."""

    def copied(*changes: tuple[str, str, str], **more: str) -> Path:
        folder = shutil.copytree(tasks, tmp_path / "changed" / "tasks")
        for name, old, new in changes:
            text = (folder / name).read_text()
            assert old in text
            (folder / name).write_text(text.replace(old, new))
        for name, lines in more.items():
            (folder / f"{name}.yaml").write_text(f"task: {name}\ninclude: _mine\n{lines}")
        return folder

    return copied


def answers_of(one: LmmsEvalTask, wrong: int = 0) -> dict[str, str]:
    """Return the right answers, apart from those of the first ``wrong`` documents."""
    return {item.id: "wrong" if place < wrong else item.references[0] for place, item in enumerate(one.items)}


def test_prompts_are_those_of_the_model_that_is_named(task: Tasks, changed: Callable[..., Path]) -> None:
    folder = changed(
        ("_mine", "lmms_eval_specific_kwargs:\n", "lmms_eval_specific_kwargs:\n  other: {post_prompt: '!'}\n")
    )
    one, other = (task("mine", f"task.lmms_model={name}", folder=folder) for name in ("null", "other"))
    question = one.items[0].example.doc["question"]
    asked = "\nAnswer the question using a single word or phrase."
    assert one.items[0].prompt == f"USER: <image>\n{question}{asked} ASSISTANT:"
    assert other.items[0].prompt == f"USER: <image>\n{question}! ASSISTANT:"


def test_generation_is_mapped_as_llava_hf_does(task: Tasks, changed: Callable[..., Path]) -> None:
    folder = changed(
        silent="generation_kwargs: null\n",
        warm="generation_kwargs: {temperature: 0.2, do_sample: false, top_p: 0.9, num_beams: 2, until: [a]}\n",
    )
    greedy = {"max_new_tokens": 1024, "num_beams": 1, "do_sample": False}
    assert task("silent", folder=folder).generation == greedy
    assert task("mine", folder=folder).generation == greedy | {"max_new_tokens": 10}
    assert task("mine", "task.generation.max_new_tokens=3", folder=folder).generation["max_new_tokens"] == 3
    sampled = {"max_new_tokens": 1024, "num_beams": 2, "do_sample": True, "temperature": 0.2, "top_p": 0.9}
    assert task("warm", folder=folder).generation == sampled


def test_answers_end_where_the_task_says_if_asked(
    task: Tasks, changed: Callable[..., Path], llava: LoadedModel
) -> None:
    folder = changed(until='generation_kwargs: {max_new_tokens: 10, until: ["\\n\\n", "e"]}\n')
    one = task("until", "task.limit=6", folder=folder)
    whole = one.predict(llava, lambda done, total: None)
    cut = replace(one, stop_at_until=True).predict(llava, lambda done, total: None)
    assert cut == {item: answer.split("e")[0] for item, answer in whole.items()}
    assert cut != whole


@pytest.mark.parametrize("shared", [False, True])
def test_an_interval_is_that_of_the_aggregation_on_draws_of_documents(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path, shared: bool
) -> None:
    """Documents about the same image are drawn together."""
    of_kind = 'return [doc["image"].resize((1, 1)).resize((48, 48 + len(doc["kind"]))).point(lambda _: 0)]'
    folder = changed(("utils.py", 'return [doc["image"].convert("RGB")]', of_kind) if shared else ("utils.py", "", ""))
    one = task("mine", "task.draws=20", folder=folder)
    answers = answers_of(one, wrong=5)
    found = one.score(answers, tmp_path)["by_kind"]
    kinds = [item.example.doc["kind"] for item in one.items]
    right = [float(place >= 5) for place in range(COUNT)]
    owners = [list(dict.fromkeys(map(len, kinds))).index(len(kind)) for kind in kinds] if shared else list(range(COUNT))
    groups = max(owners) + 1
    assert groups < COUNT or not shared
    figures = []
    for chosen in np.random.Generator(np.random.PCG64(SEED)).integers(0, groups, (20, groups)):
        drawn = [place for group in chosen for place in range(COUNT) if owners[place] == group]
        own = {kind: [right[place] for place in drawn if kinds[place] == kind] for kind in set(kinds)}
        figures.append(np.mean([np.mean(scores) for scores in own.values() if scores]))
    assert found.interval == pytest.approx(np.percentile(figures, (2.5, 97.5)), abs=1e-12)
    assert list(found.per_item.values()) == right
    none = replace(one, draws=0).score(answers, tmp_path)["by_kind"]
    assert none.interval == (none.value, none.value)
    assert "its interval has no width, since task.draws is 0" in none.warnings


def test_an_aggregation_that_refuses_documents_drawn_twice_has_the_interval_of_halves(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path
) -> None:
    """MME's aggregation refuses them. For a mean, halves vary as much as draws do; for a sum, they say nothing."""
    names = ("again", "once", "total")
    lines = "metric_list: [{metric: by_kind, aggregation: !function utils.NAME, higher_is_better: true}]\n"
    folder = changed(("utils.py", "RIGHT = {", AGGREGATIONS), **{name: lines.replace("NAME", name) for name in names})
    found = {}
    for name in names:
        one = task(name, "task.draws=1000", folder=folder)
        found[name] = one.score(answers_of(one, wrong=5), tmp_path)["by_kind"]
    again, once, total = (found[name] for name in names)
    assert not again.warnings
    assert not once.warnings
    low, high = once.interval
    assert low < once.value == again.value < high
    assert (low, high) == pytest.approx(again.interval, abs=1 / COUNT)
    assert total.interval == (COUNT - 5, COUNT - 5)
    assert "on a draw of documents lmms-eval's task total: the aggregation of by_kind fails" in total.warnings[0]


def test_texts_and_scores_that_draw_are_the_same_at_every_reading(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path
) -> None:
    """Few-shot examples are drawn, options shuffled and unclear answers guessed."""
    few = "num_fewshot: 2\nfewshot_split: train\n"
    shuffle = 'return "".join(random.sample(doc["question"], 5)) + lmms_eval'
    folder = changed(
        ("utils.py", 'return doc["question"] + lmms_eval', shuffle),
        ("utils.py", "import json", "import json\nimport random"),
        ("utils.py", 'return {"exact": right', 'return {"exact": random.random()'),
        few=f'{few}fewshot_config: {{sampler: default}}\ndoc_to_text: "{{{{question}}}}"\ndoc_to_target: first\n',
        unsaid=few,
    )
    for name in ("few", "mine"):
        one, again = (task(name, folder=folder) for _ in range(2))
        texts = [item.question for item in one.items]
        random.random()  # as other code draws meanwhile
        assert [item.question for item in again.items] == texts
        assert len(set(texts)) > 1
        drawn = [made.score(answers_of(made), tmp_path)["exact"].per_item for made in (one, again)]
        assert drawn[0] == drawn[1]
        assert len(set(drawn[0].values())) == COUNT
    assert [text.count("\n\n") for text in (item.question for item in task("few", folder=folder).items)] == [2] * COUNT
    with pytest.raises(ValueError, match="num_fewshot=2 without a fewshot_config"):
        task("unsaid", folder=folder).check(CALIBRATION, tmp_path)


def test_its_code_warns_of_answers_that_a_model_gave_and_not_for_each(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = "from loguru import logger\n    logger.warning('seen ' + found[0])\n    right = float"
    never = "{metric: never, aggregation: mean, higher_is_better: true}"
    folder = changed(("utils.py", "right = float", told), ("_mine", "metric_list:\n", f"metric_list:\n  - {never}\n"))
    one = task("mine", folder=folder)
    one.check(CALIBRATION, tmp_path)
    assert "lmms_task=mine: its documents give nothing for never" in caplog.text
    assert "seen" not in caplog.text
    one.score(answers_of(one, wrong=COUNT), tmp_path)
    assert caplog.text.count("lmms-eval: seen wrong") == library.SHOWN
    assert caplog.text.count("more from this line of its code are not shown") == 1


def test_an_aggregation_that_counts_in_its_module_starts_from_zero_each_time(task: Tasks, tmp_path: Path) -> None:
    one = task("mine", "task.metrics=[counted,exact]", "task.draws=3")
    values = [one.score(answers_of(one, wrong), tmp_path) for wrong in (2, 2, COUNT)]
    assert [found["counted"].value for found in values] == [(COUNT - 2) / 7, (COUNT - 2) / 7, 0]
    assert list(values[0]) == ["counted", "exact"]
    assert not values[0]["counted"].higher_is_better
    assert values[0]["counted"].definition == "lmms-eval 0.7.3, mine"


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        (
            "",
            ("return {", "return {}[0] or {"),
            "fails on document 0 with the answer 'I do not know.': KeyError",
        ),
        (
            "",
            ("right = float", "raise SystemExit(3)\n    right = float"),
            "fails on document 0 with the answer 'I do not know.': SystemExit: 3",
        ),
        ("", ("return sum(", "return 1 / 0 + sum("), "the aggregation of by_kind fails: ZeroDivisionError"),
        (
            "metric_list: [{metric: submission, aggregation: !function utils.submission, higher_is_better: true}]\n",
            ("import os\n", "import os\n"),
            r"none of its metrics is a number \(submission\)",
        ),
        (
            "",
            (
                "right = float",
                "__import__('so' + 'cket').create_connection(('judge.example.com', 443))\n    right = float",
            ),
            r"its scoring asks a server \(judge.example.com\)",
        ),
        (
            "",
            ('doc["image"].convert', 'doc["picture"].convert'),
            "12 of 12 items cannot be used: 0: its images cannot",
        ),
        ("", ("import os\n", "import os\nimport not_there\n"), "its code imports not_there, which is not installed"),
    ],
)
def test_scoring_that_would_fail_is_found_before_any_cell(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path, lines: str, code: tuple[str, str], said: str
) -> None:
    folder = changed(("utils.py", *code), own=lines)
    with pytest.raises(ValueError, match=said):
        task("own", folder=folder).check(CALIBRATION, tmp_path)


def test_documents_that_calibrate_are_left_out_of_a_split_that_does_both(task: Tasks, tmp_path: Path) -> None:
    whole = task("mine", "task.split=test", "task.calibration_split=test")
    with pytest.raises(ValueError, match="also"):
        whole.check([{**CALIBRATION[0], "batch_size": 1}], tmp_path)
    apart = replace(whole, apart_from=CALIBRATION[0])
    apart.check([{**CALIBRATION[0], "batch_size": 1}], tmp_path)
    left = {item.id for item in apart.items}
    assert left < {item.id for item in whole.items}
    assert not left & {example.id for example in apart.examples.drawn(CALIBRATION[0])}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.metrics=[exat]"], "task.metrics: exat is no metric of lmms-eval's task mine. Did you mean exact?"),
        (["task.split=dev"], "split=dev: the data set of lmms-eval's task mine has train, test"),
        (["task.calibration_split=test"], "4 calibration samples are also evaluated in task.split=test_split"),
        (["task.calibration_split=validation_split"], "has no validation_split; name a split of its data set"),
        (["task.limit=99"], f"task.limit=99: test_split has {COUNT} items to evaluate"),
    ],
)
def test_what_a_task_has_not_is_named_with_what_it_has(
    task: Tasks, tmp_path: Path, overrides: list[str], said: str
) -> None:
    with pytest.raises(ValueError, match="(?s)" + said.replace("?", r"\?")):
        task("mine", *overrides).check(CALIBRATION, tmp_path)


def test_documents_with_several_images_or_none_are_asked_by_a_model_that_takes_them(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path, llava: LoadedModel
) -> None:
    text = 'return "first <image> then <image>: " + doc["question"] if doc["kind"] == "count" else doc["question"]\n'
    folder = changed(
        (
            "utils.py",
            'return [doc["image"].convert("RGB")]',
            'return [doc["image"]] * {"count": 2}.get(doc["kind"], 0)',
        ),
        ("utils.py", 'return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]\n', text),
    )
    one = task("mine", folder=folder)
    counts = {item.example.image_count for item in one.items}
    assert counts == {0, 2}
    for item in one.items:
        asked = item.prompt_for(llava.processor)
        question = item.example.doc["question"]
        shown = f"first <image> then <image>: {question}" if item.example.image_count else question
        assert asked == item.prompt == f"USER: {shown} ASSISTANT:"
    one.check(CALIBRATION, tmp_path)
    assert len(one.predict(llava, lambda done, total: None)) == COUNT
    with pytest.raises(
        ValueError, match=r"\d+ of 12 items cannot be used: \d+: it has (no|2) images, and the prompt is for one"
    ):
        task("mine", folder=folder, model="tiny_blip2").check(CALIBRATION, tmp_path)


def test_a_task_that_chat_models_are_asked_otherwise_says_so(
    task: Tasks, changed: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(messages="doc_to_messages: !function utils.text\n", described='description: "Look closely. "\n')
    one, described = (task(name, "task.limit=2", folder=folder) for name in ("messages", "described"))
    one.check(CALIBRATION, tmp_path)
    described.check(CALIBRATION, tmp_path)
    assert "lmms_task=messages: lmms-eval asks its models with a chat format by its doc_to_messages" in caplog.text
    assert "lmms_task=described: lmms-eval asks its models with a chat format without its description" in caplog.text
    assert all(item.question.startswith("Look closely. ") for item in described.items)


def test_an_id_depends_on_yaml_code_and_data_and_not_on_places(
    planned: Callable[..., Sweep], changed: Callable[..., Path], tasks: Path, tmp_path: Path
) -> None:
    def cell_id(folder: Path, *overrides: str) -> str:
        return next(iter(planned("mine", *overrides, folder=folder).cells)).id

    first = cell_id(tasks)
    folder = changed()
    assert cell_id(folder) == first
    assert cell_id(folder, "task.allow_network=true", "task.batch_size=1") == first
    data = shutil.copytree(tasks.parent / "data", tmp_path / "elsewhere")
    assert cell_id(folder, f"task.dataset_path={data}") == first
    found = {cell_id(folder, "task.lmms_model=llava_hf"), cell_id(folder, "task.draws=5"), first}
    (folder / "utils.py").write_text(f"{UTILS}# more\n")
    found.add(cell_id(folder))
    (folder / "_mine").write_text((folder / "_mine").read_text() + "# more\n")
    found.add(cell_id(folder))
    with (data / "test-00000-of-00001.parquet").open("ab") as file:
        file.write(b" ")
    found.add(cell_id(folder, f"task.dataset_path={data}"))
    assert len(found) == 6


@pytest.mark.parametrize(
    "imported",
    ["import sys; sys.path.insert(0, FOLDER); from helper import END", "END = open(FOLDER + '/end.py').read()[7:-2]"],
)
def test_files_that_the_code_reads_from_beside_it_count(
    planned: Callable[..., Sweep], task: Tasks, changed: Callable[..., Path], tmp_path: Path, imported: str
) -> None:
    folder = changed(
        ("utils.py", "import os\n", f"import os\nFOLDER = os.path.dirname(__file__)\n{imported}\n"),
        ("utils.py", 'return doc["question"]', 'return doc["question"] + END'),
    )
    place = folder / ("helper.py" if "helper" in imported else "end.py")
    found = []
    for end in ("one!", "another!"):
        place.write_text(f"END = '{end}'\n")
        assert end in task("mine", folder=folder).items[0].question
        found.append(next(iter(planned("mine", folder=folder).cells)).id)
    (folder / "unused.py").write_text("END = 3\n")
    moved = shutil.copytree(folder, tmp_path / "moved")
    found += [next(iter(planned("mine", folder=place).cells)).id for place in (folder, moved)]
    assert found[0] != found[1] == found[2] == found[3]


def test_the_command_of_a_cell_measures_the_same_cell(planned: Callable[..., Sweep]) -> None:
    """A task's name in lmms-eval may also be an option of this package."""
    pytest.importorskip("pandas")
    from analysis.load.overrides import overrides

    given = ("task.limit=4", "task.metrics=[exact]", "task.name=other")
    cell = next(iter(planned("mine", *given).cells))
    told = shlex.split(overrides(cell.effective, cell.names))
    assert {"task=lmms_eval", "task.lmms_task=mine", *given} <= set(told)
    own = [word for word in told if word.startswith("task.") and not word.startswith("task.lmms_task=")]
    assert next(iter(planned("mine", *own).cells)).id == cell.id
    mme = overrides({**cell.effective, "task": {**cell.task, "lmms_task": "mme"}}, {**cell.names, "task": "mme"})
    assert "task=lmms_eval task.lmms_task=mme " in mme
    assert "task.name=" not in mme


def test_a_process_that_outlives_a_change_reads_the_task_anew(task: Tasks, changed: Callable[..., Path]) -> None:
    folder = changed()
    before = task("mine", folder=folder).items[0].question
    (folder / "utils.py").write_text(UTILS.replace('return doc["question"]', 'return "Look! " + doc["question"]'))
    assert task("mine", folder=folder).items[0].question == f"Look! {before}"


def test_a_data_set_of_the_hub_is_read_from_the_cache_of_datasets(
    task: Tasks, tasks: Path, changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    prepared = datasets.load_dataset(str(tasks.parent / "data"), cache_dir=str(tmp_path / "prepared"))
    source = Path(prepared["test"].cache_files[0]["filename"]).parent
    copy = shutil.copytree(source, tmp_path / "hub" / "org___my_set" / "default" / "0.0.0" / "0123abc")
    for file in copy.glob("data-*.arrow"):
        file.rename(copy / file.name.replace("data-", "my_set-"))
    info = (copy / "dataset_info.json").read_text().replace('"dataset_name": "data"', '"dataset_name": "my_set"')
    (copy / "dataset_info.json").write_text(info)
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "hub"))
    folder = changed(hub="dataset_path: org/my_set\ndataset_kwargs: {token: true}\n")
    resolved = lmms("api.task")._resolve_hf_datasets_cache_dir
    resolved.cache_clear()
    try:
        one = task("hub", folder=folder)
        assert [item.prompt for item in one.items] == [item.prompt for item in task("mine").items]
    finally:
        resolved.cache_clear()
    sources = LmmsDocuments("hub", "test_split", include_path=str(folder)).sources()
    assert {path.name for path in sources if path.suffix == ".arrow"} == {"my_set-train.arrow", "my_set-test.arrow"}
