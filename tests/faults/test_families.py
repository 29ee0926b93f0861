"""Families of models: the arguments of their blocks, their padding, and their structure."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from mmq_sweeps.errors import TargetError
from mmq_sweeps.models import experts
from mmq_sweeps.quantization.calibration import BlockRunner, block_statistics, capture
from mmq_sweeps.quantization.targets import Part, find_parts
from tests.models.other_toys import TEXT_TOKENS, Toy, make, part

ALL = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
Families = Callable[[str], Toy]


@pytest.fixture(scope="module")
def family() -> Families:
    return functools.cache(make)


def parts_of(toy: Toy) -> dict[str, Part]:
    return find_parts(toy.loaded.model, {"parts": toy.parts})


def counts(toy: Toy, name: str) -> dict[str, int]:
    """Count the tokens that count for each linear of a part."""
    own = parts_of(toy)[name]
    replay = BlockRunner(toy.loaded, own, capture(toy.loaded, [own], [toy.batch])[name])
    return {
        linear: shared.stats.count
        for path in own.blocks
        for shared in replay.advance([linear for unit in own.units for linear in unit.linears if linear.startswith(f"{path}.")])
        for linear in shared.linears
    }  # fmt: skip


# How blocks are called.


@pytest.mark.parametrize("name", ["llama4", "flan_t5", "florence2", "qwen3_vl", "mllama", "idefics2"])
def test_blocks_are_called_as_the_model_calls_them_whatever_their_arguments_are_named(
    name: str, family: Families
) -> None:
    """Run alone, each block gives its output in the model, and every linear has statistics."""
    toy = family(name)
    parts = parts_of(toy)
    outputs: dict[str, Tensor] = {}
    handles = [
        toy.loaded.model.get_submodule(path).register_forward_hook(
            lambda _block, _inputs, output, path=path: outputs.update(
                {path: output[0] if isinstance(output, tuple) else output}
            )
        )
        for own in parts.values()
        for path in own.blocks
    ]
    passes = capture(toy.loaded, parts.values(), [toy.batch])
    for handle in handles:
        handle.remove()
    for own in parts.values():
        replay = BlockRunner(toy.loaded, own, passes[own.name])
        reached = []
        for index, path in enumerate(own.blocks):
            linears = [linear for unit in own.units if unit.block == index for linear in unit.linears]
            before = replay.hidden[0]
            reached += [linear for shared in replay.statistics(linears) for linear in shared.linears]
            assert replay.hidden[0] is before
            call = passes[own.name][0].calls[index]
            args, kwargs = call.arguments(before, call.args, call.kwargs)
            with torch.no_grad():
                again = toy.loaded.model.get_submodule(path)(*args, **kwargs)
            assert torch.equal(again[0] if isinstance(again, tuple) else again, outputs[path])
            replay.advance()
        assert sorted(reached) == sorted(linear for unit in own.units for linear in unit.linears)


@pytest.mark.parametrize(
    ("name", "own", "joined"),
    [
        # A convolution stands between the stages; two blocks of the same stage follow each other.
        ("florence2", "vision", [False, True, True, False, True]),
        ("florence2", "language", [False, False, True, False]),  # from the encoder to the decoder
        ("flan_t5", "language", [False, False, True, False]),
        ("mllama", "vision", [False, False, False, True, False]),  # to the global transformer
        ("qwen3_vl", "language", [False, True, True]),  # image features are added
        ("llama4", "language", [False, False, False]),
    ],
)
def test_what_the_model_does_between_two_blocks_is_not_left_out(
    name: str, own: str, joined: list[bool], family: Families
) -> None:
    toy = family(name)
    (one,) = capture(toy.loaded, [parts_of(toy)[own]], [toy.batch])[own]
    assert [call.joined is not None for call in one.calls] == joined


# Encoder-decoders.


def test_an_encoder_a_decoder_and_what_it_attends_to_are_each_counted_by_their_own_tokens(family: Families) -> None:
    """The texts of both are equally long: 20 tokens, of which the decoder's first has 7."""
    found = counts(family("florence2"), "language")
    model = "model.language_model"
    assert {count for linear, count in found.items() if ".encoder." in linear} == {TEXT_TOKENS}
    for name in ("self_attn.k_proj", "encoder_attn.q_proj", "encoder_attn.out_proj", "fc1", "fc2"):
        assert found[f"{model}.decoder.layers.1.{name}"] == 27
    for name in ("encoder_attn.k_proj", "encoder_attn.v_proj"):
        assert found[f"{model}.decoder.layers.1.{name}"] == TEXT_TOKENS


def test_a_decoder_without_an_answer_reads_what_the_model_generates(family: Families) -> None:
    toy = family("flan_t5")
    found = counts(toy, "language")
    assert {count for linear, count in found.items() if ".encoder." in linear} == {TEXT_TOKENS}
    generated = toy.loaded.model.generate(**toy.batch, max_new_tokens=32, do_sample=False)
    assert found["language_model.decoder.block.0.layer.0.SelfAttention.q"] == generated.numel()
    assert found["language_model.decoder.block.0.layer.1.EncDecAttention.k"] == TEXT_TOKENS


# Padding of pixels.


def test_patches_that_are_padding_do_not_count(family: Families) -> None:
    """Idefics2 has 64 patches of the first image and 24 of the second, of 128; its resampler reads the same and 4 latents."""
    toy = family("idefics2")
    assert set(counts(toy, "vision").values()) == {64 + 24}
    resampler = counts(toy, "connector")
    assert Counter(resampler.values()) == {8: 10, 64 + 24 + 2 * 4: 4}
    assert {linear.rpartition(".")[2] for linear, count in resampler.items() if count > 8} == {"k_proj", "v_proj"}


def test_tiles_and_patches_that_are_padding_do_not_count(family: Families) -> None:
    """Mllama has six of eight tiles of 17 tokens, and pads each tile to 24."""
    toy = family("mllama")
    assert set(counts(toy, "vision").values()) == {6 * 17}
    language = counts(toy, "language")
    seen = {linear for linear, count in language.items() if count == 6 * 17}
    assert {linear.rpartition(".")[2] for linear in seen} == {"k_proj", "v_proj"}
    assert all(".cross_attn." in linear for linear in seen)
    assert {count for linear, count in language.items() if linear not in seen} == {TEXT_TOKENS}


def test_unequal_images_of_one_batch_give_the_statistics_of_each_alone(family: Families) -> None:
    toy = family("idefics2")
    parts = parts_of(toy)
    second = {key: value[1:] for key, value in toy.batch.items()}
    second["pixel_values"] = second["pixel_values"][..., :28, :42]
    second["pixel_attention_mask"] = second["pixel_attention_mask"][..., :28, :42]
    alone = [{key: value[:1] for key, value in toy.batch.items()}, second]
    for name in ("vision", "connector"):
        linears = [linear for unit in parts[name].units for linear in unit.linears]
        both = []
        for batches in ([toy.batch], alone):
            passes = capture(toy.loaded, [parts[name]], batches)[name]
            found = block_statistics(toy.loaded, parts[name], passes, linears)
            both.append({linear: shared.stats for _, block in found for shared in block for linear in shared.linears})
        for linear, stats in both[0].items():
            assert stats.count == both[1][linear].count
            torch.testing.assert_close(stats.gram, both[1][linear].gram, rtol=1e-4, atol=1e-5)


# Weights that are in no linear.


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llama4"])
def test_experts_of_a_class_that_is_not_known_are_refused_with_the_model_the_part_the_kind_and_what_holds_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stands for a release whose experts do not say how they store weights; Llama 4 has linears beside them."""
    toy = make(name)
    monkeypatch.setattr(experts, "SCALED_INPUTS", ())
    for module in toy.loaded.model.modules():
        vars(module).pop("is_transposed", None)
    language = parts_of(toy)["language"]
    with pytest.raises(TargetError) as raised:
        language.select(ALL)
    told = str(raised.value)
    model, block, holder, blocks, way = {
        "qwen3_vl_moe": ("Qwen3VLMoe", "0.mlp", "[5, 32, 32] of a Qwen3VLMoeTextExperts", "3 of 3 blocks (0 to 2)", ""),
        "llama4": (
            "Llama4", "1.feed_forward", "[2, 32, 96] of a Llama4TextExperts", "1 of 3 blocks (1)",
            "component.language.blocks=[front,end] or ",
        ),
    }[name]  # fmt: skip
    assert told.startswith(f"{model}ForConditionalGeneration: component.language: its mlp has weights outside linears")
    assert f"in {blocks}" in told
    assert f"layers.{block}.experts.gate_up_proj is a parameter {holder}" in told
    assert f"choose component.language.layers=[attention] or {way}no component.language" in told
    assert len(language.select({**ALL, "layers": ["attention"]})) == 3


def test_a_part_whose_only_weights_are_of_an_unknown_class_of_experts_has_no_linear() -> None:
    held = nn.Module()
    held.gate_up_proj, held.down_proj = nn.Parameter(torch.zeros(4, 32, 32)), nn.Parameter(torch.zeros(4, 32, 16))
    block = nn.Module()
    block.mlp = held
    with pytest.raises(
        TargetError, match=r"no linear lies in .*mlp.gate_up_proj is a parameter \[4, 32, 32\] of a Module"
    ):
        found_in(tower(block))


class Block(nn.Module):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = nn.Linear(32, 32), mlp


def tower(*blocks: nn.Module) -> nn.Module:
    model = nn.Module()
    model.tower = nn.ModuleList(blocks)
    return model


def found_in(model: nn.Module, attention: str = "attention", mlp: str = "mlp") -> Part:
    outer = nn.Module()
    outer.model = model
    return find_parts(outer, {"parts": {"language": part("model", "tower", [attention], [mlp])}})["language"]


@pytest.mark.parametrize(
    ("mlp", "held"),
    [
        (Conv1D(64, 32), r"mlp.weight is a parameter \[32, 64\] of a Conv1D"),
        (nn.Sequential(Conv1D(64, 32), nn.Linear(64, 32)), r"mlp.0.weight is a parameter \[32, 64\] of a Conv1D"),
        (nn.Conv2d(32, 64, 1), r"mlp.weight is a parameter \[64, 32, 1, 1\] of a Conv2d"),
        (nn.MultiheadAttention(32, 4), r"mlp.in_proj_weight is a parameter \[96, 32\] of a MultiheadAttention"),
        (nn.GRU(32, 32), r"mlp.weight_ih_l0 is a parameter \[96, 32\] of a GRU"),
        (nn.LayerNorm(32), r"its mlp has no linear in 1 of 3 blocks \(2\)\. "),
    ],
)
def test_other_modules_that_hold_a_kinds_weights_are_refused(mlp: nn.Module, held: str) -> None:
    """The other module is in the last of three blocks only."""
    language = found_in(tower(Block(nn.Linear(32, 64)), Block(nn.Linear(32, 64)), Block(mlp)))
    with pytest.raises(TargetError, match=held):
        language.select(ALL)
    assert len(language.select({**ALL, "blocks": ["front", "middle"]})) == 4


def test_a_linear_that_computes_its_weight_is_refused() -> None:
    """A quantized weight would be overwritten when the linear is called."""
    linear = nn.Linear(16, 64)
    prune.l1_unstructured(linear, "weight", amount=0.5)
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.ModuleDict({"attention": nn.Linear(16, 16), "mlp": linear})])
    where = {"module": ["blocks"], "blocks": [""], "attention": ["attention"], "mlp": ["mlp"], "masked": False}
    with pytest.raises(TargetError, match=r"0\.mlp computes its weight in every call .* save the checkpoint"):
        find_parts(model, {"parts": {"language": where}})


def test_a_part_of_which_no_weight_is_in_a_linear_is_told_with_what_holds_them() -> None:
    block = Block(Conv1D(64, 32))
    block.attention = Conv1D(32, 32)
    with pytest.raises(
        TargetError,
        match=r"no linear lies in .*model.tower; of its attention, model.tower.0.attention.weight is .* Conv1D",
    ):
        found_in(tower(block))


def test_large_weights_of_no_kind_are_refused_as_a_linear_of_none_is() -> None:
    block = Block(nn.Linear(32, 64))
    block.experts = Conv1D(64, 32)
    with pytest.raises(TargetError, match=r"model.tower.0.experts.weight belongs to no layer kind; it is .* Conv1D"):
        found_in(tower(block))


def test_small_weights_beside_linears_are_overlooked() -> None:
    """Small weights are norms, biases, routers, tables of positions and kernels of depthwise convolutions."""
    mlp = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Conv2d(64, 64, 3, groups=64), nn.Embedding(400, 8))
    mlp.register_parameter("router", nn.Parameter(torch.zeros(4, 32)))
    assert len(found_in(tower(Block(mlp))).select({**ALL, "blocks": ["end"]})) == 2
