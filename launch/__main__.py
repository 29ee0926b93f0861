"""``python -m launch VERB``: plan, watch, cancel or retry a sweep, read its logs, maintain its store.

Each verb is a module of ``launch.commands`` with ``add_arguments(parser)`` and ``run(arguments)``, which returns the exit
status.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from mmq_sweeps.errors import ConfigError, StoreError, output_may_close
from mmq_sweeps.reporting.progress import warnings_to

BAD_INPUT, INTERRUPTED = 2, 130
# Imported on demand, so that `--help` and light verbs start fast.
VERBS = {
    "plan": "what a sweep would run, without running it",
    "status": "what a sweep has come to: cells queued, running, done, failed, and when it ends",
    "logs": "what was said of a cell while it ran, and how it ended",
    "cancel": "stop a sweep, wherever it runs, after the cells at hand",
    "retry": "run what is missing or failed of a recorded sweep, by its launcher",
    "store": "what lies in a store, whether it is what was written; prune it",
}


def main() -> None:
    command = argparse.ArgumentParser(prog="python -m launch", description=(__doc__ or "").splitlines()[0])
    verbs = command.add_subparsers(required=True, metavar="VERB")
    asked = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    for name, help in VERBS.items():
        added = verbs.add_parser(name, help=help, description=help)
        if name == asked:
            verb = importlib.import_module(f"launch.commands.{name}")
            verb.add_arguments(added)
            added.set_defaults(run=verb.run)
    arguments, left = command.parse_known_args()
    # argparse does not merge overrides given before and after an option.
    if left and (not hasattr(arguments, "overrides") or any(one.startswith("-") for one in left)):
        command.error(f"unrecognized arguments: {' '.join(left)}")
    if left:
        arguments.overrides += left
    try:
        with warnings_to(), output_may_close():
            status = arguments.run(arguments)
        raise SystemExit(status)
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except (ConfigError, StoreError, OSError, ValueError) as error:
        # Imported here because it loads Hydra, which light verbs do not need.
        from mmq_sweeps.config.hydra_errors import explain

        sys.stderr.writelines(f"error: {line}\n" for line in explain(error, []))
        raise SystemExit(BAD_INPUT) from None


if __name__ == "__main__":
    main()
