"""With KEXUE_LOG_FORMAT=json every line of standard error is one JSON object that says what, when and where."""

from __future__ import annotations

import json
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from kexue_train.cli.errors import run_command
from kexue_train.cli.json_board import JsonBoard
from kexue_train.cli.terminal import PlainBoard, make_board, open_console
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.json_logs import enter_run, log_context, logs_as_asked
from kexue_train.foundation.runtime import configure_logging

KEYS = {"time", "level", "logger", "message", "run", "stage", "rank", "process"}


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[dict[str, Any]]]:
    """Lets this process log as JSON; returns every line of standard error, parsed."""
    monkeypatch.setenv("KEXUE_LOG_FORMAT", "json")

    def parse() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        assert all(entry.keys() >= KEYS for entry in found)
        return found

    return parse


def said(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["level"], entry["logger"], entry["message"]


def test_a_record_says_what_when_and_where(entries, tmp_path: Path) -> None:
    with logs_as_asked():
        enter_run(tmp_path)
        board = JsonBoard(clock=iter([0.0, 3.0, 11.0, 11.0]).__next__)
        board.start("shuffle")
        board.update(1, 8, "rows")
        board.update(2, 8, "rows", bytes_per_second=5.0)
        board.finish("shuffle", "8 rows", 1.23456, made=True)
        logging.getLogger("kexue_train.somewhere").warning("slow: %d", 7)
    started, progress, finished, warning = found = entries()
    assert {entry["run"] for entry in found} == {str(tmp_path)}
    assert [entry["stage"] for entry in found] == ["shuffle", "shuffle", "shuffle", None]
    assert (started["message"], progress["message"], finished["message"]) == ("started", "progress", "8 rows")
    assert progress["fields"] == {"done": 2, "total": 8, "unit": "rows", "bytes_per_second": 5.0}
    assert finished["fields"] == {"seconds": 1.235, "made": True}
    assert said(warning) == ("WARNING", "kexue_train.somewhere", "slow: 7")
    assert abs((datetime.now(UTC) - datetime.fromisoformat(warning["time"])).total_seconds()) < 3600


def test_exceptions_and_messages_of_several_lines_stay_one_line(entries) -> None:
    def fail(_arguments: list[str], **_more: Any) -> None:
        logging.getLogger("kexue_train").warning("one\ntwo \x1b[31m \u202e %s", "s3://user:secret@bucket/a")
        warnings.warn("odd", stacklevel=1)
        sys.stderr.write("warning: begun")
        sys.stderr.write(" and ended\nlast words")
        raise ValueError("what\nnow")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run_command(fail, [], "kexue") == 1
    several, warned, printed, failure, words = entries()
    assert several["message"] == "one\ntwo \x1b[31m \u202e s3://***@bucket/a"
    assert said(warned)[:2] == ("WARNING", "py.warnings")
    assert "odd" in warned["message"]
    assert said(printed) == ("WARNING", "stderr", "warning: begun and ended")
    assert said(words) == ("INFO", "stderr", "last words")
    assert failure["level"] == "ERROR"
    assert "what\nnow" in failure["message"]
    assert failure["traceback"].startswith("Traceback")
    assert "in fail" in failure["traceback"]


def test_a_mistake_of_the_user_has_no_traceback(entries) -> None:
    def refuse(_arguments: list[str], **_more: Any) -> None:
        raise ConfigError("train.steps=0; allowed are 1 and more")

    assert run_command(refuse, [], "kexue") == 2
    [entry] = entries()
    assert said(entry) == ("ERROR", "kexue_train.cli.errors", "train.steps=0; allowed are 1 and more")
    assert "traceback" not in entry


def test_lines_of_threads_do_not_mix(entries) -> None:
    def speak(name: str) -> None:
        for number in range(50):
            logging.getLogger(name).warning("line %d", number)
            sys.stderr.write(f"{name} prints {number}")
            sys.stderr.write("\n")

    with logs_as_asked():
        threads = [threading.Thread(target=speak, args=(f"thread-{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(entries()) == 400


def test_a_worker_writes_its_log_in_the_same_form(entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("RANK", "3")
    try:
        root.handlers[:] = []
        configure_logging(logging.INFO, tmp_path / "rank-3.log")
        logging.getLogger("kexue_train.train").info("step %d", 5)
        root.handlers[0].close()
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    entry = json.loads((tmp_path / "rank-3.log").read_text())
    assert (entry["rank"], entry["message"]) == (3, "step 5")


def test_nothing_is_left_behind(entries, tmp_path: Path) -> None:
    before = logging.getLogger().handlers[:], sys.stderr, log_context()
    with logs_as_asked():
        enter_run(tmp_path)
        assert log_context().keys() == {"KEXUE_LOG_FORMAT", "KEXUE_LOG_RUN"}
    assert (logging.getLogger().handlers[:], sys.stderr, log_context()) == before


def test_text_is_the_default_and_another_form_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KEXUE_LOG_FORMAT", raising=False)
    assert isinstance(make_board(["a"], open_console()), PlainBoard)
    enter_run(Path("anything"))
    assert log_context() == {}
    monkeypatch.setenv("KEXUE_LOG_FORMAT", "jsn")
    assert run_command(lambda *_, **__: 0, [], "kexue") == 2
    assert "KEXUE_LOG_FORMAT is 'jsn'; allowed are text (default) and json" in capsys.readouterr().err
