"""A model that cannot have produced a cell's figures is refused before its first cell, in one sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.cell_checks import model_problems
from mmq_sweeps.execution.executor import execute, quiet_libraries
from mmq_sweeps.execution.session import Session
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.models.model_check import Asked, Asking, problems
from mmq_sweeps.quantization.targets import find_parts
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.faults.checkpoints import TINY, Composed, Weights, copied, edit, found, rewrite, settings


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quiet_libraries():
        yield


def processor(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit(folder / "processor_config.json", change)


def image_processor(**values: Any) -> Callable[[Path], None]:
    return lambda folder: processor(folder, lambda content: content["image_processor"].update(values))


# Models that see their images


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=tiny_blip2", "task=scenes_caption"],
        ["model=tiny_blip2", "task=scenes_vqa"],
        ["model=tiny_blip2", "task=scenes_vqa", "model.dtype=bfloat16"],
        ["model=tiny_blip2", "task=scenes_caption", "task.limit=1"],
        ["model=tiny_llava", "task=scenes_caption"],
        ["model=tiny_llava", "task=scenes_vqa", "task.batch_size=1"],
        ["model=tiny_llava", "task=scenes_vqa", "model.dtype=float16"],
        ["model=tiny_blip2_itm", "component=vision_connector", "task=scenes_retrieval"],
        ["model=tiny_blip2_itm", "component=vision_connector", "task=scenes_retrieval", "model.dtype=bfloat16"],
    ],
    ids=" ".join,
)
def test_a_model_that_sees_its_images_passes(composed: Composed, tmp_path: Path, overrides: list[str]) -> None:
    cells = plan([composed(*TINY, "method=gptq", *overrides)])
    cell = next(cell for cell in cells.cells if cell.parts)
    assert model_problems(bench_of(cells.configs[cell.id], tmp_path), [cell]) == []


# Models that do not


def drop_query_tokens(folder: Path) -> None:
    processor(folder, lambda content: content.pop("num_query_tokens"))


def query_tokens(count: int) -> Callable[[Path], None]:
    return lambda folder: processor(folder, lambda content: content.update(num_query_tokens=count))


def image_token(id: int) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda content: content.update(image_token_index=id))


@pytest.mark.parametrize(
    ("name", "spoil", "overrides", "message"),
    [
        ("tiny_blip2", drop_query_tokens, [], "holds no image placeholder"),
        ("tiny_blip2", drop_query_tokens, ["task=scenes_vqa"], "holds no image placeholder"),
        ("tiny_blip2", query_tokens(5), [], "holds 5 image placeholders, and the model has 12 image features"),
        ("tiny_blip2", query_tokens(13), [], "holds 13 image placeholders, and the model has 12 image features"),
        ("tiny_blip2", image_token(80), [], "holds no image placeholder"),
        ("tiny_blip2", lambda _: None, ["model.prompts.caption='<image>'"], "holds 13 image placeholders"),
        (
            "tiny_llava",
            lambda _: None,
            ["model.prompts.caption='USER: Describe. ASSISTANT:'"],
            "total 0 <image> tokens",
        ),
        ("tiny_llava", lambda _: None, ["model.prompts.caption='<image> <image>'"], "total 2 <image> tokens"),
        ("tiny_llava", image_token(79), [], "holds no image placeholder"),
        (
            "tiny_llava",
            lambda folder: processor(folder, lambda content: content.update(patch_size=24)),
            [],
            "Image features and image tokens do not match, tokens: 4",
        ),
    ],
    # A function by its name: its address differs between the processes of pytest-xdist.
    ids=lambda value: getattr(value, "__qualname__", str(value)),
)
def test_image_placeholders_are_as_many_as_the_model_fills_in(
    composed: Composed, tmp_path: Path, name: str, spoil: Callable[[Path], Any], overrides: list[str], message: str
) -> None:
    folder = copied(name, tmp_path)
    spoil(folder)
    config = settings(composed, folder, *overrides)
    (problem,) = model_problems(bench_of(config, tmp_path), plan([OmegaConf.create(config)]).cells)
    assert problem.startswith(f"model.checkpoint={folder}: ")
    assert message in problem


def test_features_do_not_go_to_the_next_row_of_a_batch(loaded: LoadedModel, composed: Composed) -> None:
    """The first row has a place too many and the second a place too few, so that the sums are right."""
    asking, first, second = generation(loaded, composed)

    def shifted(asked: Any) -> dict[str, Any]:
        inputs = dict(asking.prepare(asked))
        if len(asked) == 2:
            ids = inputs["input_ids"]
            token = loaded.model.config.image_token_id
            places = (ids == token).nonzero()
            ids[tuple(places[0])] = 3
            ids[1, int((ids[1] != token).nonzero()[0])] = token
        return inputs

    assert list(problems(asking, first, second, "", [])) == []
    (problem,) = problems(replace(asking, prepare=shifted), first, second, "", [])
    assert "hold 11 and 13 image placeholders, alone 12 and 12, so features go to another row" in problem


@pytest.mark.parametrize("task", ["scenes_caption", "scenes_retrieval"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (image_processor(rescale_factor=0.0), "alike; mend rescale_factor"),
        (image_processor(image_std=[1e9] * 3), "so the model sees next to nothing"),
        (image_processor(rescale_factor=1 / 255**2), "so the model sees next to nothing"),
        (image_processor(do_rescale=False), "so the model sees extremes only"),
        (image_processor(image_std=[-0.25] * 3), "divides pixels by image_std=[-0.25, -0.25, -0.25]"),
    ],
    ids=["black", "divided away", "rescaled twice", "not rescaled", "inverted"],
)
def test_an_image_processor_that_loses_the_picture(
    composed: Composed, tmp_path: Path, spoil: Callable[[Path], None], message: str, task: str
) -> None:
    name = "tiny_blip2_itm" if task == "scenes_retrieval" else "tiny_blip2"
    folder = copied(name, tmp_path)
    spoil(folder)
    more = ["component=vision_connector"] if task == "scenes_retrieval" else []
    (problem,) = found(composed, folder, f"task={task}", *more)
    assert message in problem
    assert "BlipImageProcessor" in problem


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("tiny_blip2", "language_projection."),
        ("tiny_llava", "multi_modal_projector.linear_2."),
        ("tiny_blip2_itm", "vision_model.post_layernorm."),
        ("tiny_blip2_itm", "vision_projection."),
        ("tiny_blip2_itm", "itm_head."),
    ],
)
def test_weights_that_let_nothing_of_the_image_through(
    composed: Composed, tmp_path: Path, name: str, weight: str
) -> None:
    folder = copied(name, tmp_path)
    rewrite(
        folder,
        lambda weights: {key: value * 0 if weight in key else value for key, value in weights.items()},
    )
    more = ["component=vision_connector", "task=scenes_retrieval"] if name == "tiny_blip2_itm" else []
    (problem,) = found(composed, folder, *more)
    assert "so it does not see its images" in problem


def test_a_picture_that_fills_next_to_nothing_of_what_the_model_sees(composed: Composed, tmp_path: Path) -> None:
    """Shrunk and then cut out at the model's size, the picture is a spot on black."""
    folder = copied("tiny_llava", tmp_path)
    image_processor(size={"shortest_edge": 4})(folder)
    (problem,) = found(composed, folder)
    assert "only 0.69% of the pixel values that its CLIPImageProcessorPil prepares depend on" in problem
    assert "mend size and crop_size" in problem


def test_an_item_that_the_model_cannot_take_is_named(loaded: LoadedModel, composed: Composed) -> None:
    asking, first, second = generation(loaded, composed)
    long = replace(second, text="a red " * 1000)
    with pytest.raises(
        ValueError, match=rf"item '{second.id}' \('a red .*\.\.\.'\) cannot be asked: index out of range"
    ):
        list(problems(asking, first, long, "", []))


def test_nothing_of_a_blind_model_is_recorded(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_blip2", tmp_path)
    drop_query_tokens(folder)
    sweep = plan([OmegaConf.create(settings(composed, folder, "method=rtn", f"store.dir={tmp_path / 'store'}"))])
    store = Store.open(tmp_path / "store")
    with (
        Progress(len(sweep.cells)) as progress,
        pytest.raises(ConfigError, match="holds no image placeholder") as error,
    ):
        execute(sweep.cells, sweep, Claims(store), progress, lambda _: None)
    assert len(error.value.problems) == 1
    assert [store.record(cell.id) for cell in sweep.cells] == [None] * len(sweep.cells)


def test_a_model_that_is_not_checked_on_request_has_a_warning_at_every_figure(
    composed: Composed, tmp_path: Path
) -> None:
    folder = copied("tiny_blip2", tmp_path)
    drop_query_tokens(folder)
    overrides = ("method=none", "model.check=false", f"store.dir={tmp_path / 'store'}")
    sweep = plan([OmegaConf.create(settings(composed, folder, *overrides))])
    records: list[Record] = []
    with Progress(1) as progress:
        execute(sweep.cells, sweep, Claims(Store.open(tmp_path / "store")), progress, records.append)
    (record,) = records
    assert record.done, record.error
    assert all(
        "the model was not checked first (model.check=false)" in metric["warnings"]
        for metric in record.metrics.values()
    )


def test_nobody_helps_with_the_cells_of_a_blind_model(composed: Composed, tmp_path: Path) -> None:
    """A worker takes over cells of another model than its own, whose model sees, and has to check that model as well."""
    blind = copied("tiny_blip2", tmp_path)
    drop_query_tokens(blind)
    where = f"store.dir={tmp_path / 'store'}"
    sweep = plan([composed(*TINY, where), OmegaConf.create(settings(composed, blind, where))])
    store, said, ran = Store.open(tmp_path / "store"), [], []
    with Progress(2) as progress, pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "say", said.append)
        execute(
            sweep.cells[:1], sweep, Claims(store), progress, lambda record: ran.append(record.id), help=sweep.cells[1:]
        )
    assert ran == [sweep.cells[0].id]
    assert store.record(sweep.cells[1].id) is None
    (left,) = [line for line in said if "is left alone: " in line]
    assert "holds no image placeholder" in left


def test_images_of_another_size_than_the_model_are_refused(composed: Composed, tmp_path: Path) -> None:
    """BLIP-2 would use the first of its positions without an error."""
    folder = copied("tiny_blip2", tmp_path)
    image_processor(size={"height": 24, "width": 24})(folder)
    (problem,) = found(composed, folder)
    assert "prepares images of 24 x 24 pixels for a model of 48 x 48; mend size in the checkpoint's" in problem


def test_a_tokenizer_in_place_of_a_processor(loaded: LoadedModel, composed: Composed) -> None:
    """AutoProcessor returns a tokenizer if a checkpoint names no processor."""
    asking, first, second = generation(loaded, composed)
    alone = replace(loaded, processor=loaded.processor.tokenizer)
    (problem,) = problems(replace(asking, loaded=alone), first, second, "", [])
    assert "without tokenizer and image_processor; put the model's processor_config.json" in problem


# Batches


def test_padding_does_not_change_answers(composed: Composed, tmp_path: Path) -> None:
    """Without a mask, padding is read as text."""
    folder = copied("tiny_blip2", tmp_path)
    edit(folder / "tokenizer_config.json", lambda content: content.update(model_input_names=["input_ids"]))
    (problem,) = found(composed, folder, "task=scenes_vqa")
    assert "is answered otherwise than alone" in problem
    assert "set task.batch_size=1" in problem
    assert found(composed, folder, "task=scenes_vqa", "task.batch_size=1") == []


def test_padding_on_the_wrong_side_is_found(loaded: LoadedModel, composed: Composed) -> None:
    asking, first, second = generation(loaded, composed)

    def on_the_right(asked: Any) -> Mapping[str, Any]:
        return loaded.processor(
            images=[[one.image] for one in asked],
            text=[one.text for one in asked],
            return_tensors="pt",
            padding=True,
            padding_side="right",
        )

    (problem,) = problems(replace(asking, prepare=on_the_right), first, second, "", [])
    assert "is answered otherwise than alone" in problem


# Texts


def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_blip2", tmp_path)
    edit(folder / "tokenizer.json", lambda content: content["model"]["vocab"].update(turquoise=82, teal=84))
    (problem,) = found(composed, folder, "task=scenes_vqa")
    assert "has 2 tokens beyond the 82 rows of the model's embedding ('turquoise', 'teal')" in problem


@pytest.mark.parametrize("token", ["<image>", "</s>", "<pad>"])
@pytest.mark.parametrize("name", ["tiny_blip2", "tiny_llava"])
def test_text_of_the_data_that_spells_a_special_token_is_asked_as_words(
    composed: Composed, tmp_path: Path, name: str, token: str
) -> None:
    config = settings(composed, copied(name, tmp_path), "task=scenes_vqa")
    task = build("task", config["task"])
    item = task._asked[7]
    task._asked[7] = replace(item, question=f"total 2 {token} {item.question}")
    assert list(task.check_model(load_model(config["model"]))) == []


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        (
            "tiny_blip2",
            "Bitte beschreibe das Bild",
            "of the 4 tokens of the prompt 'Bitte beschreibe das Bild' 4 are unknown to the model",
        ),
        (
            "tiny_llava",
            "USER: <image> Write down everything. ASSISTANT:",
            "ASSISTANT:' 3 are unknown to the model; choose another prompt (model.prompts)",
        ),
    ],
)
def test_a_prompt_of_words_that_the_tokenizer_does_not_know(
    composed: Composed, tmp_path: Path, name: str, prompt: str, message: str
) -> None:
    (problem,) = found(composed, copied(name, tmp_path), f'model.prompts.caption="{prompt}"')
    assert message in problem


def test_a_token_for_unknown_words_that_is_also_the_first_of_a_text(composed: Composed, tmp_path: Path) -> None:
    """OPT's tokenizer, which knows every byte, is such a tokenizer."""
    folder = copied("tiny_blip2", tmp_path)
    edit(folder / "tokenizer_config.json", lambda content: content.update(unk_token="<s>"))
    assert found(composed, folder, "task=scenes_vqa") == []


def test_a_prompt_that_is_cut(loaded: LoadedModel, composed: Composed) -> None:
    asking, first, second = generation(loaded, composed)

    def cut(asked: Any) -> dict[str, Any]:
        inputs = asking.prepare(asked)
        return {key: value[:, :-3] if value.dim() == 2 else value for key, value in inputs.items()}

    (problem,) = problems(replace(asking, prepare=cut), first, second, "", [])
    assert "are left to the model; choose another prompt (model.prompts)" in problem


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_model_that_rules_tokens_out_answers_and_one_that_is_broken_is_named(
    loaded: LoadedModel, composed: Composed, wrong: float
) -> None:
    """The first module whose output is not finite may be the model itself, whose path is empty."""
    asking, first, second = generation(loaded, composed)

    class Scores(nn.Module):
        def __init__(self, value: float, tokens: Any) -> None:
            super().__init__()
            self.value, self.tokens, self.inner = value, tokens, loaded.model
            self.config, self.get_input_embeddings = loaded.model.config, loaded.model.get_input_embeddings

        def forward(self, inputs: Mapping[str, Any]) -> Tensor:
            scores = asking.answer(inputs)
            scores[:, self.tokens] = self.value
            return scores

    def check(value: float, tokens: Any) -> list[str]:
        model = Scores(value, tokens)
        return list(problems(replace(asking, loaded=replace(loaded, model=model), answer=model), first, second, "", []))

    assert check(float("-inf"), [3]) == []
    (problem,) = check(wrong, slice(None))
    assert "the output of the model is not finite" in problem


def test_texts_that_are_cut_to_nothing(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_blip2_itm", tmp_path)
    more = ["component=vision_connector", "task=scenes_retrieval"]
    (problem,) = found(composed, folder, *more, "task.text_length=1")
    assert "become the same tokens" in problem


# Numbers


def test_weights_that_are_not_numbers_are_named(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_blip2", tmp_path)
    spoilt = "language_model.model.decoder.layers.2.fc1.weight"
    rewrite(folder, lambda weights: {**weights, spoilt: weights[spoilt] * torch.nan})
    (problem,) = found(composed, folder)
    assert f"1 weights have values that are not finite in float32 ({spoilt}); get the checkpoint again" in problem


def test_weights_on_disk_are_looked_at_as_well(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_blip2", tmp_path)
    assert found(composed, folder, "model.device_map=disk") == []
    spoilt = "vision_model.encoder.layers.2.mlp.fc1.weight"
    rewrite(folder, lambda weights: {**weights, spoilt: weights[spoilt] / 0})
    (problem,) = found(composed, folder, "model.device_map=disk")
    assert f"1 weights have values that are not finite in float32 ({spoilt})" in problem


def test_weights_too_large_for_half_precision_are_named(composed: Composed, tmp_path: Path) -> None:
    folder = copied("tiny_llava", tmp_path)
    rewrite(
        folder,
        lambda weights: {
            key: value * 1e6 if "layers.1.mlp.up_proj" in key else value for key, value in weights.items()
        },
    )
    (problem,) = found(composed, folder, "model.dtype=float16")
    assert (
        "not finite in float16 (model.language_model.layers.1.mlp.up_proj.weight); choose model.dtype=float32"
        in problem
    )


@pytest.mark.parametrize("name", ["tiny_blip2", "tiny_blip2_itm"])
def test_activations_that_overflow_name_the_module_and_the_dtype(composed: Composed, tmp_path: Path, name: str) -> None:
    """A hidden layer becomes infinite in half precision; in single precision the outputs are unchanged."""
    folder = copied(name, tmp_path)

    def rescaled(weights: Weights) -> Weights:
        factors = {"vision_model.encoder.layers.3.layer_norm2.": 3e4}
        return {
            key: value * next((factor for part, factor in factors.items() if part in key), 1.0)
            for key, value in weights.items()
        }

    rewrite(folder, rescaled)
    more = ["component=vision_connector", "task=scenes_retrieval"] if name == "tiny_blip2_itm" else []
    (problem,) = found(composed, folder, *more, "model.dtype=float16")
    assert "model.dtype=float16: at full precision the output of vision_model.encoder.layers.3." in problem
    assert "choose model.dtype=float32 or bfloat16" in problem


# Linears that calibration reaches


def bench_of(config: dict[str, Any], folder: Path, change: Callable[[nn.Module], None] = lambda _: None) -> Session:
    loaded = load_model(config["model"])
    change(loaded.model)
    parts = find_parts(loaded.model, config["model"])
    task = build("task", config["task"])
    return Session(loaded, parts, task, 2, Store.open(folder / "store"))


def idle_linear(model: nn.Module) -> None:
    for block in model.model.language_model.layers:
        block.mlp.idle = nn.Linear(64, 64)


def idle_kind(model: nn.Module) -> None:
    for block in model.model.language_model.layers:
        block.mlp.forward = torch.zeros_like


@pytest.mark.parametrize(
    ("change", "method", "message"),
    [
        (idle_linear, "gptq", "component.language: calibration never runs model.language_model.layers.*.mlp.idle ("),
        (idle_linear, "rtn", None),
        (idle_kind, "gptq", "component.language: none of its 12 linears of the kind mlp ("),
        (idle_kind, "rtn", "component.language: none of its 12 linears of the kind mlp ("),
    ],
)
def test_every_selected_kind_has_linears_that_are_run(
    composed: Composed, tmp_path: Path, change: Callable[[nn.Module], None], method: str, message: str | None
) -> None:
    sweep = plan([composed(*TINY, "model=tiny_llava", f"method={method}")])
    cell = next(cell for cell in sweep.cells if cell.parts)
    found = model_problems(bench_of(sweep.configs[cell.id], tmp_path, change), [cell])
    assert [message in problem for problem in found] == [True] * (message is not None)


def generation(loaded: LoadedModel, composed: Composed) -> tuple[Asking, Asked, Asked]:
    """Return two questions of unequal length and the object that asks them of the embedded captioner."""
    captured: list[Any] = []
    config: Any = OmegaConf.to_container(composed(*TINY, "task=scenes_vqa"), resolve=True)
    task = copy.copy(build("task", config["task"]))

    def keep(asking: Asking, first: Asked, second: Asked, *_: Any) -> list[str]:
        captured.extend((asking, first, second))
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mmq_sweeps.models.model_check.problems", keep)
        assert list(task.check_model(loaded)) == []
    return captured[0], captured[1], captured[2]
