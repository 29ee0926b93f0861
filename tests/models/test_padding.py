"""Padding read from every form of mask that blocks are called with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmq_sweeps.models.padding import cross_mask, is_another_sequence, key_mask, own_mask

HIDDEN = torch.zeros(2, 4, 8)
# The last two tokens of the second row are padding.
COUNTS = torch.tensor([[True, True, True, True], [True, True, False, False]])
PAIRS = COUNTS[:, None, None, :].expand(2, 1, 4, 4)
CAUSAL = PAIRS & torch.ones(4, 4, dtype=torch.bool).tril()
HIDDEN_FROM_ITSELF = ~(~COUNTS[:, None, None, :] & ~COUNTS[:, None, :, None])


def added(visible: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


@pytest.mark.parametrize(
    "mask",
    [
        COUNTS, COUNTS.long(), COUNTS.float(), COUNTS[:, None, None, :], PAIRS, PAIRS[:, 0], PAIRS.expand(2, 3, 4, 4),
        CAUSAL, HIDDEN_FROM_ITSELF, added(PAIRS), added(CAUSAL), added(PAIRS, torch.float16), added(HIDDEN_FROM_ITSELF),
        added(PAIRS).masked_fill(~PAIRS, -torch.inf),
    ],
)  # fmt: skip
def test_every_form_of_a_mask_says_which_tokens_are_padding(mask: Tensor) -> None:
    found = own_mask({"hidden_states": HIDDEN, "attention_mask": mask}, HIDDEN)
    assert found is not None
    assert torch.equal(found, COUNTS)


@pytest.mark.parametrize(
    "mask",
    [
        None, torch.ones(2, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool).tril(), torch.zeros(1, 1, 4, 4),
        # Images that are packed into a row see themselves only; a bias of positions hides nothing.
        torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)).bool()[None, None], -torch.rand(1, 8, 4, 4) * 100,
        torch.ones(5, 1, 7, 7, dtype=torch.bool),
    ],
)  # fmt: skip
def test_a_mask_that_hides_no_token_from_itself_has_no_padding(mask: Tensor | None) -> None:
    assert own_mask({"attention_mask": mask}, HIDDEN) is None


def test_keys_of_more_tokens_than_the_hidden_state_are_masked_apart() -> None:
    """Latents attend to patches and to themselves."""
    seen = torch.cat([COUNTS, torch.ones(2, 3, dtype=torch.bool)], dim=1)
    latents = torch.zeros(2, 3, 8)
    named = {"attention_mask": added(seen[:, None, None, :].expand(2, 1, 3, 7))}
    assert own_mask(named, latents) is None
    found = key_mask(named, latents)
    assert found is not None
    assert torch.equal(found, seen)
    assert key_mask({"attention_mask": PAIRS}, HIDDEN) is None


def test_what_a_block_attends_to_has_the_mask_of_its_own_tokens() -> None:
    seen = COUNTS[:, None, None, :].expand(2, 1, 6, 4)
    found = cross_mask({"encoder_attention_mask": added(seen), "attention_mask": torch.ones(2, 6)}, HIDDEN)
    assert found is not None
    assert torch.equal(found, COUNTS)
    assert cross_mask({"attention_mask": torch.ones(2, 6)}, HIDDEN) is None


@pytest.mark.parametrize("form", [added, Tensor.bool, Tensor.long])
def test_queries_that_may_see_nothing_show_no_key_in_any_form_of_the_mask(form: Callable[[Tensor], Tensor]) -> None:
    """The model lets such a query see all keys, and another mask excludes it; the tiles of an image are rows."""
    blind = COUNTS[:, None, None, :].expand(2, 1, 6, 4).clone()
    blind[:, :, 0] = True
    rows = torch.ones(2, 1, 6, 1)
    rows[:, :, 0] = 0
    named = {"cross_attention_mask": form(blind), "full_text_row_masked_out_mask": rows}
    found = cross_mask(named, torch.zeros(4, 2, 8))
    assert found is not None
    assert torch.equal(found, COUNTS.reshape(4, 2))


def test_other_sequences_are_told_by_their_length_or_name() -> None:
    assert is_another_sequence("", torch.zeros(2, 9, 8), HIDDEN)
    assert is_another_sequence("encoder_hidden_states", torch.zeros(2, 4, 8), HIDDEN)
    assert not is_another_sequence("per_layer_input", torch.zeros(2, 4, 3), HIDDEN)
    assert not is_another_sequence("position_bias", torch.zeros(2, 9, 8), HIDDEN)
    assert not is_another_sequence("token_types", torch.zeros(2, 9, 8, dtype=torch.long), HIDDEN)
