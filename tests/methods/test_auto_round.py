"""AutoRound's own solver stores the codes that the library would store, and leaves transformers as it is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmq_sweeps.methods import auto_round
from mmq_sweeps.methods.auto_round import AutoRound, learn, stored, wrapped
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format, QuantizedWeight, round_nearest
from tests.commands import run_forked
from tests.conftest import command_environment

pytestmark = pytest.mark.skipif(find_spec("auto_round") is None, reason="pip install -e '.[auto-round]'")
FORMATS = [Format(bits, size, symmetric) for bits in (2, 4) for size in ("channel", 16) for symmetric in (False, True)]


def layer() -> tuple[Tensor, LayerStats]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 32, generator=generator) * torch.logspace(-1, 1, 32)
    weight = 0.1 * torch.randn(24, 32, generator=generator)
    return weight, LayerStats(x.T @ x / len(x), x.abs().mean(dim=0), len(x), x)


def output_error(weight: Tensor, quantized: QuantizedWeight, stats: LayerStats) -> float:
    change = quantized.dequantize() - weight
    return float(((change @ stats.gram) * change).sum())


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_the_weight_is_the_librarys_with_scales_as_stored(form: Format) -> None:
    weight, stats = layer()
    learned = learn(weight, stats.gram, form, 20, None)
    ours = stored(weight, form, learned).dequantize()
    theirs = wrapped(weight.clone(), form).unwrapper(learned).weight
    # A scale has a half's digits here and all of a float's there, so few weights are rounded otherwise.
    assert float((~torch.isclose(ours, theirs, rtol=2e-3, atol=1e-6)).float().mean()) < 0.01


@pytest.mark.parametrize("form", FORMATS, ids=str)
def test_learning_lowers_the_output_error(form: Format) -> None:
    weight, stats = layer()
    method = AutoRound(form.group_size, form.symmetric)
    solved = method.quantize([weight], stats, form).weights[0]
    assert output_error(weight, solved, stats) < output_error(weight, round_nearest(weight, form), stats)


def test_the_same_result_every_time_and_the_weight_unchanged() -> None:
    weight, stats = layer()
    before = weight.clone()
    first, second = (AutoRound(iterations=10).quantize([weight], stats, Format(3)).weights[0] for _ in range(2))
    assert torch.equal(first.dequantize(), second.dequantize())
    assert torch.equal(weight, before)


def test_transformers_stays_as_it_is(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "assert 'auto_round' not in sys.modules\n"
        "from transformers import AutoModelForCausalLM as M\n"
        "from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS as R\n"
        "before = M.from_pretrained.__func__, sorted(R)\n"
        "from mmq_sweeps.methods import auto_round\n"
        "auto_round.load()\n"
        "assert before == (M.from_pretrained.__func__, sorted(R))\n"
        "assert 'auto_round' not in sys.modules\n"
    )
    done = run_forked("-c", [script], tmp_path, command_environment())
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"iterations": 0}, "iterations=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"group_size": 0}, "group_size=0"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AutoRound(**fields)  # type: ignore[arg-type]


def test_without_the_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_round, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"pip install 'mmq-sweeps\[auto-round\]'"):
        AutoRound()
