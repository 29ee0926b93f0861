"""Families of models: what their blocks are called with, what they pad, what they are made of and what they need."""

from __future__ import annotations

import configparser
import functools
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers.pytorch_utils import Conv1D

from mmq_sweeps.config.model_catalog import model_names, read_model
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import TargetError
from mmq_sweeps.execution import environment
from mmq_sweeps.execution.executor import execute
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.identity.checkpoint import checkpoint_path
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models import experts, processors
from mmq_sweeps.models.loading import load_model
from mmq_sweeps.quantization.calibration import BlockRunner, block_statistics, capture
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.models.other_toys import CHECKPOINTS, IDEFICS2_PARTS, T5_PART, TEXT_TOKENS, Toy, make, part
from tests.models.toys import write_checkpoint, write_other_checkpoint

ALL = {"blocks": ["front", "middle", "end"], "layers": ["attention", "mlp"]}
Families = Callable[[str], Toy]


@pytest.fixture(scope="module")
def family() -> Families:
    return functools.cache(make)


def parts_of(toy: Toy) -> dict[str, Part]:
    return find_parts(toy.loaded.model, {"parts": toy.parts})


def counts(toy: Toy, name: str) -> dict[str, int]:
    """How many tokens count for each linear of a part."""
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
    """Run alone, each gives what it gave in the model, and every linear has statistics."""
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
        # A convolution stands between the stages; two blocks of one stage follow each other.
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
    """Though the texts of both are as long: 20 tokens, of which the decoder's first has 7."""
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
    """Idefics2: 64 patches of the first image and 24 of the second, of 128; its resampler reads the same and 4 latents."""
    toy = family("idefics2")
    assert set(counts(toy, "vision").values()) == {64 + 24}
    resampler = counts(toy, "connector")
    assert Counter(resampler.values()) == {8: 10, 64 + 24 + 2 * 4: 4}
    assert {linear.rpartition(".")[2] for linear, count in resampler.items() if count > 8} == {"k_proj", "v_proj"}


def test_tiles_and_patches_that_are_padding_do_not_count(family: Families) -> None:
    """Mllama: six of eight tiles of 17 tokens, each of which it pads to 24."""
    toy = family("mllama")
    assert set(counts(toy, "vision").values()) == {6 * 17}
    language = counts(toy, "language")
    seen = {linear for linear, count in language.items() if count == 6 * 17}
    assert {linear.rpartition(".")[2] for linear in seen} == {"k_proj", "v_proj"}
    assert all(".cross_attn." in linear for linear in seen)
    assert {count for linear, count in language.items() if linear not in seen} == {TEXT_TOKENS}


# Weights that are in no linear.


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llama4"])
def test_experts_of_a_class_that_is_not_known_are_refused_with_the_model_the_part_the_kind_and_what_holds_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a release whose experts do not say how they store weights; Llama 4 has linears beside them."""
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
    """Here in the last of three blocks only."""
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
    """Norms, biases, routers, tables of positions and kernels of depthwise convolutions."""
    mlp = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Conv2d(64, 64, 3, groups=64), nn.Embedding(400, 8))
    mlp.register_parameter("router", nn.Parameter(torch.zeros(4, 32)))
    assert len(found_in(tower(Block(mlp))).select({**ALL, "blocks": ["end"]})) == 2


# Whole cells of checkpoints in folders, processors included.


def sweep_of(composed: Any, name: str, checkpoint: Path, store: Path, *more: str) -> Sweep:
    """Full precision and 4 bits of all parts by GPTQ."""
    retrieves = name == "blip2_itm_vit_g"
    overrides = [
        f"model={name}", f"model.checkpoint={checkpoint}", f"store.dir={store}", "model.dtype=float32", "method=gptq",
        "bits=4", "component=all", "task.limit=2", "calibration.samples=4", "calibration.batch_size=2", "tracker=none",
        *(["task=scenes_retrieval", "task.shortlist=2"] if retrieves else ["task=scenes_vqa"]),
    ]  # fmt: skip
    return plan([composed(*overrides, *more)])


def run(sweep: Sweep, store: Path) -> list[Record]:
    records: list[Record] = []
    with Progress(len(sweep.cells)) as progress:
        execute(sweep.cells, sweep, Claims(Store.open(store)), progress, records.append)
    assert [record.error for record in records] == [None] * len(records)
    return records


def written(name: str, folder: Path) -> Path:
    write = write_other_checkpoint if name in CHECKPOINTS else write_checkpoint
    write(name, folder / "checkpoint")
    return folder / "checkpoint"


needs_num2words = pytest.mark.skipif(
    find_spec("num2words") is None, reason="needs num2words: pip install -c constraints.txt -e '.[test]'"
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_num2words if name.startswith("smolvlm") else ())
        for name in model_names()
        if not name.startswith("tiny_")
    ],
)
def test_every_model_yaml_is_built_and_run_from_a_checkpoint_of_its_family(
    name: str, composed: Any, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    full, quantized = run(sweep_of(composed, name, written(name, tmp_path), store), store)
    assert full.size["total"]["bpw_paper"] == 16
    for own in read_model(name)["parts"]:
        assert quantized.size["parts"][own]["quantized_weights"] > 0


def test_the_record_and_a_warning_count_the_experts_that_no_calibration_token_reached(
    composed: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the logits a, a, -a, -a, 0 and 0 the last two are never among the highest two."""
    checkpoint, store = written("qwen3_vl_30b_a3b", tmp_path), tmp_path / "store"
    weights = load_file(checkpoint / "model.safetensors")
    routers = [name for name in weights if name.endswith("mlp.gate.weight")]
    assert len(routers) == 3
    for name in routers:
        row = weights[name][0]
        weights[name] = torch.stack([row, row, -row, -row, 0 * row, 0 * row])
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    full, quantized = run(sweep_of(composed, "qwen3_vl_30b_a3b", checkpoint, store), store)
    assert "experts_without_tokens" not in full.notes
    assert quantized.notes["experts_without_tokens"] == {f"language.{block}.mlp": 2 for block in range(3)}
    assert "2 of 6 experts of language.0.mlp" in caplog.text
    assert "met no calibration token and are rounded to nearest" in caplog.text


def custom(parts: Mapping[str, Mapping[str, Any]], class_name: str, prompt: str) -> list[str]:
    """A model without a yaml; all of its parts are quantized."""
    return [
        f"model.class_name={class_name}",
        f"model.prompts.question='{prompt}'",
        "model.generation.question={num_beams: 1, max_new_tokens: 4}",
        *(f"~model.parts.{name}" for name in ("vision", "connector", "language") if name not in parts),
        *(f"model.parts.{name}={json.dumps(where)}".replace('"', "") for name, where in parts.items()),
        *(f"~component.{name}" for name in ("vision", "connector", "language") if name not in parts),
    ]


FLAN_T5 = custom({"language": T5_PART}, "Blip2ForConditionalGeneration", "Question: {question} Answer:")
IDEFICS2 = custom(IDEFICS2_PARTS, "Idefics2ForConditionalGeneration", "<image>{question}")


def test_an_encoder_decoder_is_run_and_calibrated_with_the_answers_for_its_decoder(
    composed: Any, tmp_path: Path
) -> None:
    """The encoder reads the question, the decoder its start token and the answer but for its last token."""
    store = tmp_path / "store"
    sweep = sweep_of(composed, "custom", written("flan_t5", tmp_path), store, *FLAN_T5)
    _, quantized = run(sweep, store)
    encoder, decoder = 4 * 32 * 32 + 3 * 32 * 48, 8 * 32 * 32 + 3 * 32 * 48
    assert quantized.size["parts"]["language"]["quantized_weights"] == 2 * (encoder + decoder)

    session = Sessions(sweep, Store.open(store)).open(sweep.cells[-1])
    samples = list(session.task.examples.drawn(sweep.cells[-1].calibration))
    batches = list(session.task.calibration_batches(session.loaded, {**sweep.cells[-1].calibration, "batch_size": 2}))
    told = [
        row[mask.bool()].tolist()
        for batch in batches
        for row, mask in zip(batch["decoder_input_ids"], batch["decoder_attention_mask"], strict=True)
    ]
    items = [session.task.items_of(sample) for sample in samples]
    answers = [own[place % len(own)].references[0] for place, own in enumerate(items)]
    tokens = [session.loaded.processor.tokenizer(answer)["input_ids"] for answer in answers]
    assert told == [[0, *answer[:-1]] for answer in tokens]


def test_a_decoder_is_calibrated_behind_its_quantized_encoder_if_asked(composed: Any, tmp_path: Path) -> None:
    """What the model does between the two is done again, with the encoder quantized."""
    store = tmp_path / "store"
    more = ("method.sequential=true", "bits=2", "calibration.batch_size=4")
    sweep = sweep_of(composed, "custom", written("flan_t5", tmp_path), store, *FLAN_T5, *more)
    session = Sessions(sweep, Store.open(store)).open(sweep.cells[-1])
    requests = session.requests(sweep.cells[-1])
    assert not session.compute(requests, Progress(1))
    found = {name: weight.dequantize() for name, weight in load(requests, session.store)[0].weights.items()}
    name = "language_model.decoder.block.0.layer.1.EncDecAttention.k"
    encoder = {name: weight for name, weight in found.items() if ".encoder." in name}
    (batch,) = session.task.calibration_batches(session.loaded, {**sweep.cells[-1].calibration, "batch_size": 4})
    solved = []
    for before in ({}, encoder):
        seen: list[Tensor] = []
        linear = session.loaded.linear(name)
        handle = linear.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with session.loaded.weights_replaced(before), torch.no_grad():
            session.loaded.model(**batch, use_cache=False)
        handle.remove()
        x = seen[0][batch["attention_mask"].bool()].double()
        stats = LayerStats((x.T @ x / len(x)).float(), x.abs().mean(dim=0).float(), len(x))
        solved.append(GPTQ().quantize([linear.weight], stats, Format(2)).weights[0].dequantize())
    assert (solved[1] - found[name]).abs().lt(1e-6).float().mean() > 0.99
    assert (solved[0] - found[name]).abs().lt(1e-6).float().mean() < 0.99


# The first three pad images of unequal size, the fourth packs them, the last makes them equal.
@pytest.mark.parametrize("name", ["idefics2", "idefics3_8b", "internvl3_2b", "qwen2_5_vl_3b", "llava_1_5_7b"])
def test_the_calibration_batch_size_changes_no_code_though_images_have_unequal_sizes(
    name: str, composed: Any, tmp_path: Path
) -> None:
    checkpoint = written(name, tmp_path)
    own = ("custom", *IDEFICS2) if name == "idefics2" else (name,)
    found = []
    for size in (1, 4):
        store = tmp_path / f"by_{size}"
        more = (*own[1:], "task.data._target_=tests.models.unequal.UnequalScenes", f"calibration.batch_size={size}")
        sweep = sweep_of(composed, own[0], checkpoint, store, *more)
        session = Sessions(sweep, Store.open(store)).open(sweep.cells[-1])
        assert not session.compute(session.requests(sweep.cells[-1]), Progress(1))
        files = sorted((store / "artifacts" / "quantized").glob("*.safetensors"))
        found.append({f"{path.stem} {key}": tensor for path in files for key, tensor in load_file(path).items()})
    codes = [key for key in found[0] if key.endswith(":codes")]
    assert codes
    assert found[0].keys() == found[1].keys()
    assert sum(int((found[0][key] != found[1][key]).sum()) for key in codes) == 0


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


# What processors need.


def test_a_package_that_a_processor_needs_is_named_with_its_command_before_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.models.smolvlm.processing_smolvlm.num2words", None)
    monkeypatch.setattr(processors, "_installed", lambda package: False)
    checkpoint = written("smolvlm2_2_2b", tmp_path)
    (checkpoint / "model.safetensors").write_bytes(b"not read")
    config = {**read_model("smolvlm2_2_2b"), "checkpoint": str(checkpoint), "dtype": "float32"}
    with pytest.raises(ValueError, match=r"its processor needs num2words.* pip install 'mmq-sweeps\[smolvlm\]'"):
        load_model(config)


OWN_CODE = {"auto_map": {"AutoProcessor": "own.Own"}, "processor_class": "Own"}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", None, "cannot be read: ValueError: Couldn't instantiate the backend tokenizer"),
        ("tokenizer.json", "{}", "cannot be read: KeyError: 'added_tokens'; look at its tokenizer.json"),
        ("processor_config.json", OWN_CODE, "is code of the checkpoint's own"),
    ],
)
def test_a_processor_that_cannot_be_read_is_an_error_of_one_line_without_a_question(
    file: str, content: str | dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    config = read_model("tiny_llava")
    folder = shutil.copytree(checkpoint_path(config["checkpoint"]), tmp_path / "copy")
    path = folder / file
    if content is None:
        path.unlink()
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    with pytest.raises(ValueError, match=f"^model.checkpoint={folder}: its processor ") as error:
        load_model({**config, "checkpoint": str(folder), "revision": None})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError("Gemma3nModel requires the timm library. You can install it: `pip install timm`"), r"needs timm.*gemma3n"),
        (ValueError("None could be imported. Missing optional dependencies: torchvision."), r"needs torchvision.*llama4"),
        (ModuleNotFoundError("No module named 'absent.inner'", name="absent.inner"), "needs absent, .* pip install absent"),
        (RuntimeError("shapes do not fit"), None),
        (ValueError("a torch device"), None),
    ],
)  # fmt: skip
def test_absent_packages_are_read_from_the_libraries_errors(
    error: Exception, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processors, "_installed", lambda package: False)
    found = processors.missing_package(error)
    assert found is None if told is None else re.match(told, str(found))


def test_a_package_that_is_there_and_does_not_work_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processors, "_installed", lambda package: True)
    told = processors.missing_package(RuntimeError("operator torchvision::nms does not exist"))
    assert told is not None
    assert re.match(r"needs torchvision, of which .* does not work beside torch \d", told)


def test_every_package_that_is_named_is_in_an_extra_and_in_the_one_for_all_families() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    extras = config["options.extras_require"]
    for package, extra in processors.EXTRAS.items():
        assert re.search(rf"^{package}\b", extras[extra], flags=re.MULTILINE)
        assert re.search(rf"^{package}\b", extras["families"], flags=re.MULTILINE)


def test_the_record_has_the_versions_of_what_changes_pixels_and_tokens() -> None:
    assert {"torchvision", "pillow", "tokenizers", "sentencepiece", "transformers"} <= environment.versions().keys()
