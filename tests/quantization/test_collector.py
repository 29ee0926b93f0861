"""The sums behind the statistics of a linear's inputs: exact over long runs, in a bound of memory, shared or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmq_sweeps.quantization.calibration import Collector, sums


def test_sharing_that_changes_between_batches_is_an_error() -> None:
    block = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    collector = Collector(["a", "b"])
    x = torch.ones(2, 3)
    with collector.listening(block):
        collector.begin(None)
        block["a"](x), block["b"](x)
        collector.begin(None)
        block["a"](x)
        with pytest.raises(RuntimeError, match="b shares its input with a in one batch but not in another"):
            block["b"](x.clone())


def test_a_long_run_loses_nothing_to_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in single precision stall: after many tokens the next addition is below the last digit."""
    # Here every token stands for the many that are multiplied at once.
    monkeypatch.setattr(sums, "TOKENS_AT_ONCE", 1)
    model = nn.ModuleDict({"a": nn.Linear(2, 1)})
    collector = Collector(["a"])
    large, small = torch.full((1, 2), 4096.0), torch.tensor([[1.0, -1.0]])
    with collector.listening(model):
        for x in (large, *[small] * 3000):
            collector.begin(None)
            model["a"](x)
    stats = collector.statistics()[0].stats
    expected = (2.0**24 + 3000) / 3001
    assert stats.count == 3001
    assert stats.gram[0, 0].item() == pytest.approx(expected, rel=1e-7)
    assert stats.gram[0, 1].item() == pytest.approx((2.0**24 - 3000) / 3001, rel=1e-7)


@pytest.mark.parametrize("least", [1, 8, 64])
@pytest.mark.parametrize("lengths", [[3], [8, 8, 8], [5, 0, 20, 1, 7, 7], [64, 2, 100, 1]], ids=str)
def test_tokens_wait_in_a_bound_of_memory_and_none_is_lost(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], least: int
) -> None:
    monkeypatch.setattr(sums, "LEAST_TOKENS", least)
    monkeypatch.setattr(sums, "WAITING_BYTES", 0)
    model = nn.ModuleDict({"a": nn.Linear(6, 1)})
    collector = Collector(["a"])
    inputs = [torch.randn(length, 6, generator=torch.Generator().manual_seed(length)) for length in lengths]
    with collector.listening(model):
        for x in inputs:
            collector.begin(None)
            model["a"](x)
    assert len(collector._sums["a"]._waiting) <= least
    stats, every = collector.statistics()[0].stats, torch.cat(inputs)
    assert stats.count == len(every)
    torch.testing.assert_close(stats.gram, every.T @ every / len(every))


def test_tokens_that_are_not_finite_are_counted() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    collector = Collector(["a", "b"])
    x = torch.ones(5, 2)
    x[1, 0], x[3, 1] = float("inf"), float("nan")
    with collector.listening(model):
        collector.begin(None)
        model["a"](x), model["b"](torch.ones(1, 2))
    assert {shared.linears: shared.not_finite for shared in collector.statistics()} == {("a",): 2, ("b",): 0}


def test_a_gram_matrix_is_summed_by_panels_without_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 1, 20, 10, generator=torch.Generator().manual_seed(0))
    linears = nn.ModuleDict({"linear": nn.Linear(10, 2)})
    monkeypatch.setattr("mmq_sweeps.quantization.calibration.sums.PANEL", 4)
    collector = Collector(["linear"])
    with collector.listening(linears):
        for batch in x:
            collector.begin(None)
            linears["linear"](batch)
    gram = collector.statistics()[0].stats.gram
    rows = x.flatten(0, 2).double()
    assert torch.allclose(gram, (rows.T @ rows / len(rows)).float(), atol=1e-6)
    assert torch.equal(gram, gram.T)
