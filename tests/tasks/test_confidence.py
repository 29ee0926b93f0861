"""How probable a model finds its own answers: equal to teacher forcing, whatever the batch, the beams and the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.tasks.confidence import generate_with_confidence
from mmq_sweeps.tasks.generation import GenerationTask, _generated

Composed = Callable[..., DictConfig]
ASKED = ("task=scenes_vqa", "method=none", "task.metrics=[gqa_accuracy,ece,aurc]", "task.limit=10", "tracker=none")


def made(composed: Composed, *overrides: str) -> tuple[GenerationTask, dict[str, Any]]:
    config = next(iter(plan([composed(*ASKED, *overrides)]).configs.values()))
    return build("task", config["task"]), config["model"]


def forced(loaded: LoadedModel, prompt: str, image: Any, tokens: Tensor) -> float:
    """The log-probability of ``tokens`` behind a prompt, by one forward pass over all of them."""
    inputs = dict(loaded.processor(images=[[image]], text=[prompt], return_tensors="pt"))
    length = inputs["input_ids"].shape[1]
    for name, more in (("input_ids", tokens[None]), ("attention_mask", torch.ones_like(tokens)[None])):
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    with torch.no_grad():
        logits = loaded.model(**inputs).logits[0, -len(tokens) - 1 : -1]
    assert inputs["input_ids"].shape[1] == length + len(tokens)
    return float(logits.double().log_softmax(-1).gather(1, tokens[:, None]).sum())


@pytest.mark.parametrize("model", ["tiny_blip2", "tiny_llava"])
@pytest.mark.parametrize("beams", [1, 3])
def test_it_is_the_log_probability_by_teacher_forcing(composed: Composed, model: str, beams: int) -> None:
    one, config = made(composed, f"model={model}")
    with quiet_libraries():
        loaded = load_model(config)
    items, ends = one.items[:6], set()
    for module in loaded.model.modules():
        end = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        ends |= {end} if isinstance(end, int) else set(end or ())
    prompts = [item.prompt_for(loaded.processor) for item in items]
    inputs = loaded.processor(
        images=[[item.example.image] for item in items],
        text=prompts,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    settings = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
    found = generate_with_confidence(loaded.model, loaded.to_device(dict(inputs)), settings)
    plain = loaded.model.generate(**loaded.to_device(dict(inputs)), **settings)
    assert torch.equal(found.tokens, plain)
    lengths = set()
    for row, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
        told, count = found.log_probabilities[row]
        written = _generated(found.tokens, inputs["input_ids"])[row]
        end = next((place for place, token in enumerate(written.tolist()) if token in ends), len(written) - 1)
        assert count == end + 1
        lengths.add(count)
        assert told == pytest.approx(forced(loaded, prompt, item.example.image, written[:count]), abs=1e-5)
    assert max(lengths) > 1


def test_the_batch_changes_no_confidence_and_items_have_it_only_if_asked(
    composed: Composed, loaded: LoadedModel, tmp_path: Path
) -> None:
    one, _ = made(composed)
    found = [replace(one, batch_size=size).predict(loaded, lambda done, total: None) for size in (1, 4, 10)]
    logs = [np.array([predictions.log_probabilities[item.id][0] for item in one.items]) for predictions in found]
    assert np.allclose(logs[0], logs[1], atol=1e-5)
    assert np.allclose(logs[0], logs[2], atol=1e-5)
    results = one.score(found[0], tmp_path)
    assert list(results) == ["gqa_accuracy", "ece", "aurc"]
    confidence = np.exp(logs[0])
    assert all(0 <= results[name].interval[0] <= results[name].interval[1] for name in ("ece", "aurc"))
    right = np.array(list(results["gqa_accuracy"].per_item.values()))
    assert list(results["ece"].per_item.values()) == pytest.approx(np.abs(right - confidence), abs=1e-6)
    plain, _ = made(composed, "task.metrics=[gqa_accuracy]")
    without = plain.predict(loaded, lambda done, total: None)
    assert without == found[2]
    assert not without.log_probabilities


def test_confidence_needs_an_accuracy_beside_it_and_questions(composed: Composed, tmp_path: Path) -> None:
    one, _ = made(composed, "task.metrics=[ece]")
    with pytest.raises(ValueError, match="ece needs a metric beside it that says which answers are right, such as gqa"):
        one.check([], tmp_path)
    with pytest.raises(ConfigError, match="ece is no metric of task=scenes_caption"):
        made(composed, "task=scenes_caption", "task.metrics=[ece]")
