"""The likelihood of the right texts equals a loss computed by hand, and is reported as a metric."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from mmq_sweeps.config.instantiate import build
from mmq_sweeps.config.sweep import plan
from mmq_sweeps.errors import ConfigError
from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.search.prediction.sensitivity import divergence
from mmq_sweeps.tasks.generation.likelihood import LIKELIEST

Composed = Callable[..., DictConfig]
FORCED = (
    "task.teacher_forced=true",
    "task.metrics=[log_likelihood]",
    "task.limit=6",
    "task.batch_size=4",
    "tracker=none",
)


def made(composed: Composed, *overrides: str) -> object:
    config = next(iter(plan([composed("method=none", *FORCED, *overrides)]).configs.values()))
    return build("task", config["task"])


@pytest.mark.parametrize("name", ["scenes_caption", "scenes_vqa"])
def test_it_is_the_mean_log_probability_of_the_right_tokens(
    composed: Composed, loaded: LoadedModel, tmp_path: Path, name: str
) -> None:
    task = made(composed, f"task={name}")
    found = task.predict(loaded, lambda done, total: None)
    item = task.items[1]
    answer = item.references[0]
    prompt = item.prompt_for(loaded.processor)
    inputs = loaded.processor(images=[[item.example.image]], text=[f"{prompt} {answer}".strip()], return_tensors="pt")
    with torch.no_grad():
        logits = loaded.model(**inputs).logits[0]
    tokens = inputs["input_ids"][0]
    count = len(loaded.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
    logs = logits[-count - 1 : -1].log_softmax(-1)
    expected = logs.gather(-1, tokens[-count:, None]).mean()
    told = json.loads(found[item.id])
    assert told["log_likelihood"] == pytest.approx(float(expected), abs=1e-4)
    assert len(told["likeliest"]) == count
    assert all(len(place) == LIKELIEST for place in told["likeliest"])
    result = task.score(found, tmp_path)["log_likelihood"]
    assert result.count == 6
    assert result.value < 0
    assert divergence(found, found) == pytest.approx(0.0, abs=1e-6)


def test_damage_makes_right_texts_less_likely(composed: Composed, loaded: LoadedModel) -> None:
    task = made(composed)
    full = task.predict(loaded, lambda done, total: None)
    linear = "language_model.model.decoder.layers.0.fc1"
    name = next(name for name, _ in loaded.model.named_modules() if name.endswith(linear))
    with loaded.weights_replaced({name: loaded.weight(name).round()}):
        damaged = task.predict(loaded, lambda done, total: None)
    assert divergence(full, damaged) > 0.001


def test_other_metrics_do_not_fit(composed: Composed) -> None:
    with pytest.raises(ConfigError, match=r"cider is no metric of task=scenes_caption\. Choose log_likelihood"):
        made(composed, "task.metrics=[cider]")
    with pytest.raises(ConfigError, match="log_likelihood is no metric of task=scenes_caption"):
        made(composed, "task.teacher_forced=false")
