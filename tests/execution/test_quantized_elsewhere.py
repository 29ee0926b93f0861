"""A checkpoint that was quantized elsewhere is measured in the format it has, and stands beside our cells."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.__main__ import main
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import load_model
from mmq_sweeps.models.quantized import loaders
from mmq_sweeps.models.quantized.checkpoint import read_checkpoint
from mmq_sweeps.store.store import Store
from tests.models.quantized.folders import EMBEDDED, as_gptq, edit, rewrite

FEW = ("task.limit=12", "tracker=none", "model=tiny_blip2", "--json")
Command = Callable[..., subprocess.CompletedProcess[str]]


def told(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def analysis(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return the output of ``python -m analysis``."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["analysis", *arguments])
        main()
    return capsys.readouterr().out


def test_it_is_measured_shown_and_recommended_beside_ours(
    command: Command, tmp_path: Path, packed_blip2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(command(*FEW, "-m", "method=rtn", "bits=2"))
    cells = told(command(*FEW, "-m", f"model.checkpoint=embedded/tiny_blip2,{packed_blip2}", "method=none"))["cells"]
    full, own = cells
    assert (full["method"], own["method"]) == ("none", "quantized elsewhere")
    assert own["family"] == full["family"] == "tiny_blip2, scenes_caption"
    assert own["bits"] == {"vision": "4 g32", "language": "3"}
    assert own["loads_in"] == ["transformers"]
    assert "difference" in own["metrics"]["cider"]
    # Recorded with the files on disk.
    record = Store.existing(tmp_path / "runs").record(own["id"])
    assert record is not None
    assert not record.baseline
    linears = read_checkpoint(packed_blip2).linears.values()
    total = record.size["total"]
    rest = total["parameters"] - sum(linear.weights for linear in linears)
    assert total["bpw_exact"] == (sum(linear.bits for linear in linears) + 16 * rest) / total["parameters"]
    assert total["stored_bytes"] == read_checkpoint(packed_blip2).size
    assert record.size["parts"]["language"]["bpw_paper"] < record.size["parts"]["vision"]["bpw_paper"] < 16
    assert record.size["parts"]["connector"]["bpw_exact"] == 16
    assert record.notes["stored"]["method"] == "compressed-tensors"
    # In the analysis: a single family, with the cell among our own.
    source = ("--source", str(tmp_path / "runs"))
    (frontier,) = json.loads(analysis(capsys, "frontier", *source, "--json"))
    assert frontier["cells"] == 3
    assert "quantized elsewhere vision 4 language 3" in [row["assignment"] for row in frontier["frontier"]]
    shown = analysis(capsys, "table", *source)
    assert [line.split()[0] for line in shown.splitlines() if "16" in line or "2 " in line].count("quantized") == 1
    best = analysis(capsys, "recommend", *source, "--max-bpw", "7")
    assert "best measured: quantized elsewhere vision 4 language 3" in best


def test_what_is_measured_is_the_loaded_model(packed_blip2: Path, model_config: dict[str, Any]) -> None:
    """The cell's figures equal, bit for bit, those of a model with the weights that compressed-tensors decompresses."""
    with quiet_libraries():
        measured = load_model({**model_config, "checkpoint": str(packed_blip2), "revision": None})
        dense = load_model(model_config).model
    weights = {name: value for name, value in measured.model.state_dict().items() if not name.endswith("_scale")}
    kept = {name: weights[name] for name in dense.state_dict()}
    assert sum(not torch.equal(value, dense.state_dict()[name]) for name, value in kept.items()) == 60
    dense.load_state_dict(kept)
    inputs = {
        "pixel_values": torch.rand(2, 3, *[dense.config.vision_config.image_size] * 2),
        "input_ids": torch.full((2, dense.config.num_query_tokens), dense.config.image_token_id),
    }
    with torch.no_grad():
        assert torch.equal(measured.model(**inputs).logits, dense(**inputs).logits)
    assert measured.stored is not None
    assert len(measured.stored.linears) == 60


def test_quantizing_it_further_is_refused(command: Command, packed_blip2: Path) -> None:
    done = command(*FEW, f"model.checkpoint={packed_blip2}", "method=rtn", "bits=3")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert (
        f"error: model.checkpoint={packed_blip2}: is quantized already, by compressed-tensors; quantizing it further"
        in (done.stderr)
    )
    assert "method=none to measure this one as it is" in done.stderr


def test_two_of_them_are_told_apart_by_their_folders(
    command: Command, packed_blip2: Path, packed_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(packed_copy, lambda weights: {**weights, "query_tokens": weights["query_tokens"] * 0.99})
    checkpoints = f"model.checkpoint=embedded/tiny_blip2,{packed_blip2},{packed_copy}"
    full, *cells = told(command(*FEW, "-m", checkpoints, "method=none"))["cells"]
    assert full["method"] == "none"
    assert len({cell["id"] for cell in cells}) == 2
    assert {cell["label"] for cell in cells} == {
        f"quantized elsewhere model.checkpoint={packed_blip2}",
        f"quantized elsewhere model.checkpoint={packed_copy}",
    }
    (frontier,) = json.loads(analysis(capsys, "frontier", "--source", str(tmp_path / "runs"), "--json"))
    assert frontier["full"] is not None


def test_one_that_cannot_be_loaded_is_refused_before_it_is_measured(command: Command, packed_copy: Path) -> None:
    """All other checkpoints that no loader takes are in tests/models/quantized/test_loaders.py."""
    name = "language_model.model.decoder.layers.0.fc1.weight_scale"
    rewrite(packed_copy, lambda weights: {key: value for key, value in weights.items() if key != name})
    done = command(*FEW, f"model.checkpoint={packed_copy}", "method=none")
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"does not load it: 1 weights are missing, which a loader draws at random ({name})" in done.stderr


def test_a_package_that_is_not_installed_is_named_with_its_command(
    model_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "_installed", lambda module: module != "auto_round")
    folder = as_gptq(EMBEDDED / "tiny_blip2", tmp_path / "it", lambda name: 4 if name.endswith(".fc1") else None)
    edit(folder, lambda own: own["quantization_config"].update(quant_method="auto-round"))
    with pytest.raises(ValueError, match=r"which takes packages that are not installed: pip install auto-round$"):
        load_model({**model_config, "checkpoint": str(folder), "revision": None})


def test_its_files_are_its_identity(composed: Callable[..., Any], packed_copy: Path) -> None:
    """The id covers the weights, and the configuration that says how they are read."""
    from mmq_sweeps.config.sweep import plan

    def planned() -> Any:
        (cell,) = plan(
            [composed("model=tiny_blip2", f"model.checkpoint={packed_copy}", "method=none", "tracker=none")]
        ).cells
        return cell

    first = planned()
    assert (first.names["method"], first.model["quantized"]) == ("quantized elsewhere", "compressed-tensors")
    assert first.title() == "quantized elsewhere"
    edit(packed_copy, lambda own: own["quantization_config"].update(ignore=["re:.*fc9"]))
    second = planned()
    assert second.id != first.id
    rewrite(packed_copy, lambda weights: {**weights, "query_tokens": weights["query_tokens"] + 1})
    assert planned().id not in (first.id, second.id)


def test_full_precision_keeps_its_id(composed: Callable[..., Any]) -> None:
    from mmq_sweeps.config.sweep import plan

    (cell,) = plan([composed("model=tiny_blip2", "method=none", "tracker=none")]).cells
    assert "quantized" not in cell.model
    assert cell.names["method"] == "none"


def test_a_dtype_that_is_not_its_own_is_told(
    packed_blip2: Path, packed_copy: Path, model_config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    edit(packed_copy, lambda own: own.update(dtype="bfloat16"))
    with quiet_libraries():
        load_model({**model_config, "checkpoint": str(packed_copy), "revision": None})
        assert "is stored in bfloat16 and measured in float32; model.dtype=bfloat16 measures it as it is" in caplog.text
        caplog.clear()
        load_model({**model_config, "checkpoint": str(packed_blip2), "revision": None})
    assert not caplog.text
