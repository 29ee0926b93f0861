from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.session import Session
from mmq_sweeps.identity.cell import Cell
from mmq_sweeps.methods import factor, gptq
from mmq_sweeps.methods.base import Solution
from mmq_sweeps.methods.formats import Format, QuantizedWeight, round_nearest
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.quantization import quantize, solve
from mmq_sweeps.quantization.calibration import block_statistics, capture
from mmq_sweeps.quantization.requests import problems
from mmq_sweeps.quantization.stored_units import load
from mmq_sweeps.quantization.targets import Part
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL

Composed = Callable[..., DictConfig]
AUTO_ROUND = pytest.mark.skipif(find_spec("auto_round") is None, reason="pip install -e '.[auto-round]'")


@pytest.fixture
def session(composed: Composed, loaded: LoadedModel, parts: dict[str, Part], tmp_path: Path) -> Session:
    task = plan([composed(*SMALL)]).configs.popitem()[1]["task"]
    return Session(loaded, parts, build("task", task), 8, Store.open(tmp_path / "store"))


def cell(composed: Composed, *overrides: str) -> Cell:
    return plan([composed(*SMALL, *overrides)]).cells[-1]


def weights(session: Session, *cells: Cell) -> list[dict[str, torch.Tensor]]:
    """Quantize ``cells`` together, and return the weights that each then reads from the store."""
    wanted = [session.requests(one) for one in cells]
    assert not session.compute([request for requests in wanted for request in requests], Progress(1))
    found = []
    for requests in wanted:
        one, missing = load(requests, session.store)
        assert not missing
        found.append({name: quantized.dequantize() for name, quantized in one.weights.items()})
    return found


SHARING = [
    *(
        "method=gptq",
        "method=awq method.n_grid=4 method.clip_steps=2",
        "method=rtn",
        "method=uniform",
        "method=kmeans",
        "method=normal_float",
    ),
    "method=kmeans method.corrected=true",
    pytest.param("method=auto_round method.iterations=5", marks=AUTO_ROUND),
]


@pytest.mark.parametrize("method", SHARING)
def test_sharing_changes_no_weight(session: Session, composed: Composed, tmp_path: Path, method: str) -> None:
    only = ["component=vision_connector", "component.vision.blocks=[front]", "component.connector.blocks=[end]"]
    if method.startswith(("method=kmeans", "method=auto_round")):  # They take long for each linear.
        only = ["component=connector", "component.connector.blocks=[end]", "component.connector.layers=[mlp]"]
    cells = [cell(composed, *method.split(), f"bits={bits}", *only) for bits in (2, 4)]
    together = weights(session, *cells)
    for index, one in enumerate(cells):
        alone = weights(replace(session, store=Store.open(tmp_path / f"alone{index}")), one)[0]
        assert alone.keys() == together[index].keys()
        assert all(torch.equal(alone[name], together[index][name]) for name in alone)


def test_cells_share_units_through_the_store(session: Session, composed: Composed) -> None:
    whole = cell(composed, "method=gptq", "bits=3")
    weights(session, whole)
    piece = cell(composed, "method=gptq", "bits=3", "component=vision", "component.vision.blocks=[end]")
    found, missing = load(session.requests(piece), session.store)
    assert found.weights
    assert not missing
    assert load(session.requests(cell(composed, "method=gptq", "bits=4")), session.store)[1]


def test_a_narrowed_cell_quantizes_nothing_else(session: Session, composed: Composed) -> None:
    piece = cell(composed, "bits=2", "component=language", "component.language.layers=[mlp]")
    names = weights(session, piece)[0]
    assert names
    assert all(".fc" in name and name.startswith(session.parts["language"].module) for name in names)


def test_gptq_and_awq_beat_rounding_on_the_layers_of_the_model(session: Session, composed: Composed) -> None:
    methods = ("rtn", "gptq", "awq")
    cells = [cell(composed, f"method={method}", "bits=3", "component=vision") for method in methods]
    quantized = dict(zip(methods, weights(session, *cells), strict=True))
    error = dict.fromkeys(methods, 0.0)
    part = session.parts["vision"]
    batches = session.task.calibration_batches(session.loaded, {"samples": 16, "batch_size": 8, "seed": 0})
    passes = capture(session.loaded, [part], batches)["vision"]
    wanted = [name for unit in part.units for name in unit.linears]
    for _, found in block_statistics(session.loaded, part, passes, wanted):
        for shared in found:
            for name in shared.linears:
                original = session.loaded.model.get_submodule(name).weight
                for method in methods:
                    change = original - quantized[method][name]
                    error[method] += float(((change @ shared.stats.gram) * change).sum())
    assert error["gptq"] < error["awq"] < error["rtn"]


def test_a_corrupt_artifact_is_computed_again(session: Session, composed: Composed) -> None:
    one = cell(composed, "bits=3", "component=connector")
    before = weights(session, one)[0]
    request = session.requests(one)[0]
    path = session.store.root / "artifacts" / ArtifactKind.QUANTIZED / f"{request.key}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    _, missing = load(session.requests(one), session.store)
    assert [lost.key for lost in missing] == [request.key]
    after = weights(session, one)[0]
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_linear_that_lies_on_its_grid_already_is_named(session: Session, composed: Composed) -> None:
    one = cell(composed, "bits=2", "component=vision", "component.vision.blocks=[end]")
    name, shape = next(iter(session.requests(one)[0].unit.linears.items()))
    weight = session.loaded.model.get_submodule(name).weight
    kept = weight.detach().clone()
    try:
        # Four values, evenly spaced, in every row: two bits hold them exactly.
        with torch.no_grad():
            weight.copy_((torch.arange(shape[1]) % 4 / 4).expand(shape))
        session.compute(session.requests(one), Progress(1))
        found, missing = load(session.requests(one), session.store)
        assert not missing
        assert found.unchanged == [name]
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_failing_solver_fails_its_own_requests_only(session: Session, composed: Composed) -> None:
    class Broken:
        needs_statistics = False

        def format(self, bits: int) -> Format:
            return Format(bits)

        def quantize(self, weights: object, stats: object, format: object) -> None:  # noqa: ARG002
            raise ValueError("no solution")

    good = session.requests(cell(composed, "bits=3", "component=connector"))
    bad = replace(session.requests(cell(composed, "bits=4", "component=connector"))[0], method=Broken())
    failed = session.compute([*good, bad], Progress(1))
    assert list(failed) == [bad.key]
    assert "no solution" in str(failed[bad.key])
    assert not load(good, session.store)[1]


@contextmanager
def changed(session: Session, name: str) -> Iterator[torch.Tensor]:
    """Lend the weight ``name`` to be changed, and restore it afterwards."""
    weight = session.loaded.model.get_submodule(name).weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            yield weight
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> Counter:
    calls: Counter = Counter()
    original = getattr(module, name)

    def counting(*arguments: Any, **named: Any) -> Any:
        calls[name] += 1
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, counting)
    return calls


def test_one_pass_and_one_factorization_an_input_serve_all_widths(
    session: Session, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [cell(composed, "method=gptq", f"bits={bits}", "component=connector") for bits in range(2, 9)]
    part = session.parts["connector"]
    wanted = [name for unit in part.units for name in unit.linears]
    batches = session.task.calibration_batches(session.loaded, {"samples": 2, "batch_size": 2, "seed": 0})
    passes = capture(session.loaded, [part], batches)["connector"]
    inputs = sum(len(found) for _, found in block_statistics(session.loaded, part, passes, wanted))
    assert inputs < len(wanted)
    captured = counted(monkeypatch, quantize, "capture")
    factorized = counted(monkeypatch, gptq, "factorize")
    weights(session, *cells)
    assert captured.total() == 1
    assert factorized.total() == inputs


def test_methods_that_share_a_factorization_share_that_of_a_large_input_too(
    session: Session, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "KEPT_COLUMNS", 1)
    wanted = ("component=connector", "component.connector.blocks=[end]", "component.connector.layers=[mlp]", "bits=3")
    chosen = [cell(composed, "method=gptq", *wanted), cell(composed, "method=gptq", "method.group_size=16", *wanted)]
    tried = counted(monkeypatch, factor, "_factorize_in_place")
    weights(session, *chosen)
    together = tried.total()
    for one in chosen:
        weights(replace(session, store=Store.open(session.store.root.parent / one.id)), one)
    assert tried.total() - together == 2 * together > 0


def test_a_linear_that_no_token_reaches_is_named(session: Session) -> None:
    unit = session.parts["connector"].units[0]
    with pytest.raises(ValueError, match=rf"{next(iter(unit.linears))}.*: no calibration token reached it"):
        solve._by_input(unit, [])


class Picky:
    """A method that rounds, but refuses three bits and many formats."""

    needs_statistics = False

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.tried: list[list[int]] = []

    def quantize_many(self, weights: list[torch.Tensor], stats: object, formats: list[Format]) -> list[Solution]:  # noqa: ARG002
        self.tried.append([format.bits for format in formats])
        if any(format.bits == 3 for format in formats):
            raise self.error
        return [Solution([round_nearest(weight, format) for weight in weights], {}) for format in formats]


@pytest.mark.parametrize("error", [ValueError("no solution"), torch.linalg.LinAlgError("no factor")])
def test_a_format_that_fails_leaves_the_others(session: Session, composed: Composed, error: Exception) -> None:
    method = Picky(error)
    asked = [session.requests(cell(composed, f"bits={bits}", "component=connector"))[0] for bits in (2, 3, 4)]
    asked = [replace(request, method=method) for request in asked]
    failed = session.compute(asked, Progress(1))
    assert list(failed) == [asked[1].key]
    assert str(failed[asked[1].key]) == f"{next(iter(asked[1].unit.linears))}: {error}"
    assert [request.key for request in load(asked, session.store)[1]] == [asked[1].key]
    # Together once; then each alone; behind the first linear only the two that can still succeed.
    assert method.tried[:4] == [[2, 3, 4], [2], [3], [4]]
    assert all(tried == [2, 4] for tried in method.tried[4:])


def test_memory_that_is_refused_keeps_its_error(session: Session, composed: Composed) -> None:
    request = session.requests(cell(composed, "bits=3", "component=connector"))[0]
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    failed = session.compute([replace(request, method=Picky(error))], Progress(1))
    assert failed[request.key] is error


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_weights_that_are_not_finite_are_named(session: Session, composed: Composed, method: str) -> None:
    one = cell(composed, "bits=3", f"method={method}", "component=language", "component.language.blocks=[end]")
    name = f"{session.parts['language'].blocks[-1]}.fc2"
    with changed(session, name) as weight:
        weight[0, 1], weight[2, 3] = float("nan"), float("inf")
        failed = session.compute(session.requests(one), Progress(1))
    (error,) = failed.values()
    assert str(error) == f"{name}: 2 of {weight.numel()} weights are not finite"


def test_tokens_that_are_not_finite_fail_the_linears_that_they_reach(session: Session, composed: Composed) -> None:
    one = cell(composed, "bits=3", "method=gptq", "component=language")
    last, before = (session.parts["language"].blocks[place] for place in (-1, -2))
    with changed(session, f"{before}.fc2") as weight:
        weight[0] = float("nan")
        failed = session.compute(session.requests(one), Progress(1))
    told = "\n".join(map(str, failed.values()))
    assert f"{before}.fc2: {weight.shape[1]} of {weight.numel()} weights are not finite" in told
    assert f"{last}.self_attn.q_proj" in told
    assert "calibration tokens that reach it are not finite" in told
    units = {request.unit.block for request in session.requests(one) if request.key in failed}
    assert units == {len(session.parts["language"].blocks) - 1, len(session.parts["language"].blocks) - 2}


def test_a_fallback_stands_in_the_record_by_the_linears_name(session: Session, composed: Composed) -> None:
    """With all inputs zero GPTQ has no information and rounds, and the record says so."""
    one = cell(composed, "bits=3", "method=gptq", "component=language", "component.language.blocks=[front]")
    block = session.parts["language"].blocks[0]
    norm = session.loaded.model.get_submodule(f"{block}.final_layer_norm")
    with changed(session, f"{block}.final_layer_norm") as weight:
        bias = norm.bias.detach().clone()
        try:
            weight.zero_(), norm.bias.zero_()
            record, _ = record_cell(one, session, Progress(1))
        finally:
            norm.bias.copy_(bias)
    assert record.done
    assert record.notes["solver"][f"{block}.fc1"]["fallback"] == "rtn"
    assert "zero" in record.notes["solver"][f"{block}.fc1"]["reason"]
    assert f"{block}.self_attn.q_proj" not in record.notes["solver"]


GROUPS = ("component.vision.group_size=16", "component.connector.group_size=tensor")


@pytest.mark.parametrize("method", ["uniform", "rtn", "gptq", "awq", "hqq"])
def test_each_part_may_have_its_own_groups(session: Session, composed: Composed, method: str) -> None:
    one = cell(composed, f"method={method}", "bits=3", "component=vision_connector", *GROUPS)
    assert one.title() == f"{method} vision 3 g16 connector 3 tensor"
    requests = session.requests(one)
    sizes = {request.unit.part: request.format.group_size for request in requests}
    assert sizes == {"vision": 16, "connector": "tensor"}
    assert not problems(requests)
    first = [next(request for request in requests if request.unit.part == part) for part in sizes]
    assert not session.compute(first, Progress(1))
    found, missing = load(first, session.store)
    assert not missing
    for name, weight in found.weights.items():
        assert weight.format.group_size == sizes["vision" if name.startswith("vision") else "connector"]
        assert weight.grid.scale.numel() == (weight.codes.numel() // 16 if weight.format.group_size == 16 else 1)


def test_a_group_size_of_its_own_changes_the_artifact_and_only_that_part(session: Session, composed: Composed) -> None:
    plain, own = (
        {request.unit.name: request.key for request in session.requests(cell(composed, "bits=3", *more))}
        for more in ((), ("component.vision.group_size=16",))
    )
    assert {name.partition(".")[0] for name in plain if plain[name] != own[name]} == {"vision"}


def test_a_group_size_that_a_part_cannot_have_is_named(session: Session, composed: Composed) -> None:
    one = cell(composed, "bits=3", "component=vision", "component.vision.group_size=48")
    told = problems(session.requests(one))
    assert told
    assert all(problem.startswith("component.vision.group_size: group_size=48 does not divide") for problem in told)
    other = cell(composed, "method=gptq", "method.static_groups=false", "component.vision.group_size=16")
    with pytest.raises(ValueError, match=r"component.vision.group_size=16: static_groups=False with act_order=True"):
        session.requests(other)


SEQUENTIAL = ("method=gptq", "method.sequential=true", "component=connector")


def test_each_unit_is_calibrated_behind_the_quantized_ones(session: Session, composed: Composed) -> None:
    """By the classical definition, a linear's input comes from the model in which all units before it are quantized."""
    part = session.parts["vision"]
    found, plain = weights(
        session,
        cell(composed, *SEQUENTIAL, "component=vision", "bits=2"),
        cell(composed, "method=gptq", "component=vision", "bits=2"),
    )
    calibration = {"samples": 16, "batch_size": 8, "seed": 0}
    solver = gptq.GPTQ()
    attention, mlp = (next(u for u in part.units if u.block == 2 and u.kind == kind) for kind in ("attention", "mlp"))
    for unit, within in ((attention, ()), (mlp, tuple(attention.linears))):
        before = {name: found[name] for one in part.units if one.block < 2 for name in one.linears}
        before |= {name: found[name] for name in within}
        name = next(iter(unit.linears))
        seen: list[torch.Tensor] = []
        linear = session.loaded.model.get_submodule(name)
        handle = linear.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with session.loaded.weights_replaced(before), torch.no_grad():
            for batch in session.task.calibration_batches(session.loaded, calibration):
                session.loaded.model(**session.loaded.to_device(batch), use_cache=False)
        handle.remove()
        x = torch.cat([one.reshape(-1, one.shape[-1]) for one in seen]).double()
        stats = gptq.LayerStats((x.T @ x / len(x)).float(), x.abs().mean(dim=0).float(), len(x))
        expected = solver.quantize([linear.weight], stats, Format(2)).weights[0].dequantize()
        same = (expected - found[name]).abs() < 1e-6
        assert same.float().mean() > 0.999
        assert not torch.equal(found[name], plain[name])


def test_a_chain_may_hold_units_of_another_method(session: Session, composed: Composed, tmp_path: Path) -> None:
    """Rounded units are in place when the units behind them are calibrated."""
    chained = {"bits": 2, "layers": ["mlp"], "method": {"name": "gptq", "sequential": True}}
    rules = [{"bits": 2, "layers": ["attention"], "method": "rtn"}, chained]
    (tmp_path / "mixed.json").write_text(json.dumps({"parts": {"connector": rules}}))
    mixed = cell(composed, f"assignment={tmp_path / 'mixed.json'}")
    rounded = cell(composed, "method=rtn", "component=connector", "bits=2")
    alone = cell(composed, *SEQUENTIAL, "bits=2", "component.connector.layers=[mlp]")
    found, of_rtn, of_gptq = weights(session, mixed, rounded, alone)
    units = session.parts["connector"].units
    assert {unit.name: request.key for request in session.requests(mixed) for unit in [request.unit]}.keys() == {
        unit.name for unit in units
    }
    for unit in units:
        for name in unit.linears:
            if unit.kind == "attention":
                assert torch.equal(found[name], of_rtn[name])
            else:
                # The unit before is rounded here and at full precision there.
                assert not torch.equal(found[name], of_gptq[name])


def test_a_sequential_cell_is_the_same_alone_and_in_a_sweep(
    session: Session, composed: Composed, tmp_path: Path
) -> None:
    before = {name: parameter.clone() for name, parameter in session.loaded.model.state_dict().items()}
    cells = [cell(composed, *SEQUENTIAL, f"bits={bits}") for bits in (2, 4)]
    cells.append(cell(composed, *SEQUENTIAL, "bits=2", "component.connector.blocks=[end]"))
    cells.append(cell(composed, "method=gptq", "component=connector", "bits=2"))
    together = weights(session, *cells)
    after = session.loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for index, one in enumerate(cells):
        alone = weights(replace(session, store=Store.open(tmp_path / f"alone{index}")), one)[0]
        assert all(torch.equal(alone[name], together[index][name]) for name in alone)
    whole, _, end, plain = together
    # Behind full-precision blocks the end differs from that behind quantized blocks; so does all behind the first unit.
    assert any(not torch.equal(end[name], whole[name]) for name in end)
    first = session.parts["connector"].units[0].linears
    assert all(torch.equal(whole[name], plain[name]) for name in first)
    assert any(not torch.equal(whole[name], plain[name]) for name in whole)


def test_sequential_keys_hold_what_of_the_part_is_quantized(session: Session, composed: Composed) -> None:
    def keys(*overrides: str) -> set[str]:
        return {request.key for request in session.requests(cell(composed, *SEQUENTIAL, *overrides))}

    every = keys("bits=3")
    for other in (
        "component.connector.blocks=[middle]",
        "component.connector.layers=[mlp]",
        "component.connector.bits=4",
    ):
        assert not every & keys("bits=3", other)
    # The settings of another part do not matter.
    assert every < keys("bits=3", "component=connector_language", "component.language.bits=8")


def test_a_sequential_part_goes_on_where_it_stopped(
    session: Session, composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cell(composed, *SEQUENTIAL, "bits=2")
    before = weights(session, one)[0]
    requests = session.requests(one)
    for lost in requests[3:5]:
        (session.store.root / "artifacts" / ArtifactKind.QUANTIZED / f"{lost.key}.safetensors").unlink()
    _, missing = load(requests, session.store)
    assert [request.key for request in missing] == [request.key for request in requests[3:5]]
    factorized = counted(monkeypatch, gptq, "factorize")
    assert not session.compute(missing, Progress(1))
    assert 0 < factorized.total() <= sum(len(request.unit.linears) for request in missing)
    found, missing = load(requests, session.store)
    assert not missing
    assert all(torch.equal(before[name], weight.dequantize()) for name, weight in found.weights.items())


def test_behind_a_unit_that_fails_the_others_fail(session: Session, composed: Composed) -> None:
    requests = session.requests(cell(composed, *SEQUENTIAL, "bits=2"))
    name = next(iter(requests[2].unit.linears))
    with changed(session, name) as weight:
        weight[0, 0] = float("nan")
        failed = session.compute(requests, Progress(1))
    assert list(failed) == [request.key for request in requests[2:]]
    assert all(name in str(error) for error in failed.values())
    assert "which is quantized before it, failed" in str(failed[requests[-1].key])
    assert not load(requests[:2], session.store)[1]


def test_an_offloaded_model_quantizes_the_same(session: Session, composed: Composed, tmp_path: Path) -> None:
    from mmq_sweeps.execution.executor import quiet_libraries
    from mmq_sweeps.models.loading import load_model
    from mmq_sweeps.quantization.targets import find_parts

    config = {**session.loaded.config, "device": "cpu", "device_map": "disk"}
    with quiet_libraries():
        offloaded = load_model(config)
    away = replace(
        session,
        loaded=offloaded,
        parts=find_parts(offloaded.model, config),
        store=Store.open(tmp_path / "away"),
    )
    cells = [cell(composed, *SEQUENTIAL, "bits=2"), cell(composed, "method=gptq", "bits=3", "component=connector")]
    for here, there in zip(weights(session, *cells), weights(away, *cells), strict=True):
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_what_is_loaded_are_codes(session: Session, composed: Composed) -> None:
    one = cell(composed, "bits=3", "component=connector")
    weights(session, one)
    found, _ = load(session.requests(one), session.store)
    assert all(isinstance(weight, QuantizedWeight) for weight in found.weights.values())
    assert all(weight.codes.dtype == torch.uint8 for weight in found.weights.values())
