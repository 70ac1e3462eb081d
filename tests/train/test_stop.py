"""Who may stop a training: signals to a worker, a file, a machine about to go, signals to the driver."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from kexue_train.foundation.errors import TrainingError
from kexue_train.foundation.progress import SILENT
from kexue_train.train.faults import stop as module
from kexue_train.train.faults.stop import StopRequest
from kexue_train.train.pretrain import signals_held


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_while_it_is_listened_for(tmp_path, number):
    request, before = StopRequest(tmp_path / "stop"), signal.getsignal(number)
    with request.listen():
        assert request.poll() == (False, False)
        os.kill(os.getpid(), number)
        assert request.poll() == (True, False)
    assert signal.getsignal(number) is before


def test_the_file_and_the_machine_are_looked_at_about_once_a_second(tmp_path, monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    request = StopRequest(tmp_path / "stop", lambda: bool(asked.append(now[0])) or now[0] > 3)
    for _ in range(40):
        request.poll()
        now[0] += 0.1
    assert len(asked) == pytest.approx(4, abs=1)
    assert request.poll() == (False, True)
    (tmp_path / "stop").touch()
    now[0] += 1.0
    assert request.poll() == (True, True)


def _after(seconds: float, number: int, times: int = 1) -> None:
    def send() -> None:
        for _ in range(times):
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


def test_ctrl_c_becomes_the_stop_file_and_is_itself_when_the_workers_have_ended(tmp_path):
    file, seen = tmp_path / "out" / "stop", []
    with pytest.raises(KeyboardInterrupt), signals_held(file, 60, SILENT):  # noqa: PT012
        _after(0.1, signal.SIGINT)
        while not file.exists():
            time.sleep(0.01)
        seen.append("the workers save")
    assert seen == ["the workers save"]
    assert not file.exists()  # a wish of this start, not of the next


def test_sigterm_ends_the_process_as_the_shell_expects_after_the_workers_have_ended(tmp_path):
    with pytest.raises(SystemExit) as caught, signals_held(tmp_path / "stop", 60, SILENT):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        raise TrainingError("stopped before the last step")
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_handler_that_was_there_before_is_called_and_put_back(tmp_path):
    called = []
    before = signal.signal(signal.SIGTERM, lambda number, _: called.append(number))
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with signals_held(tmp_path / "stop", 60, SILENT):
            os.kill(os.getpid(), signal.SIGTERM)
            assert not called
        assert called == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("timeout", "signals"), [(60.0, 2), (0.2, 1)], ids=["asked twice", "too slow"])
def test_workers_that_do_not_end_are_not_waited_for(tmp_path, timeout, signals):
    ended = []
    with pytest.raises(KeyboardInterrupt), signals_held(tmp_path / "stop", timeout, SILENT):  # noqa: PT012
        _after(0.1, signal.SIGINT, signals)
        try:
            time.sleep(60)
        except TrainingError:
            ended.append("killed")
            raise
    assert ended == ["killed"]


def test_without_a_signal_nothing_happens_and_outside_the_main_thread_nothing_is_held(tmp_path):
    handlers = []

    def elsewhere() -> None:
        with signals_held(tmp_path / "stop", 60, SILENT):
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    with signals_held(tmp_path / "stop", 60, SILENT):
        pass
    assert handlers == [before]
    assert not (tmp_path / "stop").exists()
