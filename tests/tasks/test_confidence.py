"""The probability of a model's own answers equals teacher forcing with any batch, number of beams and model."""

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
from transformers import T5Config, T5ForConditionalGeneration

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.execution.executor import quiet_libraries
from mmq_sweeps.models.loading import LoadedModel, load_model
from mmq_sweeps.tasks.generation.confidence import generate_with_confidence
from mmq_sweeps.tasks.generation.inputs import new_tokens
from mmq_sweeps.tasks.generation.task import GenerationTask

Composed = Callable[..., DictConfig]
ASKED = ("task=scenes_vqa", "method=none", "task.metrics=[gqa_accuracy,ece,aurc]", "task.limit=6", "tracker=none")


def made(composed: Composed, *overrides: str) -> tuple[GenerationTask, dict[str, Any]]:
    config = next(iter(plan([composed(*ASKED, *overrides)]).configs.values()))
    return build("task", config["task"]), config["model"]


def forced(loaded: LoadedModel, prompt: str, image: Any, tokens: Tensor) -> float:
    """Return the log-probability of ``tokens`` after a prompt, from a single forward pass over all of them."""
    inputs = dict(loaded.processor(images=[[image]], text=[prompt], return_tensors="pt"))
    length = inputs["input_ids"].shape[1]
    for name, more in (("input_ids", tokens[None]), ("attention_mask", torch.ones_like(tokens)[None])):
        inputs[name] = torch.cat([inputs[name], more], dim=1)
    with torch.no_grad():
        logits = loaded.model(**inputs).logits[0, -len(tokens) - 1 : -1]
    assert inputs["input_ids"].shape[1] == length + len(tokens)
    return float(logits.double().log_softmax(-1).gather(1, tokens[:, None]).sum())


@pytest.mark.parametrize("model", ["tiny_blip2", "tiny_llava"])
def test_it_is_the_log_probability_by_teacher_forcing(composed: Composed, model: str) -> None:
    one, config = made(composed, f"model={model}")
    with quiet_libraries():
        loaded = load_model(config)
    items = one.items[:4]
    prompts = [item.prompt_for(loaded.processor) for item in items]
    shown = [[item.example.image] for item in items]
    inputs = dict(loaded.processor(images=shown, text=prompts, return_tensors="pt", padding=True, padding_side="left"))
    for beams in (1, 3):
        settings = {"max_new_tokens": 6, "num_beams": beams, "do_sample": False}
        found = generate_with_confidence(loaded.model, inputs, settings)
        assert torch.equal(found.tokens, loaded.model.generate(**inputs, **settings))
        written = new_tokens(found.tokens, inputs["input_ids"])
        for row, (item, prompt) in enumerate(zip(items, prompts, strict=True)):
            told, count = found.log_probabilities[row]
            text = loaded.processor.batch_decode(written[row : row + 1, : count - 1], skip_special_tokens=True)
            assert text == loaded.processor.batch_decode(written[row : row + 1], skip_special_tokens=True)
            assert told == pytest.approx(forced(loaded, prompt, item.example.image, written[row, :count]), abs=1e-5)
            assert 1 < count < 6


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.7}])
def test_a_decoder_of_its_own_an_early_end_and_penalties(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 12}
    model = T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0, initializer_factor=20.0)).eval()
    asked = {"input_ids": torch.randint(2, 12, (8, 5)), "attention_mask": torch.ones(8, 5, dtype=torch.long)}
    found = generate_with_confidence(model, asked, {"max_new_tokens": 6, "repetition_penalty": 1.3, **settings})
    ended = 0
    for row, (told, count) in enumerate(found.log_probabilities):
        tokens = found.tokens[row : row + 1, : count + 1]
        assert count == 6 or tokens[0, -1] == model.config.eos_token_id
        ended += count < 6
        with torch.no_grad():
            own = {name: tensor[row : row + 1] for name, tensor in asked.items()}
            logs = model(**own, decoder_input_ids=tokens[:, :-1]).logits.log_softmax(-1)
        assert told == pytest.approx(float(logs[0].gather(1, tokens[0, 1:, None]).sum()), abs=1e-4)
    assert 0 < ended < 8


def test_the_batch_changes_no_confidence_and_items_have_it_only_if_asked(
    composed: Composed, loaded: LoadedModel, tmp_path: Path
) -> None:
    one, _ = made(composed)
    found = [replace(one, batch_size=size).predict(loaded, lambda done, total: None) for size in (1, 6)]
    logs = [np.array([predictions.log_probabilities[item.id][0] for item in one.items]) for predictions in found]
    assert np.allclose(logs[0], logs[1], atol=1e-5)
    results = one.score(found[0], tmp_path)
    assert list(results) == ["gqa_accuracy", "ece", "aurc"]
    confidence = np.exp(logs[0])
    assert all(0 <= results[name].interval[0] <= results[name].interval[1] for name in ("ece", "aurc"))
    right = np.array(list(results["gqa_accuracy"].per_item.values()))
    assert list(results["ece"].per_item.values()) == pytest.approx(np.abs(right - confidence), abs=1e-6)
    plain, _ = made(composed, "task.metrics=[gqa_accuracy]")
    without = plain.predict(loaded, lambda done, total: None)
    assert without == found[1]
    assert not without.log_probabilities


def test_confidence_needs_an_accuracy_beside_it_and_questions(composed: Composed, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task.metrics=\[ece\]: needs a metric that says which answers are right"):
        made(composed, "task.metrics=[ece]")
    one = replace(made(composed, "task.metrics=[gqa_accuracy,ece]")[0], metrics=["ece"])
    with pytest.raises(ValueError, match="ece needs a metric beside it that says which answers are right, such as gqa"):
        one.check([], tmp_path)
    with pytest.raises(ConfigError, match=r"=\[pope_yes_ratio,ece\]: needs a metric that says which answers are right"):
        made(composed, "task.metrics=[pope_yes_ratio,ece]")
    with pytest.raises(ConfigError, match="ece is no metric of task=scenes_caption"):
        made(composed, "task=scenes_caption", "task.metrics=[ece]")
