"""Workers of SLURM's jobs without the seconds of importing torch and transformers: forked from a process that has them.

A job's worker is started as ever; ``node/sitecustomize.py``, which it finds on its path, asks the process here for a fork
that is the worker: with its arguments, environment, folder and open files, in a process of its own.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.commands import CONTEXT, enter, run_as

NODE = Path(__file__).parent / "node"
# Names the server's socket in the environment of a job.
VARIABLE = "MMQ_WARM_WORKERS"
# In the environment of a shell: its commands of ours are forked as well.
EVERY_COMMAND = {"MMQ_WARM_COMMANDS": "1"}


@contextmanager
def serving(path: Path) -> Iterator[dict[str, str]]:
    """Serve at ``path`` in a process of its own; inside, the environment that jobs need to find it."""
    process = CONTEXT.Process(target=_serve, args=(path,), daemon=True)
    process.start()
    while not path.exists():
        assert process.exitcode is None, "the process that forks workers ended"
        time.sleep(0.05)
    paths = [str(NODE), os.environ.get("PYTHONPATH", "")]
    try:
        yield {VARIABLE: str(path), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    finally:
        process.kill()
        process.join()


def _serve(path: Path) -> None:
    parent, workers = os.getppid(), dict[int, socket.socket]()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        Path(f"{path}.new").rename(path)
        while os.getppid() == parent:
            if select.select([listener], [], [], 0.05)[0]:
                connection, _ = listener.accept()
                with suppress(OSError, ValueError):  # Whoever asked is gone.
                    workers[_fork(connection, listener)] = connection
            while workers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                # A worker whose asker was gone before it heard of the worker is in no list.
                with workers.pop(ended[0], None) or socket.socket() as connection, suppress(OSError):
                    connection.sendall(f"{os.waitstatus_to_exitcode(ended[1])}\n".encode())


def _fork(connection: socket.socket, listener: socket.socket) -> int:
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as asked:
        given = json.loads(asked.readline())
    pid = os.fork()
    if not pid:
        listener.close()
        _work(connection, descriptors, given)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\n".encode())
    return pid


def _work(connection: socket.socket, descriptors: list[int], given: dict[str, Any]) -> None:
    status = 1
    try:
        os.setsid()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        enter(Path(given["folder"]), given["environment"])
        # Whoever started the worker is the parent of the process that waits for it.
        parent = given["parent"]
        os.getppid = lambda: parent if Path(f"/proc/{parent}").exists() else 1
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        run_as(given["module"], given["arguments"], given["environment"])
        status = 0
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1
    finally:
        os._exit(status)


def _end_with(connection: socket.socket) -> None:
    """End this process when the process that waits for it is gone."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)
