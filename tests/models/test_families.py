"""Every family at a toy size, with random weights: its blocks are called as calibration expects, and replay exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from mmq_sweeps.calibrate import Replay, capture
from mmq_sweeps.execute import quiet_libraries
from mmq_sweeps.models.catalog import read_model
from mmq_sweeps.models.check import Filled
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.shapes import Shape, build_on_meta, find_shape
from mmq_sweeps.targets import find_parts

# What a family's published shape is cut down to, wherever the key stands in its configuration.
TOY = {
    "hidden_size": 32, "encoder_hidden_size": 32, "out_hidden_size": 32, "projection_dim": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "num_hidden_layers": 3, "depth": 3, "num_attention_heads": 4, "num_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 500, "image_size": 28, "patch_size": 7, "window_size": 28,
    "scale_factor": 2, "max_position_embeddings": 64,
}  # fmt: skip
IMAGE_TOKEN, PADDING = 499, 1
BATCH, LENGTH, PADDED = 2, 44, 4
PIXELS = (BATCH, 3, 28, 28)

# What a family's configuration needs besides, the image's input, and how many tokens an image takes in the text.
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "blip2_opt_2_7b": (
        {"image_token_index": IMAGE_TOKEN, "qformer_config": {"num_attention_heads": 4}},
        {"pixel_values": PIXELS},
        32,
    ),
    "blip2_itm_vit_g": (
        {"qformer_config": {"num_attention_heads": 4}},
        {"pixel_values": PIXELS, "use_image_text_matching_head": True},
        0,
    ),
    "llava_1_5_7b": ({"image_token_index": IMAGE_TOKEN}, {"pixel_values": PIXELS}, 16),
    "qwen2_5_vl_3b": (
        {
            "image_token_id": IMAGE_TOKEN,
            "text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        },
        {"pixel_values": (BATCH * 16, 3 * 2 * 7 * 7), "image_grid_thw": [[1, 4, 4]] * BATCH},
        4,
    ),
    "smolvlm2_2_2b": ({"image_token_id": IMAGE_TOKEN}, {"pixel_values": (BATCH, 1, 3, 28, 28)}, 4),
    "idefics3_8b": ({"image_token_id": IMAGE_TOKEN}, {"pixel_values": (BATCH, 1, 3, 28, 28)}, 4),
    "paligemma2_3b": ({"image_token_index": IMAGE_TOKEN}, {"pixel_values": PIXELS}, 16),
    "internvl3_2b": ({"image_token_id": IMAGE_TOKEN}, {"pixel_values": PIXELS}, 4),
}


def shrunk(values: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` at the toy size, nested configurations as well; ``more`` is put over them as it is."""
    toy: dict[str, Any] = {**more}
    for key, value in values.items():
        if isinstance(value, dict):
            toy[key] = shrunk(value, more.get(key, {}))
        elif key in TOY:
            toy[key] = [TOY[key]] * 2 if isinstance(value, list) else TOY[key]
        else:
            toy.setdefault(key, value)
    return {**toy, "pad_token_id": PADDING} if "vocab_size" in toy else toy


def toy_model(name: str) -> LoadedModel:
    config = read_model(name)
    toy = Shape(shrunk(find_shape(config).values, FAMILIES[name][0]), "a toy")
    with quiet_libraries():
        # Counted first: a value that TOY forgets would fill the memory.
        assert sum(parameter.numel() for parameter in build_on_meta(config, toy).parameters()) < 1_000_000
        model_class = getattr(transformers, config["class_name"])
        model = model_class(model_class.config_class.from_dict(toy.values))
    return LoadedModel(model.eval().requires_grad_(False), None, config)


def toy_batch(name: str) -> dict[str, Tensor]:
    _, image, tokens = FAMILIES[name]
    text = torch.randint(5, 400, (BATCH, LENGTH))
    text[:, 2 : 2 + tokens] = IMAGE_TOKEN
    mask = torch.ones_like(text)
    mask[1, -PADDED:] = 0
    made = {key: torch.randn(value) if key == "pixel_values" else torch.tensor(value) for key, value in image.items()}
    return {"input_ids": text, "attention_mask": mask, **made}


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_replay_exactly_and_every_linear_has_statistics(name: str) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    parts = find_parts(loaded.model, loaded.config["parts"])
    outputs: dict[str, Tensor] = {}
    for part in parts.values():
        loaded.model.get_submodule(part.blocks[-1]).register_forward_hook(
            lambda _block, _inputs, output, part=part.name: outputs.update(
                {part: output[0] if isinstance(output, tuple) else output}
            )
        )
    calls = capture(loaded, parts.values(), [toy_batch(name)])
    in_the_model = dict(outputs)
    for part in parts.values():
        replay = Replay(loaded, part, calls[part.name])
        found = [
            one
            for path in part.blocks
            for one in replay.advance(
                [name for unit in part.units for name in unit.linears if name.startswith(f"{path}.")]
            )
        ]
        assert torch.equal(replay.hidden[0], in_the_model[part.name])
        linears = [linear for one in found for linear in one.linears]
        assert sorted(linears) == sorted(linear for unit in part.units for linear in unit.linears)
        if part.masked is True:
            assert {one.stats.count for one in found} == {BATCH * LENGTH - PADDED}


@pytest.mark.parametrize("name", [name for name, (*_, tokens) in FAMILIES.items() if tokens])
def test_the_places_of_image_features_are_counted_by_row(name: str) -> None:
    """The family itself raises nothing if one row has a place too many and another one too few."""
    torch.manual_seed(0)
    loaded, batch, tokens = toy_model(name), toy_batch(name), FAMILIES[name][2]
    with torch.no_grad(), Filled() as filled:
        loaded.model(**batch)
    assert filled.places == [tokens, tokens]
    batch["input_ids"][0, 2], batch["input_ids"][1, 1] = 7, IMAGE_TOKEN
    with torch.no_grad(), Filled() as filled:
        loaded.model(**batch)
    assert filled.places == [tokens - 1, tokens + 1]
