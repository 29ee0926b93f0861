"""Check the tokens of prompts: texts stay text, are kept whole and have embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn

from mmq_sweeps.models.loading import LoadedModel
from mmq_sweeps.models.model_check.answers import misplaced
from mmq_sweeps.models.model_check.asking import Asked, Asking, Trial, short

# Least share of a prompt's own tokens that must be left; a processor may rewrite some text.
LEAST_TEXT = 0.9
# Names shown in a message.
SHOWN = 3


def check_texts(
    asking: Asking, images: Sequence[Image.Image], around: str, texts: Iterable[tuple[str, str]]
) -> Iterator[str]:
    """Yield the first text with special tokens of the tokenizer that the prompt ``around`` it does not contain.

    A question about "<image>" would add an image placeholder; an end-of-text token would end the prompt.
    """
    special = _special_tokens(asking.loaded.processor)
    signs = {token[0]: around.count(token[0]) for token in special.values()}

    def count(text: str) -> int:
        ids = asking.prepare([Asked("", images, text)])["input_ids"]
        return int(torch.isin(ids, torch.tensor(list(special))).sum())

    def is_text(text: str) -> bool:
        expected = count(around)
        try:
            return count(text) == expected
        except ValueError:  # Some processors count the images of a text.
            return False

    for id, text in texts:
        if all(text.count(sign) <= usual for sign, usual in signs.items()):
            continue
        held = [token for token in special.values() if text.count(token) > around.count(token)]
        if held and not is_text(text):
            yield (
                f"task.data: the text of {id} holds {' and '.join(held)}, which the tokenizer of "
                f"{asking.loaded.config['checkpoint']} takes for no text; change it in the data, or leave the item out"
            )
            return


def check_prompts(asking: Asking, asked: Sequence[Asked]) -> Iterator[str]:
    """Check that the bare prompt, first of ``asked``, has no unknown tokens, and that no prompt is truncated."""
    tokenizer = asking.loaded.processor.tokenizer
    special = {*_special_tokens(asking.loaded.processor), getattr(asking.loaded.model.config, "image_token_id", None)}

    def tokens(ids: Iterable[int]) -> list[int]:
        return [id for id in ids if id not in special]

    for one in asked:
        found = tokens(asking.prepare([one])["input_ids"][0].tolist())
        whole = tokens(tokenizer(one.text, truncation=False)["input_ids"])
        unknown = sum(id == _unknown(tokenizer) for id in whole) if one is asked[0] else 0
        if unknown or len(found) < LEAST_TEXT * len(whole):
            what = f"{unknown} are unknown" if unknown else f"only {len(found)} are left"
            yield (
                f"{asking.checkpoint}: of the {len(whole)} tokens of the prompt {short(one.text)} {what} to the model; choose "
                "another prompt (model.prompts), or take the tokenizer that belongs to these weights"
            )
            return


def check_tokens(trial: Trial) -> Iterator[str]:
    """Check that every token has an embedding, different texts differ, and the image has a placeholder."""
    asking, loaded = trial.asking, trial.asking.loaded
    if unplaced := _without_embedding(loaded):
        rows = loaded.model.get_input_embeddings().num_embeddings
        yield (
            f"{asking.checkpoint}: its tokenizer has {len(unplaced)} tokens beyond the {rows} rows of the model's embedding "
            f"({', '.join(repr(token) for token in unplaced[:SHOWN])}); take the tokenizer that belongs to these weights"
        )
        return
    first, second = trial.first, trial.second
    ids, other_ids = (trial.inputs(asked)["input_ids"] for asked in (first, second))
    if first.text != second.text and torch.equal(ids, other_ids):
        yield (
            f"{asking.checkpoint}: the texts of {first.id} and {second.id} become the same tokens, though one is "
            f"{short(first.text)} and the other {short(second.text)}; take the tokenizer that belongs to these "
            "weights, or raise the length that texts are cut to"
        )
    token = getattr(loaded.model.config, "image_token_id", None)
    if asking.prompted and token is not None and not int((ids == token).sum()):
        yield misplaced(asking, first, "no image placeholder", "image features")


def _special_tokens(processor: Any) -> dict[int, str]:
    """Return the tokens, by id, that ``processor`` treats as more than text, except the unknown token."""
    tokenizer = processor.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {*tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
    return {id: tokenizer.convert_ids_to_tokens(id) for id in sorted(ids - {_unknown(tokenizer)})}


def _unknown(tokenizer: Any) -> int | None:
    """Return the unknown token's id; None if another special token has it too, as in byte-level tokenizers."""
    others = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return None if tokenizer.unk_token_id in others else tokenizer.unk_token_id


def _without_embedding(loaded: LoadedModel) -> list[str]:
    """Return tokens of ordinary text whose ids lie beyond the embedding; special tokens need no row."""
    tokenizer, embedding = loaded.processor.tokenizer, loaded.model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding):
        return []
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    beyond = [
        (id, token)
        for token, id in tokenizer.get_vocab().items()
        if id >= embedding.num_embeddings and id not in special
    ]
    return [token for _, token in sorted(beyond)]
