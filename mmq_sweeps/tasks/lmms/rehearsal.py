"""Run a task's scoring once before any cell, with a made-up answer and the network refused."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mmq_sweeps.data.lmms import library
from mmq_sweeps.tasks.lmms.scoring import LmmsScorer, is_figure

logger = logging.getLogger(__name__)
# Neither right nor an option, so that code which asks a judge about unclear answers does so.
ANSWER = "I do not know."


class NetworkAskedError(BaseException):
    """Raised where code connects to a server; no Exception, which the code would catch to try again."""


def rehearse(scorer: LmmsScorer, task: str, count: int, allow_network: bool) -> None:
    """Score ``count`` made-up answers; raise ValueError if that fails, asks a server, or gives no figure at all."""
    try:
        with library.contained(), library.untold(), nullcontext() if allow_network else _refused():
            found = scorer.entries([ANSWER] * count)
            figures = {name: scorer.figure(metric, own.values) for (name, metric), own in found.items()}
    except NetworkAskedError as error:
        raise ValueError(
            f"lmms_task={task}: its scoring asks a server ({error}), and so would the score of every cell; choose "
            "task.metrics without it, or set task.allow_network=true to let it"
        ) from error
    without = [name for name, figure in figures.items() if not is_figure(figure)]
    if len(without) == len(figures):
        raise ValueError(
            f"lmms_task={task}: none of its metrics is a number ({', '.join(without) or 'it gives none'}), as of tasks that "
            "write a file to be submitted"
        )
    if absent := [name for name in scorer.metrics if name not in {metric for _, metric in found}]:
        logger.warning("lmms_task=%s: its documents give nothing for %s, so it is left out", task, ", ".join(absent))
    if without:
        logger.warning("lmms_task=%s: %s is no number, so it is left out", task, ", ".join(without))


@contextmanager
def _refused() -> Iterator[None]:
    """Refuse connections of this thread; others, such as a tracker's, go on."""
    own, before = threading.get_ident(), (socket.socket.connect, socket.getaddrinfo)

    def refuse(what: Any) -> None:
        if threading.get_ident() == own:
            raise NetworkAskedError(str(what))

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse(address[0])
        return before[0](self, address)

    def getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
        refuse(host)
        return before[1](host, *arguments, **named)

    socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        socket.socket.connect, socket.getaddrinfo = before  # type: ignore[method-assign]
