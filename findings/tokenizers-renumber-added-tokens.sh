#!/usr/bin/env bash
# Guess: an added token has the id that tokenizer.json gives it: the format stores one for each.
# Instead: it gets the number of words in the vocabulary: 10 in the file becomes 4 after four words. If the words' ids have a gap,
# it can share the id of a word. AutoTokenizer does the same, also with added_tokens_decoder.
# Seen with tokenizers 0.23.3, transformers 5.23.0. Concerns padded or pruned vocabularies, and models that learned another id.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tokenizers==0.23.3 transformers==5.23.0
cat > "$work/show.py" <<'P'
import json
import os
import pathlib

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

folder = pathlib.Path(os.environ["FOLDER"])
folder.mkdir()


def given(words: dict[str, int], stored: int) -> int:
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.add_special_tokens(["<image>"])
    content = json.loads(tokenizer.to_str())
    content["added_tokens"][0]["id"] = stored
    (folder / "tokenizer.json").write_text(json.dumps(content))
    added = {str(stored): {"content": "<image>", "special": True}}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    loaded = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("<image>").ids
    auto = AutoTokenizer.from_pretrained(folder)("<image>")["input_ids"]
    print(f"words {words}, stored {stored}: tokenizers {loaded}, AutoTokenizer {auto}")
    assert loaded == auto
    return loaded[0]


full = {"a": 0, "b": 1, "c": 2, "d": 3}
assert given(full, 4) == 4
assert given(full, 10) == 4, "an added token now keeps its id behind a gap"
assert given({"a": 0, "b": 1, "d": 3}, 10) == 3, "an added token no longer shares a word's id"
P
FOLDER="$work/tokenizer" "$work/venv/bin/python" "$work/show.py"
