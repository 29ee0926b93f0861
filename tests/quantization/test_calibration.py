from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.schema import ModelConfig
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.models.retriever import Retriever
from mmq_sweeps.quantization.calibration import BlockRunner, SharedStats, block_statistics, capture
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.tasks.caption import CaptionTask

CALIBRATION = {"samples": 12, "batch_size": 5, "seed": 0}


@pytest.fixture(scope="module")
def batches(loaded: LoadedModel) -> list[dict[str, Tensor]]:
    data = {"_target_": "mmq_sweeps.data.scenes.Scenes", "seed": 0}
    task = CaptionTask("t", 1, data, "evaluation", "calibration", 4, "", {}, ["cider"], 4)
    return list(task.calibration_batches(loaded, CALIBRATION))


def direct_inputs(loaded: LoadedModel, batches: list[dict[str, Tensor]], name: str) -> list[Tensor]:
    """Return the inputs of a linear in plain runs of the model."""
    seen: list[Tensor] = []
    handle = loaded.model.get_submodule(name).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for batch in batches:
            loaded.model(**loaded.to_device(batch), use_cache=False)
    handle.remove()
    return seen


def every_linear(part: Part) -> list[str]:
    return [name for unit in part.units for name in unit.linears]


def all_statistics(
    loaded: LoadedModel, part: Part, batches: list[dict[str, Any]], keep_inputs: bool = False
) -> dict[str, SharedStats]:
    passes = capture(loaded, [part], batches)[part.name]
    return {
        name: shared
        for _, found in block_statistics(loaded, part, passes, every_linear(part), keep_inputs)
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
    passes = capture(loaded, [part], batches)["vision"]
    wanted = list(next(unit for unit in part.units if unit.block == 1 and unit.kind == "mlp").linears)
    found = dict(block_statistics(loaded, part, passes, wanted))
    assert list(found) == [1]
    assert sorted(name for shared in found[1] for name in shared.linears) == sorted(wanted)
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


def test_memory_of_one_block_at_a_time(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]
) -> None:
    """The statistics of a block are freed before those of the next are made, unless the caller holds them."""
    import weakref

    vision = parts["vision"]
    passes = capture(loaded, [vision], batches)["vision"]
    alive: list[weakref.ref] = []
    for _, found in block_statistics(loaded, vision, passes, every_linear(vision)):
        assert not any(reference() for reference in alive)
        alive = [weakref.ref(shared.stats.gram) for shared in found]
        del found


def test_the_checkpoint_is_where_the_package_says(model_config: dict) -> None:
    import mmq_sweeps

    folder = Path(mmq_sweeps.__file__).parent / "models" / model_config["checkpoint"]
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize("padding", ["left", "right"])
def test_either_side_of_padding_is_left_out_and_image_tokens_count(
    loaded: LoadedModel, parts: dict[str, Part], padding: str
) -> None:
    from PIL import Image

    texts = ["a red circle", "a blue square above a green triangle"]
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    batch = dict(loaded.processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side=padding))
    tokens = int(batch["attention_mask"].sum())
    assert tokens < batch["input_ids"].numel()
    together = all_statistics(loaded, parts["language"], [batch])
    alone = [
        dict(loaded.processor(images=[image], text=[text], return_tensors="pt"))
        for image, text in zip(images, texts, strict=True)
    ]
    one_by_one = all_statistics(loaded, parts["language"], alone)
    for name, shared in together.items():
        assert shared.stats.count == tokens
        torch.testing.assert_close(shared.stats.gram, one_by_one[name].stats.gram, rtol=1e-2, atol=1e-3)


def test_inputs_are_kept_where_they_are_asked_for(
    loaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]]
) -> None:
    assert all(one.stats.inputs is None for one in all_statistics(loaded, parts["vision"], batches).values())
    for shared in all_statistics(loaded, parts["language"], batches, keep_inputs=True).values():
        inputs = shared.stats.inputs
        assert inputs is not None
        assert inputs.dtype == torch.float32
        assert inputs.shape == (shared.stats.count, shared.stats.gram.shape[0])
        torch.testing.assert_close(shared.stats.gram, inputs.T @ inputs / len(inputs), rtol=1e-4, atol=1e-5)


class Stack(nn.Module):
    """A module that calls its blocks in the given ``order``."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(2, 2)) for _ in range(3)])

    def forward(self, x: Tensor, order: list[int], use_cache: bool) -> Tensor:
        assert not use_cache
        for index in order:
            x = self.blocks[index](x)
        return x


@pytest.fixture
def stack() -> tuple[LoadedModel, Part]:
    model = nn.ModuleDict({"tower": Stack()})
    model.forward = model["tower"].forward
    where = {"module": ["tower"], "blocks": ["blocks"], "attention": [], "mlp": ["0"], "masked": False}
    return LoadedModel(model, None, {}), find_parts(model, {"parts": {"tower": where}})["tower"]


def test_blocks_may_be_passed_several_times_or_not_at_all(stack: tuple[LoadedModel, Part]) -> None:
    loaded, part = stack
    x = torch.randn(4, 2)
    orders = ([0, 1, 2], [], [0, 1, 2, 0, 1, 2])
    passes = capture(loaded, [part], [{"x": x, "order": order} for order in orders])["tower"]
    assert len(passes) == 3
    found = [shared for _, block in block_statistics(loaded, part, passes, every_linear(part)) for shared in block]
    assert [shared.stats.count for shared in found] == [12, 12, 12]


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ([0, 2, 1], r"tower: tower.blocks.2 was called where tower.blocks.1 was expected"),
        ([0, 1, 2, 0, 0], r"tower: tower.blocks.0 was called where tower.blocks.1 was expected"),
        ([1, 2], r"tower: tower.blocks.1 was called where tower.blocks.0 was expected"),
        ([0, 1], r"tower: a pass ended before tower.blocks.2"),
    ],
)
def test_a_block_that_is_left_out_is_named(stack: tuple[LoadedModel, Part], order: list[int], told: str) -> None:
    loaded, part = stack
    with pytest.raises(RuntimeError, match=told):
        capture(loaded, [part], [{"x": torch.randn(4, 2), "order": order}])


def loaded_with(name: str, **more: Any) -> LoadedModel:
    from omegaconf import OmegaConf

    structure = OmegaConf.structured(ModelConfig)
    config = OmegaConf.merge(structure, OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"), more)
    with quiet_libraries():
        return load_model(OmegaConf.to_container(config))


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return Retriever(loaded_with("tiny_blip2_itm"), 64)


def pairs(retriever: Retriever, texts: list[str], matching: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    side = retriever.loaded.model.config.vision_config.image_size
    pixels = torch.randn(len(texts), 3, side, side, generator=generator)
    return retriever.forward_inputs(pixels, retriever.tokenized(texts), matching)


TEXTS = ["a red circle", "a small blue square is left of a large green triangle", "two circles"]


@pytest.mark.parametrize("matching", [False, True])
def test_the_passes_of_a_retriever_replay_exactly(retriever: Retriever, matching: bool) -> None:
    loaded = retriever.loaded
    part = find_parts(loaded.model, loaded.config)["connector"]
    outputs: list[Tensor] = []
    last = loaded.model.get_submodule(part.blocks[-1])
    handle = last.register_forward_hook(lambda _block, _inputs, output: outputs.append(output))
    passes = capture(loaded, [part], [pairs(retriever, TEXTS, matching)])["connector"]
    handle.remove()
    # For the features the image and the text pass the Q-Former in turn, for the matching head together.
    assert len(passes) == (1 if matching else 2)
    replay = BlockRunner(loaded, part, passes)
    for _ in part.blocks:
        replay.advance()
    assert all(torch.equal(one, other) for one, other in zip(replay.hidden, outputs, strict=True))


def test_padding_of_texts_does_not_count_in_a_q_former(retriever: Retriever) -> None:
    """Query tokens and image tokens all count, with padding beside them or without."""
    loaded = retriever.loaded
    part = find_parts(loaded.model, loaded.config)["connector"]
    words = int(retriever.tokenized(TEXTS).mask.sum())
    assert words < retriever.tokenized(TEXTS).mask.numel()
    queries = len(TEXTS) * loaded.model.config.num_query_tokens
    vision = loaded.model.config.vision_config
    image = len(TEXTS) * ((vision.image_size // vision.patch_size) ** 2 + 1)
    for matching in (False, True):
        together = all_statistics(loaded, part, [pairs(retriever, TEXTS, matching)])
        counts = {
            "attention.attention.query": queries + words,
            "attention.output.dense": queries + words,
            "crossattention.attention.query": queries,
            "crossattention.attention.key": image,
            "crossattention.output.dense": queries,
            "intermediate_query.dense": queries,
            "output_query.dense": queries,
            "intermediate.dense": words,
            "output.dense": words,
        }
        assert {name: together[f"{part.blocks[0]}.{name}"].stats.count for name in counts} == counts
        batch = pairs(retriever, TEXTS, matching)
        alone = []
        for row, text in enumerate(TEXTS):
            own = pairs(retriever, [text], matching)
            alone.append({**own, "pixel_values": batch["pixel_values"][row : row + 1]})
        one_by_one = all_statistics(loaded, part, alone)
        for name, shared in together.items():
            assert shared.stats.count == one_by_one[name].stats.count
            torch.testing.assert_close(shared.stats.gram, one_by_one[name].stats.gram, rtol=1e-3, atol=1e-4)


def test_a_mask_that_fits_no_input_is_named(retriever: Retriever) -> None:
    loaded = retriever.loaded
    where = {**loaded.config["parts"]["connector"], "masked": True}
    part = find_parts(loaded.model, {"parts": {"connector": where}})["connector"]
    with pytest.raises(RuntimeError, match=r"crossattention\S*: its tokens .* are not those of the attention mask"):
        all_statistics(loaded, part, [pairs(retriever, TEXTS, matching=True)])


@pytest.mark.parametrize("name", ["vision", "connector", "language"])
def test_an_offloaded_model_gives_the_same_statistics(
    loaded: LoadedModel, offloaded: LoadedModel, parts: dict[str, Part], batches: list[dict[str, Tensor]], name: str
) -> None:
    here = all_statistics(loaded, parts[name], batches[:1])
    there = all_statistics(offloaded, parts[name], batches[:1])
    assert here.keys() == there.keys()
    assert all(torch.equal(here[linear].stats.gram, there[linear].stats.gram) for linear in here)


@pytest.fixture(scope="module")
def offloaded() -> LoadedModel:
    found = loaded_with("tiny_blip2", device="cpu", device_map="disk")
    assert any(parameter.device.type == "meta" for parameter in found.model.parameters())
    return found
