"""A worker process that waits for more cells: it reads a line of JSON for each sweep, until there are no more.

A line is ``{"store", "sweep", "name", "cells", "help", "log"}``, as ``worker.py`` has them. Each is answered on standard output
with the status of ``worker.py`` and the processor seconds of the process. Whatever else is written goes to the log.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from contextlib import ExitStack

from launch.workers import worker


def main() -> None:
    """Run the worker given by ``sys.argv``. Exit status: 0 at the end of input, 2 if no cell of a sweep could run."""
    parser = argparse.ArgumentParser(
        prog="python -m launch.workers.warm_worker", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--parent", type=int, required=True, help="the process that started it; ends when that is gone")
    given = parser.parse_args()
    # Must be set before torch is imported, as in mmq_sweeps/__main__.py.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    answers = os.dup(1)
    os.dup2(2, 1)
    with ExitStack() as kept:
        for line in iter(sys.stdin.readline, ""):
            status = _run(json.loads(line), given.parent, kept)
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            seconds = sum(own.ru_utime + own.ru_stime for own in used)
            try:
                os.write(answers, f"{status} {seconds:.3f}\n".encode())
            except BrokenPipeError:
                return  # Whoever started it is gone.


def _run(job: dict[str, object], parent: int, kept: ExitStack) -> int:
    log = os.open(str(job["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)

    def keep_models() -> None:
        from mmq_sweeps.execution.executor import keeps_models, models_kept

        if not keeps_models():
            kept.enter_context(models_kept())

    cells, help = (list(map(str, job[name])) for name in ("cells", "help"))  # type: ignore[call-overload]
    return worker.status(
        str(job["store"]), str(job["sweep"]), cells, str(job["name"]), help,
        needed=lambda: os.getppid() == parent, loaded=keep_models,
    )  # fmt: skip


if __name__ == "__main__":
    main()
