"""Vision and text tokens apart: the statistics of both in each linear, and objectives that weigh them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.schema import ModelConfig
from mmq_sweeps.config.sweep import plan, resolved
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.session import Session
from mmq_sweeps.methods.awq import AWQ
from mmq_sweeps.methods.coordinate_descent import CoordinateDescent
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models import experts
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.models.retriever import Retriever
from mmq_sweeps.quantization import vision_tokens
from mmq_sweeps.quantization.calibration import SharedStats, block_statistics, capture
from mmq_sweeps.quantization.requests import Request
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.quantization.targets import Part, find_parts
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store
from mmq_sweeps.tasks.caption import CaptionTask
from tests.conftest import SMALL
from tests.models.other_toys import IMAGE_TOKEN, Toy, make
from tests.quantization.test_calibration import direct_inputs

Composed = Callable[..., DictConfig]
CALIBRATION = {"samples": 6, "batch_size": 4, "seed": 0}
WEIGHTS = (None, 0.0, 0.5, 1.0)


def embedded(name: str) -> LoadedModel:
    config = OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))
    with quiet_libraries():
        return load_model(OmegaConf.to_container(config))


@pytest.fixture(scope="module")
def llava() -> LoadedModel:
    return embedded("tiny_llava")


def samples(loaded: LoadedModel) -> list[dict[str, Any]]:
    data = {"_target_": "mmq_sweeps.data.scenes.Scenes", "seed": 0}
    prompt = loaded.config["prompts"]["caption"]
    task = CaptionTask("t", 1, data, "evaluation", "calibration", 4, prompt, {}, ["cider"], 4)
    return list(task.calibration_batches(loaded, CALIBRATION))


def statistics(
    loaded: LoadedModel, part: Part, batches: list[dict[str, Any]], by_kind: bool = True
) -> dict[str, SharedStats]:
    passes = capture(loaded, [part], batches, by_kind=by_kind)[part.name]
    wanted = [name for unit in part.units for name in unit.linears]
    found = block_statistics(loaded, part, passes, wanted, by_kind=by_kind)
    return {name: shared for _, own in found for shared in own for name in shared.linears}


@pytest.mark.parametrize("model", ["tiny_blip2", "tiny_llava"])
def test_both_kinds_are_what_hooks_on_the_whole_model_see(model: str, request: pytest.FixtureRequest) -> None:
    loaded: LoadedModel = request.getfixturevalue("loaded" if model == "tiny_blip2" else "llava")
    batches, parts = samples(loaded), find_parts(loaded.model, loaded.config)
    image = loaded.processor.tokenizer.convert_tokens_to_ids("<image>")
    assert any(int(batch["attention_mask"].sum()) < batch["attention_mask"].numel() for batch in batches)
    for name in ("language", "head"):
        part = parts[name]
        found, plain = statistics(loaded, part, batches), statistics(loaded, part, batches, by_kind=False)
        for linear in [*part.units[0].linears, *part.units[-1].linears]:
            rows: dict[str, list[Tensor]] = {"vision": [], "text": []}
            for batch, x in zip(batches, direct_inputs(loaded, batches, linear), strict=True):
                shows, counts = (batch["input_ids"] == image).flatten(), batch["attention_mask"].flatten().bool()
                x = x.reshape(len(shows), -1)
                rows["vision"].append(x[shows & counts])
                rows["text"].append(x[~shows & counts])
            shared = found[linear]
            assert shared.kinds is not None
            for own, kind in ((shared.kinds.vision, "vision"), (shared.kinds.text, "text")):
                x = torch.cat(rows[kind])
                assert own.count == len(x) > 0
                torch.testing.assert_close(own.gram, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(own.mean_abs, x.abs().mean(dim=0), rtol=1e-4, atol=1e-5)
            # Both kinds are all tokens, whose own sums are the same, bit for bit, as without them.
            kinds = (shared.kinds.vision, shared.kinds.text)
            assert sum(own.count for own in kinds) == shared.stats.count
            joined = sum(own.gram * own.count for own in kinds)
            torch.testing.assert_close(joined / shared.stats.count, shared.stats.gram, rtol=1e-5, atol=1e-6)
            assert torch.equal(shared.stats.gram, plain[linear].stats.gram)
            assert torch.equal(shared.stats.mean_abs, plain[linear].stats.mean_abs)
            assert plain[linear].kinds is None
    for name in {"vision", "connector"} & set(parts):
        assert all(shared.kinds is None for shared in statistics(loaded, parts[name], batches).values())


def test_a_weight_mixes_both_kinds_and_its_ends_are_one_of_them(llava: LoadedModel) -> None:
    part = find_parts(llava.model, llava.config)["language"]
    shared = statistics(llava, part, samples(llava))[next(iter(part.units[0].linears))]
    assert shared.kinds is not None
    vision, text = shared.kinds.vision, shared.kinds.text
    assert shared.weighted(None) is shared
    for weight, own in ((0.0, text), (1.0, vision)):
        assert torch.equal(shared.weighted(weight).stats.gram, own.gram)
        assert torch.equal(shared.weighted(weight).stats.mean_abs, own.mean_abs)
    mixed = shared.weighted(0.3)
    torch.testing.assert_close(mixed.stats.gram, 0.3 * vision.gram + 0.7 * text.gram)
    torch.testing.assert_close(mixed.stats.mean_abs, 0.3 * vision.mean_abs + 0.7 * text.mean_abs)
    assert torch.equal(mixed.stats.gram, mixed.stats.gram.T)
    assert mixed.of_all_tokens is shared.stats
    # Weighed by the share of vision tokens, the sums equal those of all tokens.
    alike = shared.weighted(vision.count / shared.stats.count)
    torch.testing.assert_close(alike.stats.gram, shared.stats.gram, rtol=1e-5, atol=1e-6)


def test_of_one_kind_of_token_a_weight_makes_no_difference(llava: LoadedModel) -> None:
    """A user's task may give the model texts alone."""
    part = find_parts(llava.model, llava.config)["language"]
    tokens = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    tokens[tokens == llava.model.config.image_token_id] = 5
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    found, plain = statistics(llava, part, [batch]), statistics(llava, part, [batch], by_kind=False)
    for name, shared in found.items():
        assert shared.kinds is None
        for weight in WEIGHTS:
            assert shared.weighted(weight) is shared
        assert torch.equal(shared.stats.gram, plain[name].stats.gram)
        assert shared.stats.gram.isfinite().all()


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return Retriever(embedded("tiny_blip2_itm"), 64)


@pytest.mark.parametrize("matching", [False, True])
def test_queries_ahead_of_a_text_are_vision_tokens_of_a_q_former(retriever: Retriever, matching: bool) -> None:
    loaded, texts = retriever.loaded, retriever.tokenized(["a red circle", "a small blue square left of a green ring"])
    side = loaded.model.config.vision_config.image_size
    batch = retriever.forward_inputs(torch.randn(2, 3, side, side), texts, matching)
    part = find_parts(loaded.model, loaded.config)["connector"]
    found = {name.removeprefix(f"{part.blocks[0]}."): own for name, own in statistics(loaded, part, [batch]).items()}
    queries, words = 2 * loaded.model.config.num_query_tokens, int(texts.mask.sum())
    for name in ("attention.attention.query", "attention.output.dense"):
        kinds = found[name].kinds
        assert kinds is not None
        assert (kinds.vision.count, kinds.text.count) == (queries, words)
    for name in ("crossattention.attention.key", "intermediate_query.dense", "intermediate.dense", "output.dense"):
        assert found[name].kinds is None


def toy(name: str) -> tuple[Toy, Part]:
    made = make(name)
    where = {**made.parts["language"], "vision_tokens": "image_token_id"}
    return made, find_parts(made.loaded.model, {"parts": {"language": where}})["language"]


def test_a_decoder_sees_text_and_attends_to_both() -> None:
    made, part = toy("flan_t5")
    found = statistics(made.loaded, part, [made.batch])
    shows = made.batch["input_ids"] == IMAGE_TOKEN
    both = int(shows.sum()), int((made.batch["attention_mask"].bool() & ~shows).sum())
    sees_both = [
        *(name for name in found if ".encoder." in name),
        *(name for name in found if name.endswith(("EncDecAttention.k", "EncDecAttention.v"))),
    ]
    assert sees_both
    for name, shared in found.items():
        counts = shared.kinds and (shared.kinds.vision.count, shared.kinds.text.count)
        assert counts == (both if name in sees_both else None), name


@pytest.mark.parametrize("name", ["qwen3_vl_moe", "llama4"])
def test_each_expert_has_the_kinds_of_the_tokens_routed_to_it(name: str) -> None:
    made, part = toy(name)
    unit = next(unit for unit in part.units if any(map(experts.parse, unit.linears)))
    path = experts.module_of(next(linear for linear in unit.linears if experts.parse(linear)))
    held, routed = experts.at(made.loaded.model, path), list[tuple[Any, ...]]()
    hook = held.module.register_forward_hook(lambda _module, given, _output: routed.append(given))
    found = statistics(made.loaded, part, [made.batch])
    hook.remove()
    shows = (made.batch["input_ids"] == IMAGE_TOKEN).flatten()
    counted = made.batch["attention_mask"].flatten().bool()
    seen = 0
    for own in held.routed(routed[0][0], routed[0][1] if len(routed[0]) > 1 else None, counted, second=True):
        pictures, x = shows[own.rows], own.inputs[held.first]
        shared = found[f"{path}.{held.first}[{own.index}]"]
        if pictures.all() or not pictures.any():
            assert shared.kinds is None
            continue
        seen += 1
        assert shared.kinds is not None
        for kind, rows in ((shared.kinds.vision, x[pictures]), (shared.kinds.text, x[~pictures])):
            assert kind.count == len(rows)
            torch.testing.assert_close(kind.gram, rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
        assert found[f"{path}.down_proj[{own.index}]"].kinds is not None
    assert seen


def test_tokens_that_are_not_those_of_the_text_are_an_error(llava: LoadedModel) -> None:
    part = find_parts(llava.model, llava.config)["language"]
    embeddings: Any = llava.model.get_input_embeddings()
    tokens = torch.randint(5, 60, (2, 6))
    with pytest.raises(RuntimeError, match=r"vision_tokens=image_token_id: the task calls the model without input_ids"):
        capture(llava, [part], [{"inputs_embeds": embeddings(tokens)}], by_kind=True)
    wrong = replace(part, vision_tokens="image_seq_token")
    assert vision_tokens.problem(llava.model, part) is None
    told = vision_tokens.problem(llava.model, wrong)
    assert told is not None
    assert "model.parts.language.vision_tokens=image_seq_token" in told
    assert "it has image_token_id" in told


@pytest.mark.parametrize("method", [GPTQ, AWQ, CoordinateDescent])
@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_a_method_refuses_what_is_no_weight(method: type, weight: float) -> None:
    with pytest.raises(ValueError, match=r"vision_weight=.*choose a number from 0 .* to 1 .*, or null"):
        method(vision_weight=weight)


@pytest.fixture
def session(composed: Composed, llava: LoadedModel, tmp_path: Path) -> Session:
    task = plan([composed(*SMALL, "model=tiny_llava")]).configs.popitem()[1]["task"]
    parts = find_parts(llava.model, llava.config)
    return Session(llava, parts, build("task", task), 8, Store.open(tmp_path / "store"))


FRONT = [f"component.{part}.{only}" for part in ("vision", "language") for only in ("blocks=[front]", "layers=[mlp]")]
# Composed once.
KNOWN: dict[tuple[str, ...], dict[str, Any]] = {}


def requests_of(session: Session, composed: Composed, weight: float | None, *more: str) -> list[Request]:
    """Return the requests for the MLPs of the first blocks."""
    overrides = ("model=tiny_llava", "bits=2", "method=gptq", *FRONT, *more)
    if overrides not in KNOWN:
        KNOWN[overrides] = resolved(composed(*SMALL, *overrides))
    config = copy.deepcopy(KNOWN[overrides])
    config["method"]["vision_weight"] = weight
    return session.requests(plan([config]).cells[-1])


def counted(session: Session) -> tuple[list[int], Callable[[], None]]:
    """Count forward passes of the whole model."""
    calls: list[int] = []
    return calls, session.loaded.model.register_forward_hook(lambda *_: calls.append(1)).remove


def codes(session: Session, requests: list[Request]) -> dict[str, Tensor]:
    found, missing = load(requests, session.store)
    assert not missing
    return {name: weight.codes for name, weight in found.weights.items()}


def output_error(session: Session, request: Request) -> float:
    stored = session.store.artifacts.load(ArtifactKind.QUANTIZED, request.key)
    assert stored is not None
    return float(stored[1]["output_error"])


def test_an_axis_of_weights_calibrates_once(session: Session, composed: Composed, tmp_path: Path) -> None:
    wanted = {weight: requests_of(session, composed, weight) for weight in WEIGHTS}
    calls, remove = counted(session)
    assert not session.compute([request for own in wanted.values() for request in own], Progress(1))
    assert len(calls) == 2  # 16 samples, 8 a batch
    # Requests with a later weight or another method read the stored statistics.
    more = [*requests_of(session, composed, 0.25), *requests_of(session, composed, 0.75, "method=coordinate_descent")]
    assert not session.compute(more, Progress(1))
    assert len(calls) == 2
    # Alone, all tokens alike and a weight are the same.
    for weight in (None, 0.5):
        alone = replace(session, store=Store.open(tmp_path / f"alone {weight}"))
        assert not alone.compute(wanted[weight], Progress(1))
        own, shared = codes(alone, wanted[weight]), codes(session, wanted[weight])
        assert all(torch.equal(own[name], shared[name]) for name in shared)
    remove()
    # Only vision tokens reach the tower, which is quantized once; a unit that sees both differs for each weight.
    units = {weight: {request.unit.name: request for request in own} for weight, own in wanted.items()}
    for name in units[None]:
        keys = {own[name].key for own in units.values()}
        assert len(keys) == (1 if name.startswith("vision") else len(WEIGHTS))
    assert units[0.5]["vision.0.mlp"].vision_weight is None
    language = [name for name in codes(session, wanted[None]) if "language" in name]
    different = [codes(session, wanted[weight]) for weight in WEIGHTS]
    assert all(not torch.equal(different[0][name], other[name]) for other in different[1:] for name in language)
    # Statistics of all tokens serve every weight, and so do those of both kinds.
    assert {own["language.0.mlp"].statistics for own in units.values()} == {units[None]["language.0.mlp"].statistics}
    assert len({own["language.0.mlp"].kinds for weight, own in units.items() if weight is not None}) == 1
    # The reported error is that of all tokens under any weight, so none is below the error minimised for it.
    errors = [output_error(session, own["language.0.mlp"]) for own in units.values()]
    assert min(errors) == errors[0]


def test_calibration_behind_quantized_units_weighs_too(session: Session, composed: Composed) -> None:
    wanted = {weight: requests_of(session, composed, weight, "method.sequential=true") for weight in (None, 0.0, 1.0)}
    assert not session.compute([request for own in wanted.values() for request in own], Progress(1))
    found = [codes(session, own) for own in wanted.values()]
    language = next(name for name in found[0] if "language" in name)
    assert len({found[place][language].sum().item() for place in range(3)}) == 3
    vision = next(name for name in found[0] if "vision" in name)
    assert torch.equal(found[0][vision], found[2][vision])


def test_a_weight_between_one_kind_is_told_once_and_recorded(
    session: Session, composed: Composed, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.randint(5, 60, (3, 7), generator=torch.Generator().manual_seed(0))
    tokens[tokens == session.loaded.model.config.image_token_id] = 5
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    monkeypatch.setattr(Session, "_calibration_batches", lambda *_: iter([batch]))
    plain, weighted = (
        [request for request in requests_of(session, composed, weight) if request.unit.part == "language"]
        for weight in (None, 0.5)
    )
    assert not session.compute([*plain, *weighted], Progress(1))
    own, other = codes(session, plain), codes(session, weighted)
    assert own
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert [line for line in said if "method.vision_weight has no effect on" in line and "of language" in line]
    assert len([line for line in said if "calibration gives it tokens of one kind only" in line]) == 1
    notes = load(weighted, session.store)[0].notes
    assert {note["vision_weight"] for note in notes.values()} == {"no effect: tokens of one kind only"}
    assert not any("vision_weight" in note for note in load(plain, session.store)[0].notes.values())
