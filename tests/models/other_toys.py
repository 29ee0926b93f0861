"""Toys of families that no yaml describes, each for a special argument or structure of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel

IMAGE_TOKEN = 499
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**VISION, "num_key_value_heads": 2, "vocab_size": 500, "pad_token_id": 1}
PIXELS = {"image_size": 28, "patch_size": 7}
ROTARY = {"rope_type": "default", "rope_theta": 1e4}
# Tokens of the two texts of a batch, of which the second is shorter.
LENGTH, PADDED = 20, 5
TEXT_TOKENS = 2 * LENGTH - PADDED


@dataclass(frozen=True)
class Toy:
    """A model, its parts as a yaml describes them, and a batch of two samples."""

    loaded: LoadedModel
    parts: dict[str, dict[str, Any]]
    batch: dict[str, Tensor]


def part(module: str, blocks: Any, attention: list[str], mlp: list[str], masked: bool = False) -> dict[str, Any]:
    return {"module": [module], "blocks": [blocks], "attention": attention, "mlp": mlp, "masked": masked}


def make(name: str) -> Toy:
    torch.manual_seed(0)
    with quiet_libraries():
        model, parts, batch = MAKERS[name]()
    return Toy(LoadedModel(model.eval().requires_grad_(False), None, {}), parts, batch)


def _texts(image_tokens: int) -> dict[str, Tensor]:
    tokens = torch.randint(5, 400, (2, LENGTH))
    tokens[:, 2 : 2 + image_tokens] = IMAGE_TOKEN
    mask = torch.ones_like(tokens)
    mask[1, -PADDED:] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def idefics2(image_token: int) -> Any:
    perceiver = {
        "hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 4,
        "num_key_value_heads": 2, "resampler_head_dim": 8,
    }  # fmt: skip
    config = transformers.Idefics2Config(
        image_token_id=image_token,
        vision_config={**VISION, "image_size": 56, "patch_size": 7},
        perceiver_config=perceiver,
        text_config={**TEXT, "model_type": "mistral"},
    )
    return transformers.Idefics2ForConditionalGeneration(config)


IDEFICS2_PARTS = {
    "vision": part("model.vision_model", "encoder.layers", ["self_attn"], ["mlp"]),
    "connector": part("model.connector.perceiver_resampler", "layers", ["self_attn"], ["mlp"]),
    "language": part("model.text_model", "layers", ["self_attn"], ["mlp"], masked=True),
}


def _idefics2() -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Make a batch whose second image is 28 x 42 of 56 x 56 pixels: 24 of 64 patches."""
    seen = torch.zeros(2, 1, 56, 56, dtype=torch.bool)
    seen[0], seen[1, :, :28, :42] = True, True
    pixels = torch.randn(2, 1, 3, 56, 56) * seen[:, :, None]
    return idefics2(IMAGE_TOKEN), IDEFICS2_PARTS, {**_texts(4), "pixel_values": pixels, "pixel_attention_mask": seen}


def _mllama() -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Make a batch whose first image has four tiles and second two, of 16 patches and a class token each."""
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 4,
        **PIXELS, "max_num_tiles": 4, "intermediate_layers_indices": [0, 1], "vision_output_dim": 96,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1], [2, 2]],
    }  # fmt: skip
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], "rope_parameters": ROTARY}
    config = transformers.MllamaConfig(image_token_index=IMAGE_TOKEN, vision_config=vision, text_config=text)
    sees = torch.zeros(2, LENGTH, 1, 4, dtype=torch.long)
    sees[0, 2:], sees[1, 2:-PADDED, :, :2] = 1, 1
    parts = {
        "vision": part(
            "model.vision_model", ["transformer.layers", "global_transformer.layers"], ["self_attn"], ["mlp"]
        ),
        "language": part("model.language_model", "layers", ["self_attn", "cross_attn"], ["mlp"], masked=True),
    }
    batch = {
        **_texts(1),
        "pixel_values": torch.randn(2, 1, 4, 3, 28, 28),
        "aspect_ratio_ids": torch.tensor([[4], [2]]),
        "aspect_ratio_mask": torch.tensor([[[1, 1, 1, 1]], [[1, 1, 0, 0]]]),
        "cross_attention_mask": sees,
    }
    return transformers.MllamaForConditionalGeneration(config), parts, batch


def _llama4() -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Make a model whose text layers alternate between MLPs and experts in a single tensor."""
    vision = {
        **VISION, **PIXELS, "intermediate_size": 128, "vision_output_dim": 32, "projector_input_dim": 32,
        "projector_output_dim": 32, "pixel_shuffle_ratio": 0.5,
    }  # fmt: skip
    text = {
        **TEXT, "num_hidden_layers": 3, "head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2,
        "interleave_moe_layer_step": 2,
    }  # fmt: skip
    config = transformers.Llama4Config(image_token_index=IMAGE_TOKEN, vision_config=vision, text_config=text)
    parts = {
        "vision": part("vision_model", "model.layers", ["self_attn"], ["mlp"]),
        "language": part("language_model.model", "layers", ["self_attn"], ["feed_forward"], masked=True),
    }
    return (
        transformers.Llama4ForConditionalGeneration(config),
        parts,
        {**_texts(4), "pixel_values": torch.randn(2, 3, 28, 28)},
    )


T5 = {
    "model_type": "t5", "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "vocab_size": 500, "decoder_start_token_id": 0, "pad_token_id": 0, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
T5_PART = part(
    "language_model",
    ["encoder.block", "decoder.block"],
    ["layer.0.SelfAttention", "layer.1.EncDecAttention"],
    ["layer.1.DenseReluDense", "layer.2.DenseReluDense"],
    masked=True,
)


def flan_t5(image_token: int) -> Any:
    config = transformers.Blip2Config(
        image_token_index=image_token,
        num_query_tokens=4,
        vision_config={**VISION, **PIXELS},
        qformer_config={**VISION, "encoder_hidden_size": 32, "vocab_size": 500},
        text_config=T5,
    )
    return transformers.Blip2ForConditionalGeneration(config)


def _flan_t5() -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    return flan_t5(IMAGE_TOKEN), {"language": T5_PART}, {**_texts(4), "pixel_values": torch.randn(2, 3, 28, 28)}


def _florence2() -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Make a vision tower of four stages with a convolution between them, and an encoder-decoder that is called by halves."""
    vision = {
        "depths": [1, 1, 2, 1], "embed_dim": [8, 16, 16, 32], "num_heads": [1, 2, 2, 4], "num_groups": [1, 2, 2, 4],
        "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2], "patch_padding": [3, 1, 1, 1], "projection_dim": 32,
        "window_size": 4,
    }  # fmt: skip
    text = {
        "model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 500, "pad_token_id": 1,
        "max_position_embeddings": 64,
    }  # fmt: skip
    config = transformers.Florence2Config(image_token_id=IMAGE_TOKEN, vision_config=vision, text_config=text)
    parts = {
        "vision": part(
            "model.vision_tower",
            "blocks",
            ["spatial_block.window_attn", "channel_block.channel_attn"],
            ["spatial_block.ffn", "channel_block.ffn"],
        ),
        "language": part(
            "model.language_model",
            ["encoder.layers", "decoder.layers"],
            ["self_attn", "encoder_attn"],
            ["fc1", "fc2"],
            masked=True,
        ),
    }
    answers = torch.randint(5, 400, (2, LENGTH))  # As many tokens as the encoder's.
    answered = torch.ones_like(answers)
    answered[0, 7:] = 0
    batch = {
        **_texts(5),
        "pixel_values": torch.randn(2, 3, 64, 64),
        "decoder_input_ids": answers,
        "decoder_attention_mask": answered,
    }
    return transformers.Florence2ForConditionalGeneration(config), parts, batch


def _qwen3_vl(experts: bool = False) -> tuple[Any, dict[str, Any], dict[str, Tensor]]:
    """Make a model that adds image features after the first layers of its text model."""
    kind = "Qwen3VLMoe" if experts else "Qwen3VL"
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "depth": 3, "num_heads": 4, "patch_size": 7, "out_hidden_size": 32,
        "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = {**TEXT, "num_hidden_layers": 3, "head_dim": 8, "rope_parameters": {**ROTARY, "mrope_section": [1, 1, 2]}}
    if experts:
        text |= {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(image_token_id=IMAGE_TOKEN, vision_config=vision, text_config=text)
    parts = {
        "vision": part("model.visual", "blocks", ["attn"], ["mlp"]),
        "language": part("model.language_model", "layers", ["self_attn"], ["mlp"], masked=True),
    }
    texts = _texts(4)
    batch = {
        **texts,
        "pixel_values": torch.randn(32, 3 * 2 * 7 * 7),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "mm_token_type_ids": (texts["input_ids"] == IMAGE_TOKEN).long(),
    }
    return getattr(transformers, f"{kind}ForConditionalGeneration")(config), parts, batch


MAKERS: dict[str, Callable[[], tuple[Any, dict[str, Any], dict[str, Tensor]]]] = {
    "idefics2": _idefics2,
    "mllama": _mllama,
    "llama4": _llama4,
    "flan_t5": _flan_t5,
    "florence2": _florence2,
    "qwen3_vl": _qwen3_vl,
    "qwen3_vl_moe": lambda: _qwen3_vl(experts=True),
}
# Those that are written as checkpoints, by the token that stands for an image.
CHECKPOINTS: dict[str, Callable[[int], Any]] = {"idefics2": idefics2, "flan_t5": flan_t5}
