"""Parts and counts of every model of ``conf/model``, at full size and without weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from mmq_sweeps.config.model_catalog import model_names
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.identity.cell import BLOCK_GROUPS, LAYER_KINDS
from mmq_sweeps.identity.end_parts import EMBEDDINGS, END_PARTS, HEAD
from mmq_sweeps.methods.formats import Format, round_nearest
from mmq_sweeps.models.__main__ import Counted, describe, read_assignment, size_of
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization import vision_tokens
from mmq_sweeps.quantization.size import measure
from mmq_sweeps.quantization.targets import Part

Build = Callable[[str], Counted]

# Weights of the linears of a block, by hand.
VIT_G = 1408 * 3 * 1408 + 1408 * 1408 + 2 * 1408 * 6144
CLIP_L = 4 * 1024**2 + 2 * 1024 * 4096
OPT_2_7B = 4 * 2560**2 + 2 * 2560 * 10240
VICUNA_7B = 4 * 4096**2 + 3 * 4096 * 11008
VICUNA_13B = 4 * 5120**2 + 3 * 5120 * 13824
Q_FORMER_SELF_ATTENTION = 4 * 768**2
Q_FORMER_CROSS_ATTENTION = 2 * 768**2 + 2 * 768 * 1408
Q_FORMER_MLP = 2 * 768 * 3072
# Every second of the 12 blocks attends to the image. The retriever has an MLP for queries and an MLP for texts.
Q_FORMER = 12 * (Q_FORMER_SELF_ATTENTION + Q_FORMER_MLP) + 6 * Q_FORMER_CROSS_ATTENTION

QWEN3_MOE = 128 * 3 * 2048 * 768 + 2 * 2048 * 32 * 128 + 2 * 2048 * 4 * 128

BY_HAND = {
    "qwen3_vl_30b_a3b": {"vision": 27 * (4 * 1152**2 + 2 * 1152 * 4304), "language": 48 * QWEN3_MOE},
    "blip2_opt_2_7b": {"vision": 39 * VIT_G, "connector": Q_FORMER, "language": 32 * OPT_2_7B},
    "blip2_itm_vit_g": {"vision": 39 * VIT_G, "connector": Q_FORMER + 12 * Q_FORMER_MLP},
    "llava_1_5_7b": {"vision": 24 * CLIP_L, "language": 32 * VICUNA_7B},
    "llava_1_5_13b": {"vision": 24 * CLIP_L, "language": 40 * VICUNA_13B},
}


@pytest.mark.parametrize("name", model_names())
def test_a_yaml_says_what_it_is(name: str, counted: Build) -> None:
    first_line = (conf_dir() / "model" / f"{name}.yaml").read_text().partition("\n")[0]
    assert first_line.startswith("# ")
    config = counted(name).config
    assert config["name"] == name
    assert [part for part, where in config["parts"].items() if where["masked"]] in ([], ["connector"], ["language"])


@pytest.mark.parametrize("name", model_names())
def test_a_part_that_sees_texts_says_which_tokens_are_of_the_image(name: str, counted: Build) -> None:
    found = counted(name)
    for part in found.parts.values():
        assert (part.vision_tokens is not None) == (bool(part.masked))
        # The configuration kept of BLIP-2, which counts its parameters, is of a revision from before it had the token.
        assert (vision_tokens.problem(found.model, part) is None) == (
            name != "blip2_opt_2_7b" or not part.vision_tokens
        )


@pytest.mark.parametrize("name", model_names())
def test_the_linears_of_all_blocks_are_those_of_the_parts(name: str, counted: Build) -> None:
    model, parts = counted(name).model, counted(name).parts
    # Layers stand in lists in every family; modules outside lists (projectors, heads) belong to no part.
    expected = {
        f"{path}.{inner}"
        for path, layers in model.named_modules()
        # Qwen3-VL's mergers behind some layers of its vision tower are projectors.
        if isinstance(layers, nn.ModuleList) and not path.endswith("merger_list")
        for inner, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    } | {
        f"{path}.{parameter}[{index}]"
        for path, module in model.named_modules()
        for parameter, own in module.named_parameters(recurse=False)
        if own.dim() == 3 and path.endswith(".experts")
        for index in range(len(own))
    }
    found = [linear for part in parts.values() if not part.at_an_end for unit in part.units for linear in unit.linears]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("name", model_names())
def test_every_linear_has_one_part_group_and_kind(name: str, counted: Build) -> None:
    for part in (part for part in counted(name).parts.values() if not part.at_an_end):
        selected = [
            linear
            for group, kind in itertools.product(BLOCK_GROUPS, LAYER_KINDS)
            for unit in part.units
            if (unit.group, unit.kind) == (group, kind)
            for linear in unit.linears
        ]
        assert len(selected) == len(set(selected)) == sum(len(unit.linears) for unit in part.units)
        for index in range(len(part.blocks)):
            assert {unit.kind for unit in part.units if unit.block == index and unit.linears} == set(LAYER_KINDS)


@pytest.mark.parametrize("name", model_names())
def test_embeddings_and_head_are_those_that_transformers_names(name: str, counted: Build) -> None:
    model, parts = counted(name).model, counted(name).parts
    named = {EMBEDDINGS: model.get_input_embeddings(), HEAD: model.get_output_embeddings()}
    for part, module in named.items():
        assert (part in parts) is (module is not None)
        if module is not None:
            assert model.get_submodule(parts[part].module) is module
            assert [unit.linears for unit in parts[part].units] == [{parts[part].module: tuple(module.weight.shape)}]
    tied = named[HEAD] is not None and named[HEAD].weight is named[EMBEDDINGS].weight
    assert [parts[part].tied_to for part in END_PARTS if part in parts and tied] == [HEAD, EMBEDDINGS] * tied
    assert tied is (name in TIED)


# The checkpoints whose output layer is the table of their token embeddings.
TIED = ("blip2_opt_2_7b", "paligemma2_3b", "qwen2_5_vl_3b", "tiny_blip2")


@pytest.mark.parametrize("name", BY_HAND)
def test_counts_by_hand(name: str, counted: Build) -> None:
    told = describe(counted(name))["parts"]
    assert {part: of["quantizable_weights"] for part, of in told.items() if part not in END_PARTS} == BY_HAND[name]


def test_blocks_of_the_study(counted: Build) -> None:
    blocks = {
        name: {part: of["blocks"] for part, of in describe(counted(name))["parts"].items() if part not in END_PARTS}
        for name in ("blip2_opt_2_7b", "blip2_itm_vit_g", "llava_1_5_7b")
    }
    assert blocks == {
        "blip2_opt_2_7b": {"vision": 39, "connector": 12, "language": 32},
        "blip2_itm_vit_g": {"vision": 39, "connector": 12},
        "llava_1_5_7b": {"vision": 24, "language": 32},
    }


def test_every_published_size_of_the_captioner(counted: Build, published_sizes: list[dict[str, str]]) -> None:
    """The study stores weights that it does not quantize in 32 bits, and counts more than weights as quantized."""
    captioner = counted("blip2_opt_2_7b")
    total = describe(captioner)["parameters"]
    parts = {"VIT": "vision", "QFORMER": "connector", "LLM": "language"}
    groups = {"FIRST": "front", "MIDDLE": "middle", "LAST": "end"}
    kinds = {"ATTENTION": ["attention"], "MLP": ["mlp"], "BOTH": ["attention", "mlp"]}
    assert len(published_sizes) == 1500
    counts = {
        key: counted_by_the_study(captioner, *key)
        for key in itertools.product(parts.values(), groups.values(), LAYER_KINDS)
    }
    for row in published_sizes:
        quantized = sum(
            counts[parts[part], groups[group], kind]
            for part, group in itertools.product(parts, groups)
            if row[f"{part}_{group}"] == "1"
            for kind in kinds[row["type"]]
        )
        saved = (32 - int(row["bit_size"])) * quantized
        assert int(row["quantized_size"]) == 32 * total - saved, f"config {row['config']}"


def counted_by_the_study(captioner: Counted, part: str, group: str, kind: str) -> int:
    """Count weights and biases as the study does: of the Q-Former only self-attention modules, with their layer norm."""
    units = [unit for unit in captioner.parts[part].units if (unit.group, unit.kind) == (group, kind)]
    if part != "connector":
        return weights_and_biases(captioner, units)
    blocks = {captioner.parts[part].blocks[unit.block] for unit in units} if kind == "attention" else set()
    return sum(parameters(captioner.model.get_submodule(f"{block}.attention")) for block in blocks)


def weights_and_biases(counted: Counted, units: list) -> int:
    return sum(parameters(counted.model.get_submodule(linear)) for unit in units for linear in unit.linears)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# By how much the study's AWQ model sizes (model_size in awq/*.csv of its repository) grow with a bit of each part.
AWQ_BITS = {
    "blip2_opt_2_7b": {"vision": 984_537_216, "connector": 105_090_048, "language": 2_517_319_680},
    "blip2_itm_vit_g": {"vision": 984_537_216, "connector": 161_759_232},
}
AWQ_SIZE_AT_16_BITS = {"blip2_opt_2_7b": 66_224_478_208, "blip2_itm_vit_g": 19_151_910_976}


@pytest.mark.parametrize("name", AWQ_BITS)
def test_the_study_s_awq_sizes(name: str, counted: Build) -> None:
    """The study counts biases as quantized, and other modules in 32 bits, except parameters that lie in no layer."""
    model = counted(name)
    found = {part: weights_and_biases(model, of.units) for part, of in model.parts.items() if not of.at_an_end}
    assert found == AWQ_BITS[name]
    rest = parameters(model.model) - sum(found.values()) - 32 * 768 - (1 + 257) * 1408  # queries, class, positions
    head = 50272 * 2560 if name == "blip2_opt_2_7b" else 0  # shared with the embedding, and counted twice
    buffer = 2 * 512 if name == "blip2_itm_vit_g" else 0  # position numbers, in 64 bits
    assert 16 * sum(found.values()) + 32 * (rest + head + buffer) == AWQ_SIZE_AT_16_BITS[name]


@pytest.mark.parametrize("bits", [3, 8])
def test_an_assignment_has_the_size_of_what_is_quantized(
    bits: int, counted: Build, loaded: LoadedModel, parts: dict[str, Part]
) -> None:
    quantized = {
        name: round_nearest(loaded.linear(name).weight, Format(bits))
        for part in ("vision", "connector")
        for unit in parts[part].units
        for name in unit.linears
    }
    model = counted("tiny_blip2")
    told = size_of(model, read_assignment([f"vision={bits}", f"connector={bits}"], None, model, "channel"), "channel")
    measured = measure(loaded.model, parts.values(), quantized)
    assert {key: told[key] for key in measured} == measured


def test_a_mapping_and_a_file_give_the_sizes_of_their_units(counted: Build, tmp_path: Path) -> None:
    model = counted("tiny_blip2")
    file = tmp_path / "assignment.yaml"
    file.write_text("parts: {language: {attention: 4, mlp: 3}}\nunits: {language.0.mlp: 8}\n")
    mapping = read_assignment(["language={attention: 4, mlp: 3}"], None, model, "channel")
    units = read_assignment([], str(file), model, "channel")
    first = next(unit for unit in model.parts["language"].units if unit.name == "language.0.mlp")
    weights = sum(rows * columns for rows, columns in first.linears.values())
    sizes = [size_of(model, assigned, "channel")["total"] for assigned in (mapping, units)]
    more = (sizes[1]["bpw_paper"] - sizes[0]["bpw_paper"]) * sizes[0]["parameters"]
    assert more == pytest.approx(weights * 5)
    finer = read_assignment(["language={attention: 4, mlp: 3}", "language.end.mlp=2"], None, model, "channel")
    assert size_of(model, finer, "channel")["bits"]["language"] == "attention 4, front+middle mlp 3, end mlp 2"
