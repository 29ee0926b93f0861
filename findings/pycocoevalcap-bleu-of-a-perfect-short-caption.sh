#!/usr/bin/env bash
# Guess: the BLEU-4 of a caption that equals its reference is 1, or 0 where it has no four words.
# Instead: it is 0.0316 for three words, 0.001 for two: (1e-15 / 1e-9) ** (1/4), from the constants against a division by zero.
# The file's score does not show it, the mean of the captions' own scores does.
# Seen with pycocoevalcap 1.2. Concerns per-image scores of short answers: means over images, bootstraps and paired tests.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps pycocoevalcap==1.2
cat > "$work/show.py" <<'P'
from pycocoevalcap.bleu.bleu import Bleu

captions = {1: ["ball"], 2: ["red ball"], 3: ["a red ball"], 4: ["a red ball rolls"], 5: ["a red ball rolls away"]}
whole, single = Bleu(4).compute_score(captions, captions, verbose=0)
for words, score in zip(captions, single[3]):
    print(f"words: {words}, all equal to the reference's: BLEU-4 {score:.6f}")
print(f"the file: {whole[3]:.6f}; the mean of its captions: {sum(single[3]) / len(single[3]):.6f}")
assert single[3][3] > 0.999 and whole[3] > 0.999
assert 0.03 < single[3][2] < 0.033 and single[3][0] < single[3][1] < 0.0011, "short captions are now scored otherwise"
P
"$work/venv/bin/python" "$work/show.py"
