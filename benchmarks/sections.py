"""Sections of a benchmark's report: chosen with ``--only``, printed in turn or together as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Measures a section, and formats its figures as lines of text.
Section = tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[Mapping[str, Any]], Iterable[str]]]


def said(text: str) -> None:
    """Write a line of progress to standard error."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def parser_of(sections: Mapping[str, Section], documentation: str | None) -> argparse.ArgumentParser:
    """Return a parser with ``--json`` and ``--only``, to which a benchmark adds its own options."""
    parser = argparse.ArgumentParser(description=(documentation or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--only", nargs="+", choices=list(sections), default=list(sections), metavar="SECTION",
        help=f"of {', '.join(sections)}",
    )  # fmt: skip
    return parser


def report(sections: Mapping[str, Section], options: argparse.Namespace) -> None:
    """Measure the sections ``options.only`` and print them."""
    found = {}
    for name in options.only:
        measure, lines = sections[name]
        said(name)
        found[name] = measure(options)
        if not options.json:
            sys.stdout.write("\n".join([name, *(f"  {line}" for line in lines(found[name])), ""]))
            sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
