"""Rows leave decoding once their text has ended: in every family the tokens stay those of ``generate``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mmq_sweeps.models.finished_rows import KNOWN, finished_rows_left_out
from mmq_sweeps.models.loading import LoadedModel
from tests.models.toys import BATCH, FAMILIES, awake, toy_batch, toy_model

GREEDY = {"num_beams": 1, "max_new_tokens": 8, "do_sample": False}


def decoder_of(loaded: LoadedModel) -> Any:
    """Return the inner model that generates."""
    return getattr(loaded.model, "language_model", loaded.model)


def asked(loaded: LoadedModel, name: str) -> dict[str, Any]:
    """Make a batch, padded on the left, whose first row ends at its third token and whose second row goes on."""
    batch = toy_batch(name)
    batch["attention_mask"][:] = 1
    batch["attention_mask"][1, :2] = 0
    awake(loaded.model)
    config = decoder_of(loaded).generation_config
    config.pad_token_id, config.eos_token_id = 1, None
    first, second = loaded.model.generate(**batch, **GREEDY)[:, -8:].tolist()
    config.eos_token_id = [next(token for token in first[2:] if token not in second), 3]
    return batch


def steps(loaded: LoadedModel, batch: dict[str, Any], **settings: Any) -> tuple[torch.Tensor, list[int]]:
    """Return the tokens, and how many rows each step computed."""
    rows: list[int] = []
    head = decoder_of(loaded).get_output_embeddings()
    hook = head.register_forward_hook(lambda _head, inputs, _output: rows.append(len(inputs[0])))
    try:
        with torch.no_grad(), finished_rows_left_out(loaded, GREEDY | settings):
            return loaded.model.generate(**batch, **GREEDY | settings), rows
    finally:
        hook.remove()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "blip2_itm_vit_g"])
def test_the_tokens_of_every_family_are_those_of_generate(name: str) -> None:
    torch.manual_seed(0)
    loaded = toy_model(name)
    batch = asked(loaded, name)
    with torch.no_grad():
        plain = loaded.model.generate(**batch, **GREEDY)
    for _ in range(2):
        tokens, rows = steps(loaded, batch)
        assert torch.equal(tokens, plain)
        known = any(type(module).__name__ in KNOWN for module in loaded.model.modules())
        assert (1 in rows) == known
    assert "forward" not in vars(decoder_of(loaded))


def test_beams_and_settings_that_are_not_known_to_be_safe_compute_every_row() -> None:
    torch.manual_seed(0)
    loaded = toy_model("blip2_opt_2_7b")
    batch = asked(loaded, "blip2_opt_2_7b")
    for settings in ({"num_beams": 2}, {"repetition_penalty": 1.2}):
        with torch.no_grad():
            plain = loaded.model.generate(**batch, **GREEDY | settings)
        tokens, rows = steps(loaded, batch, **settings)
        assert torch.equal(tokens, plain)
        assert set(rows) == {BATCH * settings.get("num_beams", 1)}
    inherited = replace(loaded, config={**loaded.config, "inherit_generation": True})
    assert min(steps(inherited, batch)[1]) == BATCH
