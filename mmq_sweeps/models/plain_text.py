"""Make text of the data safe for a prompt: none of it becomes a special token or an image placeholder.

Processors search for placeholders before they tokenize, so a tokenizer's ``split_special_tokens`` is too late for a
question that contains a literal ``<image>``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

# Each round breaks one level of nested spellings (``<<pad>pad>``).
_ROUNDS = 20


def plain_text(text: str, processor: Any) -> str:
    """Insert a blank behind the first character of every special token in ``text``: ``<image>`` becomes ``< image>``.

    Special tokens are the tokenizer's, including the unknown token, and the processor's ``*_token`` attributes. Raises
    ValueError if the tokenizer still makes a special token of the text.
    """
    spellings, ids = _special_of(processor)
    plain = text
    for _ in range(_ROUNDS):
        found = [spelling for spelling in spellings if spelling in plain]
        if not found:
            break
        for spelling in found:
            plain = plain.replace(spelling, f"{spelling[0]} {spelling[1:]}")
    if plain.strip() and (left := ids.intersection(_tokens(_tokenizer(processor), plain))):
        named = ", ".join(map(str, _tokenizer(processor).convert_ids_to_tokens(sorted(left))))
        raise ValueError(f"the text {text!r} is tokenized to the special token {named}")
    return plain


@lru_cache(maxsize=4)
def _special_of(processor: Any) -> tuple[list[str], set[int]]:
    """Return the spellings of a processor's special tokens, longest first, and the ids that plain text may not have."""
    tokenizer = _tokenizer(processor)
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    named = [value for name, value in vars(processor).items() if name.endswith("_token")]
    every = {
        *(str(token) for token in added if token.special),
        *map(str, getattr(tokenizer, "all_special_tokens", ())),
        *(str(value) for value in named if isinstance(value, str) or hasattr(value, "content")),
    }
    # A single character is ordinary text too: CLIP pads with "!".
    spellings = sorted((token for token in every if len(token) > 1), key=len, reverse=True)
    ids = {tokenizer.convert_tokens_to_ids(token) for token in spellings}
    # Plain text may contain unknown words, and some tokenizers put a token before every text.
    return spellings, ids - {None, tokenizer.unk_token_id, *_tokens(tokenizer, "a")}


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found
