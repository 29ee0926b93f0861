#!/usr/bin/env bash
# Guess: load_dataset of a local file gives the rows that the file has now.
# Instead: its Arrow copy is found by the file's path and time of change alone. A file that was replaced by another of the same time,
# as `cp -p`, `rsync -a`, `tar` and checkouts with fixed times leave it, gives the rows of before with the fingerprint of before;
# and the same file moved to another folder has another fingerprint. So a fingerprint does not say what was read.
# Seen with datasets 5.2.0. Concerns all who keep results by a data set's fingerprint.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0
cat > "$work/show.py" <<'P'
import os, shutil, sys
from datasets import disable_progress_bars, load_dataset

disable_progress_bars()
folder = sys.argv[1]
file = f"{folder}/test.jsonl"


def read(path):
    rows = load_dataset("json", data_files={"test": path}, split="test")
    return rows["answer"][:], rows._fingerprint


def write(answer):
    with open(file, "w") as out:
        out.write('{"answer": "%s"}\n' % answer)
    os.utime(file, (1_600_000_000, 1_600_000_000))


write("two")
before = read(file)
write("six")
after = read(file)
shutil.copy2(file, f"{folder}/moved.jsonl")
moved = read(f"{folder}/moved.jsonl")
print("file says two:", *before)
print("file says six:", *after)
print("the same, moved:", *moved)
assert after == before, "a changed file is read again now"
assert moved[0] == ["six"] and moved[1] != after[1]
P
HF_HOME="$work/cache" "$work/venv/bin/python" "$work/show.py" "$work" 2>"$work/log" || { cat "$work/log"; exit 1; }
