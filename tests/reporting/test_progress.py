"""Log messages go to the innermost context, and to standard error by default."""

from __future__ import annotations

import logging

import pytest

from mmq_sweeps.reporting.progress import warnings_to

OURS, LAUNCH = logging.getLogger("mmq_sweeps.somewhere"), logging.getLogger("launch.somewhere")


def test_messages_go_to_the_innermost_context_and_to_standard_error_by_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner: list[str] = []
    with warnings_to():
        OURS.warning("the disk is %s", "full")
        with warnings_to(inner.append):
            LAUNCH.warning("a worker died")
            LAUNCH.info("stopping")
            OURS.debug("nobody needs this")
        OURS.info("all is well")
    assert inner == ["warning: a worker died", "stopping"]
    assert capsys.readouterr().err == "warning: the disk is full\nall is well\n"


def test_nothing_is_left_behind_when_the_context_ends() -> None:
    loggers = [logging.getLogger(name) for name in ("mmq_sweeps", "launch")]
    before = [(list(logger.handlers), logger.level) for logger in loggers]
    with pytest.raises(RuntimeError), warnings_to(), warnings_to([].append):
        raise RuntimeError
    assert [(logger.handlers, logger.level) for logger in loggers] == before
