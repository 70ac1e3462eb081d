"""Work in a thread: its result and errors come back, and a signal in the main thread ends it by a wish."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from kexue_train.foundation.background import run_in_thread


class Stop(BaseException):
    """What an orchestrator's handler raises."""


@pytest.fixture
def stopped_soon() -> Iterator[None]:
    """SIGUSR1 raises ``Stop``, and comes after a tenth of a second."""

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGUSR1, stop)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    yield
    timer.join()
    signal.signal(signal.SIGUSR1, before)


def nothing() -> None:
    pass


def test_the_result_comes_back_from_another_thread() -> None:
    made = run_in_thread(threading.current_thread, on_poll=nothing, request_stop=nothing, stop_seconds=1)
    assert made is not threading.main_thread()


def test_what_the_work_raises_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 // 0, on_poll=nothing, request_stop=nothing, stop_seconds=1)


def test_the_waiting_thread_looks_once_more_after_the_end() -> None:
    done, looks = threading.Event(), []
    run_in_thread(done.set, on_poll=lambda: looks.append(done.is_set()), request_stop=nothing, stop_seconds=1)
    assert looks[-1]


@pytest.mark.usefixtures("stopped_soon")
def test_after_a_signal_the_work_is_asked_to_stop_until_it_has() -> None:
    wishes, ended = [], threading.Event()

    def work() -> None:
        while len(wishes) < 3:  # the first two are forgotten
            time.sleep(0.01)
        ended.set()

    with pytest.raises(Stop):
        run_in_thread(work, on_poll=nothing, request_stop=lambda: wishes.append(1), stop_seconds=60)
    assert ended.is_set()


@pytest.mark.usefixtures("stopped_soon")
def test_work_that_does_not_stop_is_left_behind() -> None:
    free = threading.Event()
    with pytest.raises(Stop):
        run_in_thread(free.wait, on_poll=nothing, request_stop=nothing, stop_seconds=0.1)
    assert not free.is_set()
    free.set()
