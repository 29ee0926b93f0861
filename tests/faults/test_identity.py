"""An id, and the key of every artifact, covers everything that changes a result and nothing else."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from mmq_sweeps import methods
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.execution.cell_checks import Checks
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.identity.checkpoint import checkpoint_path
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store import checkpoint_names
from mmq_sweeps.store.store import Store
from tests.data.layouts import write_coco, write_picture

Composed = Callable[..., DictConfig]
FEW = ("task.limit=4", "calibration.samples=4", "calibration.batch_size=2", "tracker=none")
GPTQ = ("method=gptq", "bits=3", *FEW)
COCO = ("task=coco_caption", "task.limit=2", "method=gptq", "bits=3", "calibration.samples=2", "tracker=none")


def cell(config: DictConfig) -> Cell:
    return plan([config]).cells[-1]


def keys(one: Cell) -> set[str]:
    """Return the keys under which calibration and quantization store their results."""
    unit = "vision.blocks.0.attention"
    return {one.pass_key("vision"), one.statistics_key(unit), one.unit_key(unit, one.rules("vision")[0], {"bits": 3})}


def predictions(config: DictConfig, folder: Path) -> tuple[str, dict[str, str]]:
    """Return the id of a configuration's quantized cell, and the model's predictions; nothing is shared with another call."""
    sweep = plan([config])
    one = sweep.cells[-1]
    with quiet_libraries(), Progress(1) as progress:
        session = Sessions(Sweep((one,), sweep.configs, sweep.settings), Store.open(folder)).open(one)
        record, items = record_cell(one, session, progress)
    assert record.done, record.error
    return one.id, {item["id"]: item["prediction"] for item in items}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Copy the embedded captioner into a folder."""
    return Path(shutil.copytree(checkpoint_path("embedded/tiny_blip2"), tmp_path / "checkpoint"))


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_coco(tmp_path / "coco_caption")
    write_coco(tmp_path / "coco_caption", "train2017", (1, 2, 3))
    monkeypatch.setenv("MMQ_DATA", str(tmp_path))
    return tmp_path / "coco_caption"


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Return ``own_module("mine", source)``, which writes a user's own module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        made.append(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def test_a_method_whose_module_is_moved_keeps_its_id_and_keys(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cell(composed(*GPTQ))
    shutil.copy(Path(methods.__path__[0], "gptq.py"), tmp_path / "moved.py")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    moved = cell(composed(*GPTQ, "method._target_=mmq_sweeps.methods.moved.GPTQ"))
    assert moved.node(moved.method)["_target_"] == "mmq_sweeps.methods.moved.GPTQ"
    assert (moved.id, keys(moved), moved.names) == (here.id, keys(here), here.names)


def test_no_id_holds_the_place_of_a_class_of_ours(composed: Composed, coco: Path) -> None:
    for overrides in (GPTQ, COCO, ("task=scenes_vqa", *GPTQ), ("task=scenes_retrieval", "model=tiny_blip2_itm", *GPTQ)):
        one = cell(composed(*overrides))
        assert "mmq_sweeps" not in json.dumps([one.effective, one.inputs])
    assert str(coco) not in json.dumps(one.effective)


OWN_TASK = """
from dataclasses import dataclass, field
from mmq_sweeps.identity.roles import LABEL
from mmq_sweeps.tasks.caption import CaptionTask

@dataclass(frozen=True, eq=False)
class Cropped(CaptionTask):
    crop: int = 0
    shade: str = field(default="red", metadata=LABEL)
"""


def test_a_field_of_a_users_own_task_that_nobody_listed_has_keys_of_its_own(
    composed: Composed, own_module: Callable[[str, str], None]
) -> None:
    own_module("cropping_task", OWN_TASK)

    def own(*more: str) -> Cell:
        return cell(composed(*GPTQ, "task._target_=cropping_task.Cropped", *more))

    plain, cropped, shaded = own("+task.crop=0"), own("+task.crop=8"), own("+task.crop=0", "+task.shade=blue")
    assert plain.task["_target_"] == "cropping_task.Cropped"
    assert not keys(plain) & keys(cropped)
    assert plain.id != cropped.id
    assert (shaded.id, keys(shaded)) == (plain.id, keys(plain))
    assert "cropping_task" not in sys.modules, "planning needs no import of it, which would import torch"


def test_a_users_own_method_is_no_method_of_ours_though_it_says_so(
    composed: Composed, own_module: Callable[[str, str], None]
) -> None:
    source = (
        "from dataclasses import dataclass\nfrom typing import ClassVar\nfrom mmq_sweeps.methods.rtn import RoundToNearest\n"
        "@dataclass(frozen=True)\nclass Same(RoundToNearest):\n    known_as: ClassVar[str] = 'rtn'\n"
    )
    own_module("rounding_of_mine", source)
    mine = cell(composed("method=rtn", "method._target_=rounding_of_mine.Same", "bits=3"))
    assert mine.names["method"] == "rounding_of_mine.Same"
    assert mine.id != cell(composed("method=rtn", "bits=3")).id
    own_module("rounding_of_mine", source.replace("    known_as", "    version: ClassVar[int] = 2\n    known_as"))
    assert cell(composed("method=rtn", "method._target_=rounding_of_mine.Same", "bits=3")).id != mine.id


def test_the_order_of_keys_in_a_yaml_changes_nothing(composed: Composed) -> None:
    def turned(value: Any) -> Any:
        return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    config = composed(*GPTQ)
    here = cell(config)
    other = cell(OmegaConf.create(turned(OmegaConf.to_container(config, resolve=True))))
    assert (other.id, keys(other), other.title()) == (here.id, keys(here), here.title())
    for part in here.model["parts"]:
        assert (other.part_key(part), other.output_key(part)) == (here.part_key(part), here.output_key(part))


def test_generation_inherits_nothing_that_the_yaml_does_not_say(composed: Composed, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(checkpoint_path("embedded/tiny_llava"), tmp_path / "checkpoint"))
    llava = ("model=tiny_llava", f"model.checkpoint={checkpoint}", "method=rtn", "bits=8", *FEW)
    config = composed(*llava)
    _, plain = predictions(config, tmp_path / "plain")
    settings = json.loads((checkpoint / "generation_config.json").read_text())
    changed = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(4, 40))}
    (checkpoint / "generation_config.json").write_text(json.dumps(settings | changed))
    assert predictions(config, tmp_path / "inheriting")[1] == plain
    asked_for = composed(*llava, "model.inherit_generation=true")
    assert predictions(asked_for, tmp_path / "asked")[1] != plain


def test_answers_that_are_drawn_are_the_same_in_every_run_and_batch(composed: Composed, tmp_path: Path) -> None:
    caption = "+model.generation.caption"
    drawn = ("method=rtn", "bits=8", f"{caption}.do_sample=true", f"{caption}.temperature=9.0", *FEW)
    one = predictions(composed(*drawn), tmp_path / "one")
    assert one == predictions(composed(*drawn, "task.batch_size=2"), tmp_path / "other")
    assert one[1] != predictions(composed("method=rtn", "bits=8", *FEW), tmp_path / "greedy")[1]


@pytest.mark.parametrize(
    "name", ["processor_config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]
)
def test_a_file_of_a_checkpoint_that_is_replaced_is_another_model(
    composed: Composed, checkpoint: Path, name: str
) -> None:
    config = composed(f"model.checkpoint={checkpoint}", *GPTQ)
    before = cell(config)
    file = checkpoint / name
    status, content = file.stat(), bytearray(file.read_bytes())
    content[-2:] = b" }" if name.endswith("json") else bytes([content[-2] ^ 1, content[-1]])
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file.stat().st_size == status.st_size
    after = cell(config)
    assert after.id != before.id
    assert not keys(after) & keys(before)


def test_a_checkpoint_that_was_repaired_under_its_old_name_is_told(composed: Composed, checkpoint: Path) -> None:
    config = composed(f"model.checkpoint={checkpoint}", *GPTQ)
    before = cell(config)
    assert checkpoint_names.told([("mine", before.model)] * 2) == []
    assert (
        checkpoint_names.told([("mine", before.model), ("mine", {"checkpoint": "packed", "quantized": {"bits": 4}})])
        == []
    )
    (checkpoint / "processor_config.json").write_text((checkpoint / "processor_config.json").read_text() + "\n")
    (sentence,) = checkpoint_names.told([("mine", one.model) for one in (before, cell(config))])
    assert "model.name=mine names 2 different checkpoints" in sentence
    assert str(before.model["files"]) in sentence


def test_what_is_changed_after_planning_is_not_measured_under_the_planned_id(
    composed: Composed, checkpoint: Path, tmp_path: Path
) -> None:
    sweep = plan([composed(f"model.checkpoint={checkpoint}", *FEW)])
    (checkpoint / "processor_config.json").write_text((checkpoint / "processor_config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="its files changed since the sweep was planned"), quiet_libraries():
        Sessions(sweep, Store.open(tmp_path / "store")).open(sweep.cells[0])


def test_images_that_are_replaced_under_their_old_names_are_other_data(composed: Composed, coco: Path) -> None:
    def replaced(path: Path, number: int) -> None:
        status = path.stat()
        write_picture(path, number)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    config = composed(*COCO)
    sweep = plan([config])
    full, before = sweep.cells
    replaced(coco / "val2017" / "000000000037.jpg", 5)
    full_after, after = plan([config]).cells
    assert (full_after.id == full.id, after.id == before.id) == (False, False)
    assert keys(after) == keys(before), "calibration images are as they were"
    for number in (1, 2, 3):
        replaced(coco / "train2017" / f"{number:012d}.jpg", number + 100)
    full_last, last = plan([config]).cells
    assert full_last.id == full_after.id
    assert last.id != after.id
    assert not keys(last) & keys(after)
    replaced(coco / "val2017" / "000000000139.jpg", 6)
    assert cell(config).id == last.id, "it is beyond the limit"


def test_images_beyond_the_limit_count_where_samples_are_left_out(composed: Composed, coco: Path) -> None:
    """The images that are measured then depend on those that calibration draws."""
    sample = "{seed: 0, start: 0, stop: 1, apart_from: {samples: 1, seed: 0}}"
    config = composed(
        "task=coco_caption", "task.split=train2017", "task.limit=1", "method=rtn", f"task.sample={sample}"
    )
    ids = {cell(config).id}
    for number in (1, 2, 3):
        write_picture(coco / "train2017" / f"{number:012d}.jpg", number + 100)
        ids.add(cell(config).id)
    assert len(ids) == 4


def test_a_sweep_whose_images_changed_since_it_was_planned_is_refused(
    composed: Composed, coco: Path, tmp_path: Path
) -> None:
    sweep = plan([composed(*COCO)])
    checks = Checks(Sessions(sweep, Store.open(tmp_path / "store")))
    with quiet_libraries():
        assert checks.problems(sweep.cells) == []
    write_picture(coco / "train2017" / "000000000002.jpg", 77)
    write_picture(coco / "train2017" / "000000000001.jpg", 78)
    write_picture(coco / "train2017" / "000000000003.jpg", 79)
    assert [problem for problem in checks.problems(sweep.cells) if "changed since the sweep was planned" in problem]


def test_ids_that_only_a_split_has_once_are_no_reason_to_refuse_its_samples(
    composed: Composed, coco: Path, tmp_path: Path
) -> None:
    # As COCO's splits would be, if each were numbered from 1.
    write_coco(coco, "train2017", (37, 9, 139))
    for name in (37, 9, 139):
        write_picture(coco / "train2017" / f"{name:012d}.jpg", name + 1000)
    sweep = plan([composed(*COCO)])
    task = build("task", sweep.configs[sweep.cells[-1].id]["task"])
    task.check([{"samples": 3, "seed": 0}], tmp_path)
    shutil.copy(coco / "val2017" / "000000000009.jpg", coco / "train2017" / "000000000139.jpg")
    with pytest.raises(ValueError, match=r"1 calibration samples are also evaluated in task.split=val2017 \(139\)"):
        task.check([{"samples": 3, "seed": 0}], tmp_path)


# Another value of a field where adding something to it would be none.
ALTERED: dict[str, Any] = {
    "method.vision_weight": 0.5,
    "model.dtype": "bfloat16",
    "model.device": "cpu",
    "model.device_map": "cpu",
    "model.max_memory": {"cpu": "20GB"},
    "model.prompts.caption": "ignored",
    "model.class_name": "LlavaForConditionalGeneration",
    "model.revision": "sha256:0123456789abcdef",
    "model.checkpoint": "embedded/tiny_llava",
    "method._target_": "mmq_sweeps.methods.coordinate_descent.CoordinateDescent",
    "method.group_size": 16,
    "task._target_": "tests.launch.slurm.waiting.WaitingTask",
    "task.data._target_": "tests.tasks.test_generation.ThreeScenes",
    "tracker._target_": "mmq_sweeps.reporting.trackers.WandbTracker",
    "retry": "all",
    "output": "json",
    "view.max_bpw": 4.0,
    "task.sample": {"seed": 0, "start": 0, "stop": 2},
    "task.split": "train",
    "task.calibration_split": "train",
    "task.metrics": ["bleu_1"],
    "store.max_gb": 50.0,
}
# Fields without which another value is refused.
WITH = {"task.teacher_forced": ("task.metrics", ["log_likelihood"])}
# A different store only says where the records are, and nothing of the cell.
LATER = ("store.dir",)
# A file that has to be there: tests/config/test_assignment.py.
FILES = ("assignment",)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from leaves(value, f"{path}.{key}".lstrip("."))
    else:
        yield path, node


def altered(path: str, value: Any) -> Any:
    """Return another value that the field at ``path`` may have."""
    if path in ALTERED:
        return ALTERED[path]
    if path.endswith(".bits"):
        return 5
    if path.startswith(("component.embeddings", "component.head")) and path.endswith(
        (".bits_at", ".blocks", ".layers")
    ):
        return value  # They are the same tensor.
    if path.endswith(".bits_at"):
        return {"mlp": 5}
    if path.endswith(".method"):
        return "rtn"
    if path.endswith(".method_fields"):
        return value if path.startswith(("component.embeddings", "component.head")) else {"damping": 0.5}
    if path.endswith((".blocks", ".layers")) and path.startswith("component."):
        return value[:1]
    if path.endswith(".group_size"):
        return 16
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "another"]
    return f"{value or ''}another"


def with_value(plain: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(plain)
    *above, last = path.split(".")
    node = changed
    for key in above:
        node = node[key]
    node[last] = value
    return changed


def test_every_file_and_every_field_has_another_id_or_the_same_predictions(
    composed: Composed, checkpoint: Path, tmp_path: Path
) -> None:
    config = composed(
        f"model.checkpoint={checkpoint}", "component=vision_language", f"store.dir={tmp_path}/runs", *GPTQ
    )
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    own_id, said = predictions(config, tmp_path / "plain")

    # Of files: those that leave the id as it is are all changed at once, and nothing may come of it.
    unseen = []
    for name in ("chat_template.jinja", "preprocessor_config.json", "README.md", "adapter_config.json", "score.png"):
        assert not (checkpoint / name).exists()
        (checkpoint / name).write_text("{}")
        if cell(config).id == own_id:
            unseen.append(name)
        (checkpoint / name).unlink()
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.write_bytes(content + b"\n")
        assert cell(config).id != own_id, file.name
        file.write_bytes(content)
        assert cell(config).id == own_id
    assert unseen == ["README.md", "score.png"]
    for name in unseen:
        (checkpoint / name).write_text("{}")

    # Of fields as well.
    all_at_once, same = plain, []
    for path, value in leaves(plain):
        # Which tokens are vision tokens counts with a weight: tests/quantization/test_vision_weight.py.
        if path in FILES or path.endswith(".vision_tokens"):
            continue
        other = str(tmp_path / "offloaded") if path == "model.offload_dir" else altered(path, value)
        changed = with_value(plain, path, other)
        if path in WITH:
            changed = with_value(changed, *WITH[path])
        if changed == plain:
            assert path.startswith(("component.embeddings", "component.head")), path
            continue
        if cell(OmegaConf.create(changed)).id == own_id and path not in LATER:
            same.append(path)
            all_at_once = with_value(all_at_once, path, other)
    assert {"task.batch_size", "calibration.batch_size", "model.name", "model.device_map", "seed"} <= set(same)
    assert not [
        path
        for path in same
        if path.startswith(("method.", "model.parts")) and "label" not in path and "batch" not in path
    ]
    assert predictions(OmegaConf.create(all_at_once), tmp_path / "labels") == (own_id, said)


def test_a_field_that_counts_is_the_rule(composed: Composed) -> None:
    """Any field that a task's class does not declare as a label or a matter of evaluation decides calibration."""
    from mmq_sweeps.tasks.retrieval import RetrievalTask

    one = cell(composed("task=scenes_retrieval", "model=tiny_blip2_itm", *GPTQ))
    assert one.inputs is not None
    fields = {field.name for field in dataclasses.fields(RetrievalTask)}
    assert (
        set(one.inputs) - {"_target_"}
        == {"version", "data", "calibration_split", "text_length", "dropped_marks"} & fields
    )
