from __future__ import annotations

import os
import signal
import threading

import pytest

from launch.workers.stop import SIGNALS, Stop


@pytest.mark.parametrize("how", SIGNALS)
def test_a_signal_asks_to_stop_and_the_handler_of_before_comes_back(how: signal.Signals) -> None:
    before = signal.getsignal(how)
    stop = Stop()
    with stop.on(*SIGNALS):
        assert stop.reason is None
        os.kill(os.getpid(), how)
        assert stop.reason == how.name
        stop.ask("later")
    assert stop.reason == how.name, "the first reason is kept"
    assert signal.getsignal(how) == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    inside = []

    def elsewhere() -> None:
        with Stop().on(*SIGNALS):
            inside.extend(signal.getsignal(one) for one in SIGNALS)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert inside == before
