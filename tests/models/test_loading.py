"""Checkpoints of another class, damaged, or out of reach are refused with a line that says which would serve."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.identity.checkpoint import weights_digest
from mmq_sweeps.models.loading import LoadedModel, load_model
from tests.conftest import SMALL

EMBEDDED = Path(__file__).parents[2] / "mmq_sweeps" / "models" / "embedded"
# Nothing listens there.
UNREACHABLE = "http://127.0.0.1:9"
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Copy the embedded captioner, to be damaged."""
    return shutil.copytree(EMBEDDED / "tiny_blip2", tmp_path / "checkpoint")


def load(folder: Path, model_config: dict[str, Any], **options: Any) -> LoadedModel:
    with quiet_libraries():
        return load_model({**model_config, "checkpoint": str(folder), "revision": None, **options})


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = folder / "model.safetensors"
    save_file(change(load_file(weights)), weights, metadata={"format": "pt"})


def test_a_checkpoint_of_another_family(model_config: dict[str, Any]) -> None:
    message = "LlavaForConditionalGeneration: is of the family llava, but .*tiny_blip2 is of blip-2, .* names Blip2"
    with pytest.raises(ValueError, match=message):
        load(EMBEDDED / "tiny_blip2", model_config, class_name="LlavaForConditionalGeneration")


def test_a_checkpoint_of_another_class_of_the_family(model_config: dict[str, Any]) -> None:
    """transformers would fill missing weights with random values, and only warn."""
    message = (
        r"Blip2ForImageTextRetrieval: does not fit .*names Blip2ForConditionalGeneration: \d+ weights are missing \("
    )
    with pytest.raises(ValueError, match=message):
        load(EMBEDDED / "tiny_blip2", model_config, class_name="Blip2ForImageTextRetrieval")


@pytest.mark.parametrize("class_name", ["Blip3ForConditionalGeneration", "Trainer", "Blip2Config", "BertModel"])
def test_a_class_that_is_no_such_model(class_name: str, model_config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"model.class_name={class_name}: "):
        load(EMBEDDED / "tiny_blip2", model_config, class_name=class_name)


def test_weights_that_are_not_those_of_the_configuration(checkpoint: Path, model_config: dict[str, Any]) -> None:
    gone, other = "qformer.layernorm.weight", "language_projection.weight"
    rewrite(checkpoint, lambda weights: {name: weight for name, weight in weights.items() if name != gone})
    with pytest.raises(ValueError, match=rf"1 weights are missing \({gone}\)$"):
        load(checkpoint, model_config)
    rewrite(checkpoint, lambda weights: {**weights, gone: torch.ones(64), other: torch.ones(64, 65)})
    with pytest.raises(ValueError, match=rf"1 weights have another shape \({other}\)$"):
        load(checkpoint, model_config)


def test_a_configuration_with_fewer_layers_than_the_weights(checkpoint: Path, model_config: dict[str, Any]) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 5
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"\d+ weights have no place \(vision_model.encoder.layers.5\..*, \.\.\.\)$"):
        load(checkpoint, model_config)


def test_buffers_of_older_releases_are_left_out(
    checkpoint: Path, model_config: dict[str, Any], loaded: LoadedModel
) -> None:
    old = "vision_model.encoder.layers.0.position_ids"
    rewrite(checkpoint, lambda weights: {**weights, old: torch.arange(4)})
    again = load(checkpoint, model_config)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(again.model.get_parameter(name), parameter)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"), "cannot read its weights"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights; expected .*safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: shutil.rmtree(folder), "is not a folder"),
    ],
)
def test_a_damaged_folder(
    spoil: Callable[[Path], Any], message: str, checkpoint: Path, model_config: dict[str, Any]
) -> None:
    spoil(checkpoint)
    with pytest.raises(ValueError, match=message):
        load(checkpoint, model_config)


def test_the_digest_follows_the_weights(checkpoint: Path, model_config: dict[str, Any]) -> None:
    before = weights_digest(checkpoint)
    assert before == weights_digest(EMBEDDED / "tiny_blip2")
    rewrite(checkpoint, lambda weights: {**weights, "query_tokens": weights["query_tokens"] + 1})
    assert weights_digest(checkpoint) != before
    with pytest.raises(ValueError, match="are not those that the yaml names"):
        load(checkpoint, {**model_config}, revision=f"sha256:{before}")


def assert_both_ways_out(done: subprocess.CompletedProcess[str], name: str) -> None:
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"model.checkpoint={name}: " in done.stderr
    assert f"`hf download {name}" in done.stderr
    assert "HF_HOME" in done.stderr
    assert "model.checkpoint=FOLDER" in done.stderr


def test_a_checkpoint_that_is_not_cached_without_network(
    command: Command, tmp_path: Path, model_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {"HF_HOME": str(tmp_path / "empty"), "HF_ENDPOINT": UNREACHABLE}
    done = command("model=blip2_opt_2_7b", "model.revision=51572668da0eb669e01a189dc22abe6088589a24", **environment)
    assert_both_ways_out(done, "Salesforce/blip2-opt-2.7b")
    assert "--revision 51572668da0eb669e01a189dc22abe6088589a24`" in done.stderr
    assert f"{UNREACHABLE} cannot be reached" in done.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE forbids .*`hf download someone/tiny` where there is network"):
        load_model({**model_config, "checkpoint": "someone/tiny"})


def test_a_cached_checkpoint_needs_no_network(command: Command, tmp_path: Path) -> None:
    """The hub's own cache is filled as by ``hf download``; a request for each file would be retried for minutes."""
    repository = tmp_path / "home" / "hub" / "models--someone--tiny"
    shutil.copytree(EMBEDDED / "tiny_blip2", repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": UNREACHABLE}
    arguments = ["model=tiny_blip2", "model.checkpoint=someone/tiny", "method=none", *SMALL, "--json"]
    done = command(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    assert_both_ways_out(command(*arguments, "retry=all", **environment), "someone/tiny")
