"""Token embeddings and the output layer: found, quantized, calibrated, counted and refused; tied, they are a single weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from launch.planning import preflight
from launch.start import run_sweep
from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.model_catalog import read_model
from mmq_sweeps.config.paths import conf_dir
from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import ConfigError, TargetError
from mmq_sweeps.execution.cell_checks import Checks, model_problems
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.execution.session import Session, Sessions
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format, round_nearest
from mmq_sweeps.methods.gptq import GPTQ
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.quantization.calibration import block_statistics, capture
from mmq_sweeps.quantization.requests import requests
from mmq_sweeps.quantization.size import StoredLinear, measure_stored
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.quantization.targets import UNCALIBRATED, find_parts
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL
from tests.models.other_toys import make
from tests.models.toys import BATCH, FAMILIES, LENGTH, PADDED, toy_batch, toy_model

Composed = Callable[..., DictConfig]
TIED, UNTIED, RETRIEVER = "tiny_blip2", "tiny_llava", "tiny_blip2_itm"
# Quantizes the parts at the ends only.
BARE = ("component.vision.bits=16", "component.connector.bits=16", "component.language.bits=16")
# Among 24 images the retriever finds all, even with coarse embeddings.
RETRIEVAL = ("task=scenes_retrieval", "task.limit=60", "task.shortlist=2")


def opened(composed: Composed, folder: Path, *overrides: str) -> tuple[Cell, Session, Sweep]:
    sweep = plan([composed(*SMALL, *overrides, f"store.dir={folder}")])
    cell = sweep.cells[-1]
    with quiet_libraries():
        return cell, Sessions(sweep, Store.open(folder)).open(cell), sweep


def quantized(session: Session, cell: Cell) -> dict[str, Tensor]:
    requests = session.requests(cell)
    assert session.compute(requests, Progress(1)) == {}
    found, missing = load(requests, session.store)
    assert not missing
    return {name: weight.dequantize() for name, weight in found.weights.items()}


def untied(**more: Any) -> LoadedModel:
    """Load the captioner with a head of its own, which a checkpoint may have."""
    with quiet_libraries():
        loaded = load_model({**read_model(TIED), **more})
    head = loaded.model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach() * 2, requires_grad=False)
    return LoadedModel(loaded.model, loaded.processor, loaded.config)


# Found


def test_each_is_a_part_of_one_unit_whatever_is_selected(loaded: LoadedModel) -> None:
    parts = find_parts(loaded.model, loaded.config)
    assert list(parts)[-2:] == ["embeddings", "head"]
    for name, group in (("embeddings", "front"), ("head", "end")):
        (unit,) = parts[name].select({})
        assert parts[name].select({"bits": 3, "blocks": [], "layers": ["mlp"]}) == [unit]
        assert (unit.name, unit.part, unit.kind, unit.block, unit.group) == (name, name, name, 0, group)
        assert unit.linears == {parts[name].module: (82, 64)}


def test_tied_weights_are_told_from_those_that_a_checkpoint_unties(loaded: LoadedModel) -> None:
    parts = find_parts(loaded.model, loaded.config)
    assert (parts["embeddings"].tied_to, parts["head"].tied_to) == ("head", "embeddings")
    own = untied()
    parts = find_parts(own.model, own.config)
    assert (parts["embeddings"].tied_to, parts["head"].tied_to) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": ["nowhere", "lm_head"]}, "model.head: none of nowhere, lm_head is a module of Blip2"),
        ({"head": "lm_head"}, "model.head='lm_head': give a list of paths"),
        ({"head": ["qformer"]}, "model.head: qformer of Blip2.* is a Blip2QFormerModel, no Linear"),
        ({"embeddings": ["language_model.lm_head"]}, "model.embeddings: language_model.lm_head .* no Embedding"),
        ({"head": ["qformer.encoder.layer.0.attention.output.dense"]}, "selected twice: connector's .* and head's"),
        (
            {"parts": {"head": {}}},
            r"model.parts.head: head is no part with blocks; give its paths as model.head=\[PATH",
        ),
    ],
)
def test_a_path_that_does_not_serve(loaded: LoadedModel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        find_parts(loaded.model, {**loaded.config, **change})


def test_a_configuration_that_does_not_serve(composed: Composed) -> None:
    with pytest.raises(
        ConfigError, match=r"model.head='lm_head': give a list of paths, for instance model.head=\[lm_head"
    ):
        plan([composed("model.head=lm_head")])
    with pytest.raises(ConfigError, match=r"component.head.bits=9: choose 2 to 8"):
        plan([composed("component.head.bits=9")])


def cell_config(sweep: Sweep) -> dict[str, Any]:
    """Return the model's configuration in a sweep of a single model."""
    return next(iter(sweep.configs.values()))["model"]


def test_at_sixteen_bits_they_are_no_part_of_a_cell(composed: Composed) -> None:
    plain, absent = plan([composed("bits=3")]), plan([composed("bits=3", "model.head=null", "model.embeddings=null")])
    assert [cell.id for cell in plain.cells] == [cell.id for cell in absent.cells]
    cell = plan([composed("bits=3", "component.head.bits=8", "component.head.group_size=16")]).cells[-1]
    assert cell.parts["head"] == {"bits": 8, "group_size": 16, "module": cell_config(plain)["head"]}
    assert cell.id != plain.cells[-1].id
    assert cell.title() == "rtn vision 3 connector 3 language 3 head 8 g16"
    only = plan([composed(*BARE, "component.embeddings.bits=4")]).cells[-1]
    assert only.parts == {"embeddings": {"bits": 4, "module": cell_config(plain)["embeddings"]}}


# Quantized


@pytest.mark.parametrize(("model", "part"), [(TIED, "head"), (UNTIED, "embeddings")])
def test_rounding_is_that_of_the_matrix(composed: Composed, tmp_path: Path, model: str, part: str) -> None:
    overrides = (f"model={model}", *BARE, f"component.{part}.bits=3", f"component.{part}.group_size=16")
    cell, session, _ = opened(composed, tmp_path, *overrides)
    name = session.parts[part].module
    expected = round_nearest(session.loaded.weight(name), Format(3, 16)).dequantize()
    found = quantized(session, cell)
    assert found.keys() == {name}
    assert torch.equal(found[name], expected)


@pytest.mark.parametrize("method", ["uniform", "hqq"])
def test_methods_without_calibration_serve_both(composed: Composed, tmp_path: Path, method: str) -> None:
    ends = ("component.embeddings.bits=4", "component.head.bits=2")
    cell, session, _ = opened(composed, tmp_path, f"model={UNTIED}", f"method={method}", *BARE, *ends)
    found = quantized(session, cell)
    assert {name: len(weight.unique()) <= 16 for name, weight in found.items()} == (
        {"model.language_model.embed_tokens": method == "uniform", "lm_head": method == "uniform"}
    )


# A tied head alone cannot lie on disk: transformers would look there for a weight that no checkpoint stores.
PLACES = [
    (True, None), (True, {"language_model": "disk"}),
    (False, None), (False, {"language_model": "disk"}), (False, {"language_model.lm_head": "disk"}),
]  # fmt: skip


@pytest.mark.parametrize(("tied", "device_map"), PLACES)
def test_replacing_either_of_tied_weights_replaces_both(tied: bool, device_map: Any, tmp_path: Path) -> None:
    """In memory and on disk, before the model ran and after it; untied weights are replaced separately."""
    place = {"device": "cpu", "device_map": device_map}
    if tied:
        with quiet_libraries():
            loaded = load_model({**read_model(TIED), **place})
    else:
        original = untied()
        original.model.config.text_config.tie_word_embeddings = False
        original.model.save_pretrained(tmp_path)
        original.processor.save_pretrained(tmp_path)
        with quiet_libraries():
            loaded = load_model({**read_model(TIED), **place, "checkpoint": str(tmp_path), "revision": None})
    parts = find_parts(loaded.model, loaded.config)
    assert bool(parts["head"].tied_to) is tied
    names = {own: parts[own].module for own in ("embeddings", "head")}
    tokens = torch.arange(80).reshape(2, 40)

    def used() -> tuple[Tensor, Tensor]:
        """Return the embedding's rows, and the head's product with unit vectors, as the modules themselves compute them."""
        embedding, head = (loaded.model.get_submodule(name) for name in names.values())
        with torch.no_grad():
            return embedding(tokens).flatten(0, 1), head(torch.eye(64)).T[:80]

    before = {name: loaded.weight(name).clone() for name in names.values()}
    assert torch.equal(*before.values()) is tied
    for part in ("embeddings", "head") * 2:
        new = torch.randn(82, 64)
        with loaded.weights_replaced({names[part]: new}):
            rows, columns = used()
            assert torch.equal(rows, new[:80]) is (tied or part == "embeddings")
            assert torch.equal(columns, new[:80]) is (tied or part == "head")
            assert torch.equal(loaded.weight(names[part]), new)
        assert all(torch.equal(loaded.weight(name), weight) for name, weight in before.items())
        assert all(map(torch.equal, used(), (weight[:80] for weight in before.values())))
    both = dict.fromkeys(names.values(), torch.randn(82, 64))
    if tied:
        with (
            pytest.raises(ValueError, match="are one weight, which cannot be replaced twice"),
            loaded.weights_replaced(both),
        ):
            pass
    else:
        with loaded.weights_replaced(both):
            assert torch.equal(*used())
    # After calls, which replace an offloaded module's parameter, a tied weight still counts once.
    counted = measure_stored(loaded.model, parts.values(), {})["total"]["parameters"]
    assert counted == 763_648 + (not tied) * 82 * 64


# Calibrated


def direct(loaded: LoadedModel, name: str, batches: list[dict[str, Any]], mask: str = "attention_mask") -> Tensor:
    """Return the inputs of a linear in an ordinary forward pass, without padding ``[N, I]``."""
    rows: list[Tensor] = []
    handle = loaded.linear(name).register_forward_pre_hook(lambda _module, inputs: rows.append(inputs[0].clone()))
    kept = []
    with torch.no_grad():
        for batch in batches:
            loaded.model(**loaded.to_device(batch), use_cache=False)
            kept.append(rows.pop()[batch[mask].bool()])
    handle.remove()
    return torch.cat(kept)


@pytest.mark.parametrize(("model", "device_map"), [(TIED, "null"), (UNTIED, "disk"), (TIED, "{LANGUAGE: disk}")])
def test_the_head_is_calibrated_on_the_inputs_that_a_hook_sees(
    composed: Composed, tmp_path: Path, model: str, device_map: str
) -> None:
    language = "language_model" if model == TIED else "model.language_model"
    place = f"model.device_map={device_map.replace('LANGUAGE', language)}"
    overrides = (f"model={model}", "task=scenes_vqa", "method=gptq", *BARE, "component.head.bits=3", place)
    cell, session, _ = opened(composed, tmp_path, *overrides)
    loaded, name = session.loaded, session.parts["head"].module
    assert cell.calibration is not None
    batches = list(session.task.calibration_batches(loaded, {**cell.calibration, "batch_size": 8}))
    assert any(not batch["attention_mask"].all() for batch in batches), "questions differ in length"
    expected = direct(loaded, name, batches)
    passes = capture(loaded, [session.parts["head"]], batches)["head"]
    ((_, (shared,)),) = block_statistics(loaded, session.parts["head"], passes, [name], keep_inputs=True)
    assert shared.stats.count == len(expected) == sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert shared.stats.inputs is not None
    torch.testing.assert_close(shared.stats.inputs, expected, rtol=0, atol=0)
    gram = (expected.double().T @ expected.double() / len(expected)).float()
    torch.testing.assert_close(shared.stats.gram, gram, rtol=1e-5, atol=1e-6)
    alone = GPTQ().quantize([loaded.weight(name)], LayerStats(**_statistics(shared.stats)), Format(3))
    assert torch.equal(quantized(session, cell)[name], alone.weights[0].dequantize())


def _statistics(stats: LayerStats) -> dict[str, Any]:
    return {"gram": stats.gram, "mean_abs": stats.mean_abs, "count": stats.count}


def test_no_logits_are_computed_to_calibrate_the_head(composed: Composed, tmp_path: Path) -> None:
    overrides = (f"model={UNTIED}", "method=gptq", *BARE, "component.head.bits=3")
    cell, session, _ = opened(composed, tmp_path, *overrides)
    head = session.parts["head"]
    batches = list(session.task.calibration_batches(session.loaded, {**(cell.calibration or {}), "batch_size": 8}))
    passes = capture(session.loaded, [head], batches)["head"]

    def refuse(*_: Any) -> None:
        raise AssertionError("the head ran")

    handle = session.loaded.linear(head.module).register_forward_hook(refuse)
    assert list(block_statistics(session.loaded, head, passes, [head.module]))
    handle.remove()


@pytest.mark.parametrize("method", ["gptq", "awq", "coordinate_descent"])
def test_calibrated_methods_beat_rounding_on_the_head(composed: Composed, tmp_path: Path, method: str) -> None:
    overrides = (f"model={UNTIED}", *BARE, "component.head.bits=3")
    cell, session, _ = opened(composed, tmp_path, f"method={method}", *overrides)
    name = session.parts["head"].module
    batches = list(session.task.calibration_batches(session.loaded, {**(cell.calibration or {}), "batch_size": 8}))
    inputs, weight = direct(session.loaded, name, batches), session.loaded.weight(name).clone()
    rounded = round_nearest(weight, Format(3)).dequantize()
    errors = [(inputs @ (weight - other).T).norm() for other in (quantized(session, cell)[name], rounded)]
    assert errors[0] < errors[1]


def test_a_sequential_head_is_a_chain_of_one(composed: Composed, tmp_path: Path) -> None:
    overrides = (f"model={UNTIED}", "method=gptq", *BARE, "component.head.bits=3")
    cell, session, _ = opened(composed, tmp_path / "a", *overrides)
    ordered, _, _ = opened(composed, tmp_path / "b", *overrides, "method.sequential=true")
    assert [[link.unit for link in request.chain.values()] for request in session.requests(ordered)] == [
        list(session.parts["head"].units)
    ]
    one, other = quantized(session, cell), quantized(session, ordered)
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "blip2_itm_vit_g"])
def test_every_family_s_head_is_given_the_tokens_of_the_text(name: str) -> None:
    torch.manual_seed(0)
    loaded, batch = toy_model(name), toy_batch(name)
    head = find_parts(loaded.model, loaded.config)["head"]
    passes = capture(loaded, [head], [batch])["head"]
    ((_, (shared,)),) = block_statistics(loaded, head, passes, [head.module], keep_inputs=True)
    assert shared.stats.count == BATCH * LENGTH - PADDED
    assert torch.equal(shared.stats.inputs, direct(loaded, head.module, [batch]))


def test_the_head_of_a_decoder_has_the_decoder_s_mask() -> None:
    toy = make("flan_t5")
    loaded = toy.loaded
    head = find_parts(loaded.model, {"parts": toy.parts, "head": ["language_model.lm_head"]})["head"]
    tokens = torch.tensor([[0, 5, 6, 7], [0, 8, 9, 1]])
    batch = {**toy.batch, "decoder_input_ids": tokens, "decoder_attention_mask": torch.tensor([[1] * 4, [1, 1, 0, 0]])}
    passes = capture(loaded, [head], [batch])["head"]
    ((_, (shared,)),) = block_statistics(loaded, head, passes, [head.module], keep_inputs=True)
    assert shared.stats.count == 6
    assert torch.equal(shared.stats.inputs, direct(loaded, head.module, [batch], "decoder_attention_mask"))


# Counted


@pytest.mark.parametrize("part", ["embeddings", "head"])
def test_a_tied_weight_is_counted_once(loaded: LoadedModel, part: str) -> None:
    parts = find_parts(loaded.model, loaded.config)
    plain = measure_stored(loaded.model, parts.values(), {})
    stored = {parts[part].module: StoredLinear(Format(4), (82, 64))}
    size = measure_stored(loaded.model, parts.values(), stored)
    weights, total = 82 * 64, 763_648
    assert plain["total"]["parameters"] == size["total"]["parameters"] == total
    assert size["total"]["bpw_paper"] == (4 * weights + 16 * (total - weights)) / total
    other = parts[part].tied_to
    assert size["parts"][part]["parameters"] == size["parts"][part]["quantized_weights"] == weights
    assert size["parts"][other]["parameters"] == size["parts"][other]["quantized_weights"] == 0
    assert size["parts"][other]["tied_to"] == part
    # The language part holds both, and is shown as ever.
    assert all(size["parts"][own] == plain["parts"][own] for own in ("vision", "connector", "language"))
    assert "tied_to" not in plain["parts"]["embeddings"]
    assert plain["parts"]["head"]["tied_to"] == "embeddings"


def test_untied_weights_are_counted_both() -> None:
    own = untied()
    parts = find_parts(own.model, own.config)
    stored = {parts[part].module: StoredLinear(Format(4), (82, 64)) for part in ("embeddings", "head")}
    size = measure_stored(own.model, parts.values(), stored)
    assert size["total"]["parameters"] == 763_648 + 82 * 64
    assert size["total"]["quantized_weights"] == 2 * 82 * 64
    for part in ("embeddings", "head"):
        assert size["parts"][part]["bpw_paper"] == 4
        assert size["parts"][part]["quantized_weights"] == 82 * 64


# Refused


def problems(composed: Composed, tmp_path: Path, *runs: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return problems that a worker finds with a loaded model, and problems that are found before the first job."""
    sweep = plan([composed(*SMALL, *run, f"store.dir={tmp_path / 'store'}") for run in runs])
    with quiet_libraries():
        worker = Checks(Sessions(sweep, Store.open(tmp_path / "store"))).problems(sweep.cells)
        return worker, preflight.look(sweep, tmp_path)["problems"]


def test_both_of_one_weight_in_a_cell_are_refused(composed: Composed, tmp_path: Path) -> None:
    both = ("component.embeddings.bits=8", "component.head.bits=4")
    # Each alone is in the sweep as well, so that no part of the cell with both is new.
    for found in problems(composed, tmp_path, both, (both[0],), (both[1],)):
        assert found == [
            "component.embeddings and component.head: of tiny_blip2 they are one weight "
            "(language_model.model.decoder.embed_tokens and language_model.lm_head are tied), which cannot be quantized twice; "
            "choose one, it quantizes both"
        ]
    assert problems(composed, tmp_path, (both[0],), (both[1],)) == ([], [])
    assert problems(composed, tmp_path, (f"model={UNTIED}", *both)) == ([], [])


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_embeddings_have_no_inputs_to_calibrate_on(composed: Composed, tmp_path: Path, method: str) -> None:
    for found in problems(composed, tmp_path, (f"method={method}", "component.embeddings.bits=8")):
        assert found == [
            f"component.embeddings: method={method} needs statistics of a linear's inputs, and embeddings have none; choose "
            "component.embeddings.method=rtn, uniform, hqq or normal_float"
        ]


def test_the_methods_without_calibration_are_those_of_the_yamls() -> None:
    methods = [OmegaConf.load(path) for path in (conf_dir() / "method").glob("*.yaml") if path.stem != "none"]
    assert sorted(UNCALIBRATED) == sorted(
        str(node["_target_"]).split(".")[-2] for node in methods if "calibration" not in node
    )
    for name in UNCALIBRATED:
        assert not build(
            "method", OmegaConf.to_container(OmegaConf.load(conf_dir() / "method" / f"{name}.yaml"))
        ).needs_statistics


@pytest.mark.parametrize(
    ("method", "said"), [("rtn", "is not run when an item is answered"), ("gptq", "is not run when")]
)
def test_a_head_that_never_runs_is_told(composed: Composed, tmp_path: Path, method: str, said: str) -> None:
    cell, session, _ = opened(composed, tmp_path, f"model={UNTIED}", f"method={method}", *BARE, "component.head.bits=8")
    assert model_problems(session, [cell]) == []
    head = session.loaded.model.get_output_embeddings()
    session.loaded.model.idle = nn.Linear(64, 91)
    assert head is not None
    config = {**session.loaded.config, "head": ["idle"]}
    wrong = replace(session, parts=find_parts(session.loaded.model, config))
    (problem,) = model_problems(wrong, [cell])
    assert problem.startswith("component.head: idle ")
    assert said in problem
    assert problem.endswith("set component.head.bits=16, or mend model.head")


# Measured


def test_swapping_between_tied_parts_leaves_the_right_weight(composed: Composed, tmp_path: Path) -> None:
    runs = [f"component.{part}.bits={bits}" for part, bits in (("embeddings", 2), ("head", 3))]
    sweep = plan([composed(*SMALL, *BARE, run, f"store.dir={tmp_path}") for run in runs])
    cells = [cell for cell in sweep.cells if cell.parts]
    with quiet_libraries():
        session = Sessions(sweep, Store.open(tmp_path)).open(cells[0])
    name = session.parts["head"].module
    full = session.loaded.weight(name).clone()
    for cell in (*cells, *reversed(cells), *cells):
        quantized = session.quantize(cell, Progress(1))
        expected = next(iter(quantized.weights.values())).dequantize()
        with session.evaluating(cell, quantized):
            assert torch.equal(session.loaded.weight(name), expected)
    session.weights.restore()
    assert torch.equal(session.loaded.weight(name), full)


@pytest.mark.parametrize(("model", "more"), [(TIED, ()), (UNTIED, ()), (RETRIEVER, RETRIEVAL)])
def test_the_outputs_of_other_parts_are_replayed_as_without(
    composed: Composed, tmp_path: Path, model: str, more: tuple[str, ...]
) -> None:
    _, session, _ = opened(composed, tmp_path, f"model={model}", *more)
    replayed = [name for name, part in session.parts.items() if session._can_replay(part)]
    assert replayed == {TIED: ["vision", "connector"], UNTIED: ["vision"], RETRIEVER: ["vision"]}[model]


@pytest.mark.parametrize(
    ("model", "ends", "more"),
    [
        (TIED, ("head",), ()),
        (UNTIED, ("embeddings", "head"), ()),
        (RETRIEVER, ("embeddings",), RETRIEVAL),
    ],
)
def test_a_sweep_measures_eight_and_two_bits(
    composed: Composed, tmp_path: Path, model: str, ends: tuple[str, ...], more: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = [[f"component.{end}.bits={bits}" for end in ends] for bits in (8, 2)]
    configs = [composed(*SMALL, f"model={model}", *BARE, *more, *run, f"store.dir={tmp_path}") for run in runs]
    assert run_sweep(configs) == 0, capsys.readouterr().err
    store, cells = Store.open(tmp_path), plan(configs).cells
    records = {max((own["bits"] for own in cell.parts.values()), default=16): store.record(cell.id) for cell in cells}
    assert sorted(records) == [2, 8, 16]
    main = next(iter(records[16].metrics))
    values = {bits: record.metrics[main]["value"] for bits, record in records.items()}
    assert values[2] < values[16]
    assert abs(values[8] - values[16]) < abs(values[2] - values[16])
    for bits in (8, 2):
        size = records[bits].size
        assert all(size["parts"][end]["bpw_paper"] == bits for end in ends)
        assert size["total"]["quantized_weights"] == sum(size["parts"][end]["parameters"] for end in ends)
    # The parts between stay as they were.
    between = [part for part in records[16].size["parts"] if part not in ("embeddings", "head")]
    assert all(
        records[bits].size["parts"][part] == records[16].size["parts"][part] for bits in (8, 2) for part in between
    )


def test_a_head_elsewhere_is_another_unit(composed: Composed, tmp_path: Path) -> None:
    """The keys of units hold the head's place, which is not in the model's configuration."""
    sweep = plan([composed(*BARE, "component.head.bits=8", "method=gptq")])
    own = sweep.cells[-1]
    head = Sessions(sweep, Store.open(tmp_path / "store")).open(own).parts["head"]
    (unit,) = head.units
    moved = replace(head, units=(replace(unit, linears={"elsewhere": next(iter(unit.linears.values()))}),))
    (here,), (there,) = (requests(own, build, {"head": part}) for part in (head, moved))
    assert here.key != there.key
    assert here.statistics != there.statistics
    named = plan([composed(*BARE, "component.head.bits=8", "method=gptq", "model.head=[elsewhere]")]).cells[-1]
    assert named.id != own.id
