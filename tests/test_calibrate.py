from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmq_sweeps.calibrate import Collector, block_statistics, capture
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.targets import Part
from mmq_sweeps.tasks.caption import CaptionTask

CALIBRATION = {"samples": 12, "batch_size": 5, "seed": 0}


@pytest.fixture(scope="module")
def batches(loaded: LoadedModel) -> list[dict[str, Tensor]]:
    data = {"_target_": "mmq_sweeps.data.scenes.Scenes", "seed": 0}
    task = CaptionTask("t", 1, data, "evaluation", "calibration", 4, "", {}, ["cider"], 4)
    return list(task.calibration_batches(loaded, CALIBRATION))


def direct_inputs(loaded: LoadedModel, batches: list[dict[str, Tensor]], name: str) -> list[Tensor]:
    """What a linear sees when the model simply runs."""
    seen: list[Tensor] = []
    handle = loaded.model.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            loaded.model(**loaded.to_device(batch), use_cache=False)
    handle.remove()
    return seen


def all_statistics(loaded: LoadedModel, part: Part, batches: list[dict[str, Tensor]]) -> dict:
    calls = capture(loaded, [part], batches)[part.name]
    return {
        name: shared
        for _, found in block_statistics(loaded.model, part, calls, lambda index: True)
        for shared in found
        for name in shared.linears
    }


@pytest.mark.parametrize("name", ["vision", "connector", "language"])
def test_block_by_block_equals_the_whole_model_running(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]], name: str
) -> None:
    part = parts[name]
    statistics = all_statistics(loaded, part, batches)
    assert set(statistics) == {linear for unit in part.units for linear in unit.linears}
    for unit in (part.units[0], part.units[-1]):
        for linear in unit.linears:
            rows = []
            for batch, x in zip(batches, direct_inputs(loaded, batches, linear), strict=True):
                flat = x.reshape(-1, x.shape[-1])
                rows.append(flat[batch["attention_mask"].reshape(-1).bool()] if part.masked else flat)
            x = torch.cat(rows)
            stats = statistics[linear].stats
            assert stats.count == len(x)
            torch.testing.assert_close(stats.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(stats.mean_abs, x.abs().mean(dim=0), rtol=1e-4, atol=1e-5)


def test_linears_on_one_input_share_their_statistics(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]
) -> None:
    statistics = all_statistics(loaded, parts["language"], batches)
    block = parts["language"].blocks[0]
    shared = statistics[f"{block}.self_attn.q_proj"].linears
    assert set(shared) == {f"{block}.self_attn.{name}_proj" for name in "qkv"}
    assert statistics[f"{block}.fc1"].linears == (f"{block}.fc1",)


def test_the_number_of_samples_a_batch_does_not_matter(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]
) -> None:
    one = all_statistics(loaded, parts["vision"], batches)
    joined = [{"pixel_values": torch.cat([batch["pixel_values"] for batch in batches])}]
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    for key in ("input_ids", "attention_mask"):
        filler = loaded.processor.tokenizer.pad_token_id if key == "input_ids" else 0
        padded = [nn.functional.pad(batch[key], (0, longest - batch[key].shape[1]), value=filler) for batch in batches]
        joined[0][key] = torch.cat(padded)
    for name, shared in all_statistics(loaded, parts["vision"], joined).items():
        torch.testing.assert_close(shared.stats.gram, one[name].stats.gram, rtol=1e-4, atol=1e-5)


def test_padding_does_not_count(loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]) -> None:
    def wider(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        padding = loaded.processor.tokenizer.pad_token_id
        return {
            **batch,
            "input_ids": nn.functional.pad(batch["input_ids"], (0, 6), value=padding),
            "attention_mask": nn.functional.pad(batch["attention_mask"], (0, 6), value=0),
        }

    plain = all_statistics(loaded, parts["language"], batches)
    padded = all_statistics(loaded, parts["language"], [wider(batch) for batch in batches])
    for name, shared in plain.items():
        assert padded[name].stats.count == shared.stats.count
        torch.testing.assert_close(padded[name].stats.gram, shared.stats.gram, rtol=1e-3, atol=1e-4)


def test_no_hook_stays_and_only_the_wanted_block_is_listened_to(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]
) -> None:
    part = parts["vision"]
    calls = capture(loaded, [part], batches)["vision"]
    assert [index for index, _ in block_statistics(loaded.model, part, calls, lambda index: index == 1)] == [1]
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_hooks_go_when_the_forward_pass_fails(loaded: LoadedModel, parts: dict[str, Part]) -> None:
    batch = {
        "pixel_values": torch.zeros(1, 3, 5, 5),
        "input_ids": torch.ones(1, 2, dtype=torch.int64),
        "attention_mask": torch.ones(1, 2, dtype=torch.int64),
    }
    with pytest.raises(RuntimeError, match="size"):
        capture(loaded, parts.values(), [batch])
    assert not any(module._forward_pre_hooks for module in loaded.model.modules())


def test_sharing_that_changes_between_batches_is_an_error() -> None:
    block = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    collector = Collector()
    x = torch.ones(2, 3)
    with collector.listening(block, "block"):
        collector.begin(None)
        block["a"](x), block["b"](x)
        collector.begin(None)
        block["a"](x)
        with pytest.raises(
            RuntimeError, match=r"block.b shares its input with block.a in one batch but not in another"
        ):
            block["b"](x.clone())


def test_memory_of_one_block_at_a_time(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]
) -> None:
    """The statistics of a block are gone when those of the next are made, unless someone keeps them."""
    import gc
    import weakref

    calls = capture(loaded, [parts["vision"]], batches)["vision"]
    alive: list[weakref.ref] = []
    for _, found in block_statistics(loaded.model, parts["vision"], calls, lambda index: True):
        gc.collect()
        assert not any(reference() for reference in alive)
        alive = [weakref.ref(shared.stats.gram) for shared in found]
        del found


def test_the_checkpoint_is_where_the_package_says(model_config: dict) -> None:
    import mmq_sweeps

    folder = Path(mmq_sweeps.__file__).parent / "models" / model_config["checkpoint"]
    assert (folder / "config.json").is_file()
