#!/usr/bin/env bash
# Guess: a decision tree on a column of float64 can split it wherever neighbours differ; adding a constant changes nothing.
# Instead: trees work on float32, where numbers near 1.7e9 lie 128 apart: sixty seconds that a tree tells apart when counted from
# the first are one value as epoch time. The score falls from 1.0 to 0.5, the importance to 0.0, without a warning.
# Seen with scikit-learn 1.9.1. Concerns importances over start times, seeds or parameter counts beyond 2^24.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1
cat > "$work/show.py" <<'P'
import numpy
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

seconds = numpy.arange(60.0)[:, None]
label = (seconds[:, 0] // 10) % 2
seen = {}
for name, column in (("from the start", seconds), ("epoch time", seconds + 1.7e9)):
    tree = DecisionTreeClassifier(random_state=0).fit(column, label)
    forest = RandomForestClassifier(20, random_state=0).fit(column, label)
    seen[name] = (tree.score(column, label), float(forest.feature_importances_[0]))
    print(f"{name}: {len(numpy.unique(column))} values, the tree's score {seen[name][0]}, the forest's importance {seen[name][1]}")
assert seen["from the start"] == (1.0, 1.0)
assert seen["epoch time"] == (0.5, 0.0), "trees now tell epoch seconds apart"
P
"$work/venv/bin/python" "$work/show.py"
