#!/usr/bin/env bash
# Guess: console.print(text, markup=False), and rich.markup.escape(text), print the text of others as it is.
# Instead: both still replace emoji codes. A column `a:key:b` becomes a picture of a key between a and b; only emoji=False, or a
# Text object, leaves it alone.
# Seen with rich 15.0.0. Concerns whoever prints names, paths, YAML or host:port:device strings that are not their own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-deps rich==15.0.0 Pygments==2.21.0 markdown-it-py==4.3.0 mdurl==0.1.2
cat > "$work/show.py" <<'P'
import io

from rich.console import Console
from rich.markup import escape
from rich.text import Text


def printed(*objects: object, **options: bool) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(*objects, **options)
    return console.file.getvalue().strip()


name = "disk:key:0"
seen = {
    "markup=False": printed(name, markup=False),
    "escape()": printed(escape(name)),
    "emoji=False": printed(name, markup=False, emoji=False),
    "Text": printed(Text(name)),
}
for how, text in seen.items():
    print(f"{how}: {ascii(text)}")
assert seen["emoji=False"] == seen["Text"] == name
assert ":key:" not in seen["markup=False"] and ":key:" not in seen["escape()"], "emoji codes are now left alone"
P
"$work/venv/bin/python" "$work/show.py"
