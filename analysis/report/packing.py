"""Columns in few bytes, since a page holds thousands of cells: ``page/base.js`` is the reader of ``pack``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

# Signs that stand for a number: one byte each in JSON and HTML, then two; those of other scripts' directions are not used.
SIGNS = tuple(chr(code) for code in range(35, 0x590) if chr(code) not in "<\\" and not 0x7F <= code <= 0xA0)
# Where texts are cut into words: commands and names at spaces, times at colons.
CUTS = (" ", ":")


def pack(values: Sequence[Any]) -> Any:
    """Pack a column in the shortest of several ways; ``None`` if all are missing.

    * a list of the values
    * ``{"pool", "at"}``: each distinct value once, and a sign for every row, or a number if there are too many; without
      ``at`` if there is only one
    * ``{"words", "cut", "rows"}``: each distinct word once, and a sign for every word of a row; rows are apart by spaces
    """
    if all(value is None for value in values):
        return None
    return min(_ways(values), key=lambda packed: len(json.dumps(packed, ensure_ascii=False).encode()))


def _ways(values: Sequence[Any]) -> Iterator[Any]:
    yield list(values)
    # By type too: 1 and True, or 1 and 1.0, are the same key.
    keys = [(type(value), value) for value in values]
    places = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    pool, at = [value for _, value in places], [places[key] for key in keys]
    if len(pool) == 1:
        yield {"pool": pool}
    elif len(pool) <= len(SIGNS):
        yield {"pool": pool, "at": "".join(SIGNS[place] for place in at)}
    else:
        yield {"pool": pool, "at": at}
    if all(value is None or (isinstance(value, str) and value) for value in values):
        yield from _by_words(values)


def _by_words(values: Sequence[str | None]) -> Iterator[Any]:
    for cut in CUTS:
        rows = [value.split(cut) if value else [] for value in values]
        words = {word: number for number, word in enumerate(dict.fromkeys(word for row in rows for word in row))}
        if len(words) <= len(SIGNS):
            told = " ".join("".join(SIGNS[words[word]] for word in row) for row in rows)
            yield {"words": list(words), "cut": cut, "rows": told}
