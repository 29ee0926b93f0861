#!/usr/bin/env bash
# Guess: pycocoevalcap's ROUGE-L is 1 only for a caption that one of its references equals.
# Instead: precision is the best over the references, and so is recall, each from a reference of its own. "a cat" against "a cat
# sits on the mat" and "cat" scores 1.0, though against either alone it gets less; one short reference gives every caption that
# holds its words a recall of 1.
# Seen with pycocoevalcap 1.2. Concerns ROUGE-L with several references, and references of unequal length most.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps pycocoevalcap==1.2 numpy==2.4.6
cat > "$work/show.py" <<'P'
from pycocoevalcap.rouge.rouge import Rouge


def score(caption: str, references: list[str]) -> float:
    return float(Rouge().compute_score({1: references}, {1: [caption]})[0])


references = ["a cat sits on the mat", "cat"]
alone = [score("a cat", [reference]) for reference in references]
both = score("a cat", references)
print(f"'a cat' against each of {references}: {alone[0]:.3f} and {alone[1]:.3f}; against both: {both:.3f}")
assert max(alone) < 0.8
assert both == 1.0, "precision and recall now come from one reference"
P
"$work/venv/bin/python" "$work/show.py"
