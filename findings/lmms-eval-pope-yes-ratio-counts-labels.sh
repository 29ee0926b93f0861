#!/usr/bin/env bash
# Guess: the yes ratio of POPE is the share of questions that the model answers with yes, as its paper (arXiv 2305.10355) defines it,
# and recall counts every question whose right answer is yes.
# Instead: lmms-eval's yes ratio counts right answers, so it is 0.5 for every model, also for one that says yes to all; and an answer
# of more than the word no is left out of recall, so a model that finds one object of two and explains itself about the other has 1.0.
# Seen with lmms-eval 0.7.3. Concerns whoever reads these figures as a bias towards yes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps lmms-eval==0.7.3
cat > "$work/show.py" <<'P'
import importlib.util
import pathlib

path = pathlib.Path(importlib.util.find_spec("lmms_eval").origin).parent / "tasks" / "pope" / "utils.py"
spec = importlib.util.spec_from_file_location("pope_utils", path)
pope = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pope)


def score(pairs, aggregate, key):
    documents = [{"question_id": n, "answer": right} for n, (right, _) in enumerate(pairs)]
    results = [pope.pope_process_results(doc, [said])[key] for doc, (_, said) in zip(documents, pairs)]
    return aggregate(results)


always = [("yes", "yes"), ("no", "yes")] * 50
explained = [("yes", "yes"), ("yes", "No, there is no dog.")] * 50
ratio = score(always, pope.pope_aggregate_yes_ratio, "pope_yes_ratio")
recall = score(explained, pope.pope_aggregate_recall, "pope_recall")
print(f"a model that always says yes: yes ratio {ratio}; one that finds half of the objects: recall {recall}")
assert ratio == 0.5, "the yes ratio counts answers now"
assert recall == 1.0, "recall counts all objects now"
P
"$work/venv/bin/python" "$work/show.py" 2> "$work/log" || { cat "$work/log"; exit 1; }
