"""``python -m launch plan OVERRIDE ...``: show the plan of a sweep without running it."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--multirun", action="store_true", help="taken for granted")
    parser.add_argument("--json", action="store_true", help="for a program")
    parser.add_argument("--config-dir", "-cd", metavar="FOLDER", help="a folder with groups of your own")
    parser.add_argument("--config-name", "-cn", metavar="NAME", help="another file than config.yaml")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="as for python -m mmq_sweeps -m: bits=2,3 ...")


def run(arguments: argparse.Namespace) -> int:
    """Run ``mmq_sweeps`` on the same overrides with ``dry_run``."""
    # Imported here because mmq_sweeps.__main__ imports this package.
    from mmq_sweeps.__main__ import main

    told = ["--json"] if arguments.json else []
    for option in ("config_dir", "config_name"):
        if (value := getattr(arguments, option)) is not None:
            told.append(f"--{option.replace('_', '-')}={value}")
    sys.argv = [sys.argv[0], "-m", *told, *arguments.overrides, "hydra.launcher.dry_run=true"]
    main()
    return 0
