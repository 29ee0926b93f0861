"""Cached outputs: the same figures bit for bit, no superfluous call of a part, and no trust in inputs that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import BaseModelOutput

from mmq_sweeps.config.sweep import Sweep, plan
from mmq_sweeps.errors import StoreError
from mmq_sweeps.execution.executor import execute, quiet_libraries
from mmq_sweeps.execution.failure_policy import record_cell
from mmq_sweeps.execution.output_cache import TOGETHER, OutputCache, Player, standing_in
from mmq_sweeps.execution.recorded_calls import fingerprint
from mmq_sweeps.execution.session import Sessions
from mmq_sweeps.reporting.progress import Progress
from mmq_sweeps.store.artifacts import Artifacts
from mmq_sweeps.store.claims import Claims
from mmq_sweeps.store.kinds import ArtifactKind
from mmq_sweeps.store.record import Record
from mmq_sweeps.store.store import Store
from tests.conftest import SMALL

Composed = Callable[..., DictConfig]
ROOM = 1 << 30


def figures(sweep: Sweep, cells: Any, store: Store, redo: Any = None) -> dict[str, tuple[Any, Any]]:
    """Run ``cells`` in one process on ``store``, and return their metrics and items."""
    found: dict[str, tuple[Any, Any]] = {}

    def keep(record: Record) -> None:
        assert record.done, record.error
        found[record.id] = (record.metrics, store.items(record.id))

    with Progress(len(cells)) as progress:
        execute(cells, sweep, Claims(store, redo or {}), progress, keep)
    return found


@pytest.mark.parametrize(
    ("model", "task", "parts", "bits"),
    [
        (
            "tiny_blip2", "scenes_caption", ("vision", "connector", "language"),
            [(3, 2, 2), (3, 2, 4), (3, 4, 2), (16, 4, 4)],
        ),
        ("tiny_llava", "scenes_vqa", ("vision", "language"), [(3, 2), (3, 4), (16, 4)]),
        ("tiny_blip2_itm", "scenes_retrieval task.shortlist=4", ("vision", "connector"), [(3, 2), (3, 4), (16, 4)]),
    ],
)  # fmt: skip
def test_a_cell_alone_equals_the_cell_in_a_sweep(
    composed: Composed, tmp_path: Path, model: str, task: str, parts: tuple[str, ...], bits: list[tuple[int, ...]]
) -> None:
    few = ("task.limit=8", "calibration.samples=8", "task.batch_size=4")
    common = (*SMALL, *few, f"model={model}", *f"task={task}".split(), "method=gptq")
    grid = [
        composed(*common, *(f"component.{part}.bits={width}" for part, width in zip(parts, widths, strict=True)))
        for widths in bits
    ]
    sweep = plan(grid)
    together = Store.open(tmp_path / "together")
    shared = figures(sweep, sweep.cells, together)
    assert list((together.root / "artifacts" / ArtifactKind.OUTPUTS).glob("*.json"))
    # The last cell, a cell in the middle and the baseline, each in a store of its own.
    for place in (0, len(sweep.cells) // 2, -1):
        cell = sweep.cells[place]
        one = Sweep((cell,), sweep.configs, sweep.settings)
        store = Store.open(tmp_path / f"alone{place}")
        assert figures(one, one.cells, store)[cell.id] == shared[cell.id]
        assert not (store.root / "artifacts" / ArtifactKind.OUTPUTS).exists()
    # Another process on the same store plays back the outputs that the first left.
    last = [cell.id for cell in sweep.cells[-2:]]
    again = figures(sweep, sweep.cells[-2:], together, {one: together.record_sha(one) for one in last})
    assert again == {one: shared[one] for one in last}


class Tower(nn.Module):
    """A part whose module returns all hidden states, of which its caller uses one."""

    def __init__(self) -> None:
        super().__init__()
        self.ran = 0

    def forward(self, x: Tensor, *, cache: Any = None) -> BaseModelOutput:  # noqa: ARG002
        self.ran += 1
        states = tuple(x * step for step in range(4))
        # Its strides are not those of a fresh tensor.
        return BaseModelOutput(last_hidden_state=states[-1].T, hidden_states=states)


def inputs(count: int) -> list[Tensor]:
    return [torch.arange(6.0).reshape(2, 3) + place for place in range(count)]


def used(tower: Tower, player: Player, given: list[Tensor]) -> list[Tensor]:
    found = []
    with standing_in(tower, player):
        for one in given:
            output = tower(one)
            found += [output.hidden_states[-2].clone(), output.last_hidden_state.clone()]
            assert output.last_hidden_state.stride() == (1, 3)
            output.last_hidden_state.zero_()
            output.pooler_output = "the caller's own"
    player.finish()
    return found


def player(outputs: OutputCache, put: Callable[[], None] = lambda: None, record: bool = True) -> Player:
    return Player(outputs, "key", put, record)


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_calls_are_played_back_from_memory_and_from_the_store(tmp_path: Path) -> None:
    tower, store = Tower(), Store.open(tmp_path)
    outputs = OutputCache(store, ROOM)
    given = inputs(TOGETHER + 3)
    first = used(tower, player(outputs), given)
    assert tower.ran == len(given)
    for source in (outputs, OutputCache(store, ROOM), OutputCache(store, 0)):
        put = Counter[str]()
        again = player(source, lambda put=put: put.update(["put"]))
        assert same(used(tower, again, given), first)
        assert (again.replayed, put.total(), tower.ran) == (len(given), 0, len(given))
    # Only values that are used take room: of four hidden states, one.
    kept = store.artifacts.load(ArtifactKind.OUTPUTS, "key-0")
    assert kept is not None
    assert len(kept[0]) == 2 * TOGETHER
    assert "forward" not in tower.__dict__


def test_other_inputs_are_never_answered_with_what_is_kept(tmp_path: Path) -> None:
    tower, outputs = Tower(), OutputCache(Store.open(tmp_path), ROOM)
    used(tower, player(outputs), inputs(4))
    other = inputs(4)
    other[2] = other[2] + 1
    put = Counter[str]()
    told = player(outputs, lambda: put.update(["put"]))
    assert same(used(tower, told, other), used(Tower(), player(OutputCache(Store.open(tmp_path / "b"), ROOM)), other))
    assert put["put"] >= 1
    # The order of parts differs from the key's, so nothing is cached under it any more.
    assert not player(outputs).begun


def test_what_is_stored_and_lost_is_run_again(tmp_path: Path) -> None:
    tower, store = Tower(), Store.open(tmp_path)
    given = inputs(TOGETHER * 2)
    first = used(tower, player(OutputCache(store, 0)), given)
    path = store.root / "artifacts" / ArtifactKind.OUTPUTS / "key-1.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    again = player(OutputCache(store, 0))
    assert same(used(tower, again, given), first)
    assert again.replayed == TOGETHER
    assert same(used(tower, again := player(OutputCache(store, 0)), given), first)
    assert again.replayed == 2 * TOGETHER


def test_a_cache_among_the_inputs_is_not_played_back(tmp_path: Path) -> None:
    tower, outputs = Tower(), OutputCache(Store.open(tmp_path), ROOM)
    for _ in range(2):
        told = player(outputs)
        with standing_in(tower, told):
            tower(inputs(1)[0], cache=DynamicCache())
        told.finish()
    assert tower.ran == 2
    assert not player(outputs).begun


def test_a_fingerprint_tells_shape_type_and_values() -> None:
    x = torch.zeros(100, 200)
    prints = [
        fingerprint([x]),
        fingerprint([x.T]),
        fingerprint([x.half()]),
        fingerprint([x + 1]),
        fingerprint([x, None]),
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint([x.clone()]) == prints[0]
    assert fingerprint([object()]) is None


def test_a_model_that_looks_at_more_than_was_kept_is_run(
    composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model asks for a hidden state that the cache does not hold, so the cell is measured without the cache."""
    common = (*SMALL, "model=tiny_llava", "task=scenes_caption", "component.vision.bits=3", "method=rtn")
    sweep = plan([composed(*common, f"component.language.bits={bits}") for bits in (3, 4, 8)])
    store = Store.open(tmp_path)
    figures(sweep, sweep.cells[:2], store)
    with quiet_libraries():
        session = Sessions(sweep, store).open(sweep.cells[2])
        config: Any = session.loaded.model.config
        other = -1 if config.vision_feature_layer != -1 else -2
        monkeypatch.setattr(config, "vision_feature_layer", other)
        with Progress(1) as progress:
            played = record_cell(sweep.cells[2], session, progress)
            session.weights.restore()
            fresh = replace(session, store=Store.open(tmp_path / "b"), uses={})
            alone = record_cell(sweep.cells[2], fresh, progress)
    assert played[0].done, played[0].error
    assert (played[0].metrics, played[1]) == (alone[0].metrics, alone[1])


def test_a_store_without_room_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = OutputCache(Store.open(tmp_path), ROOM)

    def full(*_: Any) -> None:
        raise StoreError(28, "no space left on the device")

    monkeypatch.setattr(Artifacts, "save", full)
    tower, given = Tower(), inputs(2 * TOGETHER)
    first = used(tower, player(outputs), given)
    (warning,) = caplog.messages
    assert "no space left" in warning
    assert same(used(tower, again := player(outputs), given), first)
    assert again.replayed == len(given)


def test_where_the_bound_leaves_no_room_memory_alone_keeps_outputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(tmp_path, max_gb=1e-9)
    outputs = OutputCache(store, ROOM)
    tower, given = Tower(), inputs(2 * TOGETHER)
    first = used(tower, player(outputs), given)
    (warning,) = caplog.messages
    assert "store.max_gb leaves no room" in warning
    assert not (store.root / "artifacts" / ArtifactKind.OUTPUTS).exists()
    assert same(used(tower, again := player(outputs), given), first)
    assert again.replayed == len(given)


def test_outputs_are_pinned_until_the_last_cell_that_needs_them(composed: Composed, tmp_path: Path) -> None:
    grid = [
        composed(*SMALL, "method=rtn", f"component.vision.bits={vision}", f"component.language.bits={language}")
        for vision, language in product((3, 4), (2, 4))
    ]
    sweep, store = plan(grid), Store.open(tmp_path)
    pinned: list[set[str]] = []

    def keep(record: Record) -> None:
        assert record.done, record.error
        pinned.append({key for kind, key in store.locks.pins() if kind == ArtifactKind.OUTPUTS})
        # Outputs that a cell needs from here on survive the requests of other processes until its turn comes.
        store.artifacts.eviction.prune(0, kinds=(ArtifactKind.OUTPUTS,))
        kept = {
            path.stem.rpartition("-")[0] for path in (store.root / "artifacts" / ArtifactKind.OUTPUTS).glob("*.json")
        }
        assert kept <= pinned[-1]
        stored.append(kept)

    stored: list[set[str]] = []
    with Progress(len(sweep.cells)) as progress:
        execute(sweep.cells, sweep, Claims(store), progress, keep)
    # A key of vision and a key of the connector for each of two bit-widths; full precision shares its outputs with no cell.
    assert [len(keys) for keys in pinned] == [4, 4, 4, 2, 2]
    assert stored[1] == stored[2] == pinned[1] - pinned[3]
    assert stored[3] == stored[4] == pinned[3]
    assert not store.locks.pins()
