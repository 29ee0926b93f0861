"""Imported by every Python in a job of the tests, to fork the job's worker from ``tests/launch/slurm/warm.py``.

So is every command of ours if ``MMQ_WARM_COMMANDS`` is set. The process that was started stays, hands signals on, ends as
the forked process ends, and kills the forked process when it is killed itself.
"""

import os
import sys


def hand_over(path: str, module: str, arguments: list[str]) -> None:
    """Let the server at ``path`` run ``module`` with ``arguments``; return only if there is no server."""
    import json
    import signal
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(path)
        except OSError:
            return
        given = {
            "module": module,
            "arguments": arguments,
            "folder": os.getcwd(),
            "environment": dict(os.environ),
            "parent": os.getppid(),
        }
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(given).encode() + b"\n")
        told = server.makefile()
        pid = int(told.readline())
        for forwarded in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(forwarded, lambda number, _: os.kill(pid, number))
        status = int(told.readline())
    if status >= 0:
        os._exit(status)
    signal.signal(-status, signal.SIG_DFL) if -status != signal.SIGKILL else None
    os.kill(os.getpid(), -status)


def forked(module: str) -> bool:
    every = "MMQ_WARM_COMMANDS" in os.environ and module.partition(".")[0] in ("mmq_sweeps", "launch", "analysis")
    return every or module == "launch.workers.worker"


if "MMQ_WARM_WORKERS" in os.environ and sys.orig_argv[1:2] == ["-m"] and forked(sys.orig_argv[2]):
    hand_over(os.environ["MMQ_WARM_WORKERS"], sys.orig_argv[2], sys.orig_argv[3:])
