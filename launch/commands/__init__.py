"""Verbs of ``python -m launch``, a module each."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a store and a sweep of it."""
    parser.add_argument("--store", default="runs", help="the store's folder (runs)")
    parser.add_argument("--sweep", help="a sweep's id or the first letters of it; the latest if left out")


def print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=1) + "\n")
