"""Models of every family at a toy size with random weights, and checkpoints of them with processors of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from mmq_sweeps.config.model_catalog import model_names, read_model
from mmq_sweeps.data.scenes.words import VOCABULARY
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.shapes import Shape, build_on_meta, find_shape
from tests.models import other_toys

# The sizes to which a family's published shape is cut, at any depth of its configuration. The vocabulary has room for
# the thousand tokens that PaliGemma's processor adds.
TOY = {
    "hidden_size": 32, "encoder_hidden_size": 32, "out_hidden_size": 32, "projection_dim": 32, "word_embed_proj_dim": 32,
    "intermediate_size": 48, "ffn_dim": 48, "num_hidden_layers": 3, "depth": 3, "num_attention_heads": 4, "num_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 2000, "image_size": 28, "patch_size": 7, "window_size": 28,
    "scale_factor": 2, "max_position_embeddings": 64,
}  # fmt: skip
IMAGE_TOKEN, PADDING = 499, 1
BATCH, LENGTH, PADDED = 2, 44, 4
PIXELS = (BATCH, 3, 28, 28)

# Further settings of each family's configuration, the image's input, and the number of tokens an image takes in the text.
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
    "qwen3_vl_30b_a3b": (
        {
            "image_token_id": IMAGE_TOKEN,
            "vision_config": {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16},
            "text_config": {
                "num_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 16,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            },
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
    """Return ``values`` at the toy size, nested configurations as well; ``more`` is put over them as it is."""
    toy: dict[str, Any] = {**more}
    for key, value in values.items():
        if isinstance(value, dict):
            toy[key] = shrunk(value, more.get(key, {}))
        elif key in TOY:
            toy[key] = [TOY[key]] * 2 if isinstance(value, list) else TOY[key]
        else:
            toy.setdefault(key, value)
    return {**toy, "pad_token_id": PADDING} if "vocab_size" in toy else toy


def toy_values(name: str) -> dict[str, Any]:
    """Return the values of a toy's ``config.json``."""
    return shrunk(find_shape(read_model(name)).values, FAMILIES[name][0])


def toy_model(name: str) -> LoadedModel:
    config = read_model(name)
    toy = Shape(toy_values(name), "a toy")
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
    if name == "qwen3_vl_30b_a3b":
        made["mm_token_type_ids"] = (text == IMAGE_TOKEN).long()
    return {"input_ids": text, "attention_mask": mask, **made}


SIDE, PATCH = 28, 7
SQUARE = {"height": SIDE, "width": SIDE}
SPECIAL = ("<unk>", "<pad>", "<s>", "</s>")


@dataclass(frozen=True)
class Recipe:
    """The parts of a family's processor: tokens of its texts, tokens its tokenizer names, image processor, and class."""

    tokens: tuple[str, ...]
    images: str
    size: Mapping[str, Any]
    processor: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=dict)


# By the name of the first model of the family.
RECIPES = {
    "blip2_opt_2_7b": Recipe(
        ("<image>",), "BlipImageProcessor", {"size": SQUARE}, "Blip2Processor", {"num_query_tokens": 32}
    ),
    "blip2_itm_vit_g": Recipe(("<image>",), "BlipImageProcessor", {"size": SQUARE}, "Blip2Processor"),
    "llava_1_5_7b": Recipe(
        ("<image>",), "CLIPImageProcessor", {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}, "LlavaProcessor",
        {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
    ),
    "qwen2_5_vl_3b": Recipe(
        ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"),
        "Qwen2VLImageProcessor",
        {"patch_size": PATCH, "size": {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}},
        "Qwen2_5_VLProcessor",
    ),
    "qwen3_vl_30b_a3b": Recipe(
        ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"),
        "Qwen2VLImageProcessor",
        {"patch_size": PATCH, "size": {"shortest_edge": SIDE * SIDE, "longest_edge": 4 * SIDE * SIDE}},
        "Qwen3VLProcessor",
    ),
    "smolvlm2_2_2b": Recipe(
        ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>", "<row_1_col_1>"),
        "SmolVLMImageProcessor", {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}},
        "SmolVLMProcessor", {"image_seq_len": 4},
    ),
    "idefics3_8b": Recipe(
        ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"), "Idefics3ImageProcessor",
        {"size": {"longest_edge": 2 * SIDE}, "max_image_size": {"longest_edge": SIDE}},
        "Idefics3Processor", {"image_seq_len": 4},
    ),
    "paligemma2_3b": Recipe(
        ("<image>",), "SiglipImageProcessor", {"size": SQUARE, "image_seq_length": 16}, "PaliGemmaProcessor"
    ),
    "internvl3_2b": Recipe(
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>", "<|im_start|>", "<|im_end|>"), "GotOcr2ImageProcessor",
        {"size": SQUARE, "crop_to_patches": False}, "InternVLProcessor", {"image_seq_length": 4},
        {"context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
         "video_token": "<video>"},
    ),
}  # fmt: skip
# Families that no yaml describes.
RECIPES |= {
    "idefics2": Recipe(
        ("<image>", "<fake_token_around_image>", "<end_of_utterance>"), "Idefics2ImageProcessor",
        {"size": {"longest_edge": 56, "shortest_edge": 28}, "do_image_splitting": False}, "Idefics2Processor",
        {"image_seq_len": 4},
    ),
    "flan_t5": Recipe(("<image>",), "BlipImageProcessor", {"size": SQUARE}, "Blip2Processor", {"num_query_tokens": 4}),
}  # fmt: skip
# Models that share a family, and therefore a toy, with another model.
LIKE = {"llava_1_5_13b": "llava_1_5_7b", "qwen2_5_vl_7b": "qwen2_5_vl_3b"}
IMAGE_TOKENS = ("image_token_id", "image_token_index")


def write_checkpoint(name: str, folder: Path) -> None:
    """Write a toy of ``conf/model/NAME.yaml`` with random weights, as a checkpoint of its family lies on the hub."""
    family = LIKE.get(name, name)
    tokenizer = _tokenizer(RECIPES[family])
    toy = toy_values(family)
    for key in IMAGE_TOKENS:
        if key in toy:
            toy[key] = tokenizer.convert_tokens_to_ids(RECIPES[family].tokens[0])
    torch.manual_seed(0)
    with quiet_libraries():
        model_class = getattr(transformers, read_model(name)["class_name"])
        model = model_class(model_class.config_class.from_dict(toy))
        save(awake(model), tokenizer, RECIPES[family], folder)


def write_other_checkpoint(name: str, folder: Path) -> None:
    """Write a toy checkpoint of a family that no yaml describes."""
    tokenizer = _tokenizer(RECIPES[name])
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    with quiet_libraries():
        save(awake(other_toys.CHECKPOINTS[name](image_token)), tokenizer, RECIPES[name], folder)


def awake(model: Any) -> Any:
    """Enlarge the weights of ``model`` until its answers depend on the image, as the check of a model requires."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    return model


def save(model: Any, tokenizer: Any, recipe: Recipe, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images = {"image_processor_type": recipe.images, **recipe.size}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": recipe.processor, **recipe.fields}))


def _prompt_words() -> list[str]:
    """Return the words of every model's prompts: a model that does not know its prompt is refused."""
    texts = [text for name in model_names() for text in (read_model(name).get("prompts") or {}).values()]
    return [word for text in texts for word, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text)]


def _tokenizer(recipe: Recipe) -> Any:
    known = dict.fromkeys((*SPECIAL, *recipe.tokens, *VOCABULARY, *_prompt_words()))
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(recipe.named) or list(recipe.tokens),
    )
