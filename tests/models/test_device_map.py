"""The place of weights changes memory use and nothing else: from disk, file or memory, every result is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from omegaconf import DictConfig
from torch import Tensor

from launch.start import run_sweep
from mmq_sweeps import memory
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.identity.end_parts import EMBEDDINGS, HEAD
from mmq_sweeps.memory import available_bytes
from mmq_sweeps.models import weight_backup
from mmq_sweeps.models.device_map import check_room, choose_device, locations, read_max_memory
from mmq_sweeps.models.experts import module_of
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.quantization.calibration import block_statistics, capture
from mmq_sweeps.quantization.targets import find_parts
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL
from tests.models.test_families import FAMILIES, toy_batch, toy_model

CPU = torch.device("cpu")
BLOCK = "language_model.model.decoder.layers.3"
LINEAR = f"{BLOCK}.fc1"


@pytest.fixture(scope="module")
def on_disk(model_config: dict[str, Any]) -> LoadedModel:
    with quiet_libraries():
        return load_model({**model_config, "device_map": "disk"})


@pytest.fixture
def batch() -> dict[str, Tensor]:
    torch.manual_seed(0)
    text = torch.tensor([[81] * 12 + [1, 5, 6]] * 2)
    return {"pixel_values": torch.randn(2, 3, 48, 48), "input_ids": text, "attention_mask": torch.ones_like(text)}


def answers(loaded: LoadedModel, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return loaded.model.generate(**loaded.to_device(batch), max_new_tokens=5, do_sample=False)


@pytest.mark.parametrize("device_map", [None, "cpu", "disk", {"qformer": "disk", f"{BLOCK}.fc2": "cpu"}])
def test_every_weight_has_one_place(device_map: Any, loaded: LoadedModel) -> None:
    where = locations(loaded.model, device_map, CPU)
    for name, _ in [*loaded.model.named_parameters(), *loaded.model.named_buffers()]:
        assert sum(path in ("", name) or name.startswith(f"{path}.") for path in where) == 1
    if device_map == "disk":
        blocks = {path for path, place in where.items() if place == "disk"}
        assert blocks == {
            *(f"vision_model.encoder.layers.{index}" for index in range(6)),
            *(f"qformer.encoder.layer.{index}" for index in range(2)),
            *(f"language_model.model.decoder.layers.{index}" for index in range(6)),
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_map": {"vision": "disk"}}, "'vision' is no module of .*, which has vision_model, qformer"),
        ({"device_map": {"": "disk"}}, "'' is no module"),
        ({"device_map": {"qformer": "cuda:7"}}, "model.device_map: qformer: cuda:7: no such device; choose cpu"),
        ({"device": "cuda:7"}, "model.device=cuda:7: .* no such device; choose auto or cpu"),
        (
            {"device_map": "auto", "max_memory": {"gpu": "1GB"}},
            "model.max_memory: gpu: give cpu, or the number of a GPU",
        ),
    ],
)
def test_a_place_that_is_not_there(options: dict[str, Any], message: str, model_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        load_model({**model_config, **options})


def test_places_are_no_part_of_a_cell(composed: Callable[..., DictConfig]) -> None:
    places = (
        "model.device_map=auto",
        "model.max_memory={0: 20GB, cpu: 1MB}",
        "model.device=cpu",
        "model.offload_dir=x",
    )
    placed, plain = plan([composed(*places)]), plan([composed()])
    assert [cell.id for cell in placed.cells] == [cell.id for cell in plain.cells]
    assert placed.configs[placed.cells[0].id]["model"]["max_memory"] == {"0": "20GB", "cpu": "1MB"}
    assert read_max_memory({"0": "20GB", "cpu": "1MB"}, "auto") == {0: "20GB", "cpu": "1MB"}
    with pytest.raises(ConfigError, match=r"(?s)model.device_map=gpu: .*cpu.*MODULE: DEVICE.*model.max_memory=9: give"):
        plan([composed("model.device_map=gpu", "model.max_memory=9")])


def test_a_device_without_a_number_is_the_first() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_weights_on_disk_are_not_in_memory_and_answer_the_same(
    on_disk: LoadedModel, loaded: LoadedModel, batch: dict[str, Tensor]
) -> None:
    blocks = [parameter for name, parameter in on_disk.model.named_parameters() if ".layer" in name]
    assert len(blocks) > 200
    assert {parameter.device.type for parameter in blocks if parameter.numel() > 64} == {"meta"}
    assert on_disk.device == CPU
    assert torch.equal(answers(on_disk, batch), answers(loaded, batch))


def test_accelerate_chooses_what_goes_to_disk(
    model_config: dict[str, Any], loaded: LoadedModel, batch: dict[str, Tensor]
) -> None:
    with quiet_libraries():
        spread = load_model({**model_config, "device_map": "auto", "device": "cpu", "max_memory": {"cpu": "1MB"}})
    places = {parameter.device.type for parameter in spread.model.parameters()}
    assert places == {"cpu", "meta"}
    assert torch.equal(answers(spread, batch), answers(loaded, batch))


def test_a_placed_block_is_read_once(on_disk: LoadedModel, loaded: LoadedModel) -> None:
    linear, x = on_disk.linear(LINEAR), torch.randn(2, 64)
    with on_disk.onloaded(BLOCK):
        first = linear.weight
        assert first.device == CPU
        assert torch.equal(linear(x), loaded.linear(LINEAR)(x))
        assert linear.weight is first, "running the block neither drops nor reads its weights"
        with on_disk.onloaded(LINEAR):
            pass
        assert linear.weight is first, "what is placed already stays when an inner one closes"
    assert linear.weight.device.type == "meta"
    assert torch.equal(on_disk.weight(LINEAR), loaded.weight(LINEAR))
    with pytest.raises(KeyError), on_disk.onloaded(BLOCK):
        raise KeyError("anything")
    assert linear.weight.device.type == "meta"


def test_placing_what_is_there_costs_nothing(loaded: LoadedModel) -> None:
    weight = loaded.linear(LINEAR).weight
    with loaded.onloaded(BLOCK):
        assert loaded.linear(LINEAR).weight is weight
    assert loaded.linear(LINEAR).weight is weight


@pytest.mark.parametrize("kept_in", ["memory", "file", "disk"])
def test_replaced_weights_are_put_back_bit_for_bit(
    kept_in: str,
    loaded: LoadedModel,
    on_disk: LoadedModel,
    batch: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    model = on_disk if kept_in == "disk" else loaded
    monkeypatch.setattr(weight_backup, "available_bytes", lambda _device: 0 if kept_in == "file" else 1 << 40)
    names = [f"language_model.model.decoder.layers.{index}.{one}" for index in range(6) for one in ("fc1", "fc2")]
    before = {name: model.weight(name).clone() for name in names}
    plain = answers(loaded, batch)
    other = {name: -weight for name, weight in before.items()}
    model = LoadedModel(model.model, model.processor, {**model.config, "offload_dir": str(tmp_path)})
    with model.weights_replaced(other):
        assert all(torch.equal(model.weight(name), other[name]) for name in names)
        changed = answers(model, batch)
    with pytest.raises(KeyError), model.weights_replaced(other):
        raise KeyError("anything")
    assert all(torch.equal(model.weight(name), before[name]) for name in names)
    assert torch.equal(answers(model, batch), plain)
    with loaded.weights_replaced(other):
        assert torch.equal(answers(loaded, batch), changed)
    assert not torch.equal(changed, plain)
    assert list(tmp_path.iterdir()) == []


def test_a_half_kept_aside_in_a_file_is_the_same_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_backup, "available_bytes", lambda _device: 0)
    tensors = {str(index): torch.randn(5, 7).to(dtype) for index, dtype in enumerate((torch.bfloat16, torch.float16))}
    with weight_backup.room_aside(1, tmp_path) as kept:
        for name, tensor in tensors.items():
            kept.keep(name, tensor)
        for name, tensor in reversed(tensors.items()):
            into = torch.zeros_like(tensor)
            kept.put_back(name, into)
            assert torch.equal(into, tensor)


def test_a_sweep_with_blocks_on_disk_gives_the_same_weights_and_answers(
    composed: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = {}
    for device_map in ("null", "disk"):
        few = (*SMALL, "task.limit=3", "calibration.samples=6", "calibration.batch_size=3", "bits=3")
        shared = (*few, f"store.dir={tmp_path / device_map}", f"model.device_map={device_map}")
        words = "model.generation.caption.max_new_tokens=4"
        configs = [composed(f"method={method}", words, *shared) for method in ("rtn", "gptq", "awq")]
        assert run_sweep(configs) == 0, capsys.readouterr().err
        stores[device_map] = Store.open(str(tmp_path / device_map))
    memory_store, disk_store = stores.values()
    artifacts = sorted(path.name for path in (memory_store.root / "artifacts" / "quantized").glob("*.safetensors"))
    assert len(artifacts) == 3 * 2 * (6 + 2 + 6)
    for name in artifacts:
        same = [(store.root / "artifacts" / "quantized" / name).read_bytes() for store in stores.values()]
        assert same[0] == same[1]
    cells = sorted(path.name for path in (memory_store.root / "cells").iterdir())
    assert cells == sorted(path.name for path in (disk_store.root / "cells").iterdir())
    for cell in cells:
        assert memory_store.record(cell).metrics == disk_store.record(cell).metrics
        assert memory_store.items(cell) == disk_store.items(cell)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_calibrated_the_same_from_disk(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded, batch = toy_model(name), toy_batch(name)
    found = find_parts(loaded.model, loaded.config)
    parts = {name: part for name, part in found.items() if name != EMBEDDINGS}  # which have no statistics

    def statistics() -> dict[str, Tensor]:
        passes = capture(loaded, parts.values(), [batch])
        return {
            linear: one.stats.gram
            for part in parts.values()
            for _, found in block_statistics(
                loaded, part, passes[part.name], [linear for unit in part.units for linear in unit.linears]
            )
            for one in found
            for linear in one.linears
        }

    resident = statistics()
    with quiet_libraries():
        dispatch_model(loaded.model, locations(loaded.model, "disk", CPU), offload_dir=str(tmp_path), force_hooks=True)
    linears = [linear for part in parts.values() for unit in part.units for linear in unit.linears]
    # A head that is tied lies where the embeddings lie.
    in_blocks = [linear for linear in linears if HEAD not in parts or linear != parts[HEAD].module]
    holders = [loaded.model.get_submodule(module_of(linear)) for linear in in_blocks]
    assert {weight.device.type for holder in holders for weight in holder.parameters()} == {"meta"}
    from_disk = statistics()
    assert sorted(from_disk) == sorted(resident) == sorted(linears)
    for linear, gram in from_disk.items():
        assert torch.equal(gram, resident[linear])


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(
    model_config: dict[str, Any], loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = sum(parameter.numel() for parameter in loaded.model.parameters())
    everything = {"": "cpu"}
    monkeypatch.setattr("mmq_sweeps.models.device_map.available_bytes", lambda _device: 4 * count)
    check_room(loaded.model, everything, torch.float32, "here")
    monkeypatch.setattr("mmq_sweeps.models.device_map.available_bytes", lambda _device: 4 * count - 1)
    with pytest.raises(ValueError, match=rf"{count:,} parameters in float32 go to cpu.*model.dtype=bfloat16, .*=disk"):
        load_model(model_config)
    check_room(loaded.model, everything, torch.bfloat16, "here")
    check_room(loaded.model, locations(loaded.model, "disk", CPU), torch.float32, "here")


def test_the_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control groups, as a container or SLURM sets them: the tightest limit above the process applies."""
    assert 0 < available_bytes(CPU) < 1 << 50
    job = tmp_path / "slurm" / "job_1"
    job.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("0::/slurm/job_1\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    unlimited = available_bytes(CPU)
    for folder, limit in ((job, "max"), (job.parent, "1000000")):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700000\n")
        (folder / "memory.stat").write_text("anon 600000\ninactive_file 50000\n")
    assert available_bytes(CPU) == 350_000 < unlimited
