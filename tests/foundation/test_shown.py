"""What reaches a terminal: control characters as escapes, no credentials, whoever writes."""

import io
import json
import logging
import sys

import pytest
from rich.table import Table
from rich.text import Text

from kexue_train.cli.errors import run_command
from kexue_train.cli.terminal import LiveBoard, PlainBoard, open_console
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.shown import PrintableFormatter, PrintableStream, printable

HOSTILE = "a\x1b[2J\x1b]0;title\x07\r\x9b31m\u202e\x08\x7f\udcff b"
SHOWN = r"a\x1b[2J\x1b]0;title\x07\x0d\u009b31m\u202e\x08\u007f\udcff b"


def test_control_characters_are_shown_as_escapes() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("line\n\ttab 好 😀") == "line\n\ttab 好 😀"


def test_json_keeps_its_meaning() -> None:
    value = {"a\x1b": HOSTILE.replace("\udcff", "")}
    assert json.loads(printable(json.dumps(value, ensure_ascii=False))) == value


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_error_reaches_the_terminal_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    def command(*_: object, **__: object) -> None:
        raise ConfigError(f"{HOSTILE}: https://u:secret@h/a")

    assert run_command(command, [], "kexue") == 2
    assert terminal.getvalue() == f"error: {SHOWN}: https://***@h/a\n"


def test_a_traceback_reaches_the_terminal_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())

    def command(*_: object, **__: object) -> None:
        raise ValueError(f"{HOSTILE}: https://u:secret@h/a")

    assert run_command(command, ["--debug"], "kexue") == 1
    assert f"ValueError: {SHOWN}: https://***@h/a" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("stderr", [False, True])
def test_a_console_shows_texts_printable_and_keeps_its_own_colours(
    stderr: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr" if stderr else "stdout", PrintableStream(terminal := Terminal()))
    console = open_console(stderr=stderr, width=200, highlight=False)
    table = Table(HOSTILE)
    table.add_row(Text(HOSTILE, style="bold"))
    console.print(table)
    console.print(HOSTILE, markup=False, soft_wrap=True)
    assert terminal.getvalue().count(r"\x1b[2J\x1b]0;title") == 3
    assert "\x1b[2J" not in terminal.getvalue()
    assert "\x1b[1m" in terminal.getvalue(), "rich's own"


def test_a_live_board_shows_notes_results_and_standard_error_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys, "stderr", PrintableStream(terminal := Terminal()))
    with LiveBoard(["shuffle"], open_console(stderr=True, width=200)) as board:
        board.start("shuffle")
        board.update(1, 2, "rows", fact=HOSTILE)
        board.note(f"note {HOSTILE}")
        sys.stderr.write(f"warning {HOSTILE} https://u:secret@h/a\n")
        board.finish("shuffle", f"result {HOSTILE}", 1.0, made=True)
    assert isinstance(sys.stderr, PrintableStream)
    assert sys.stderr.below is terminal
    for part in ("note", "warning", "result"):
        assert rf"{part} a\x1b[2J\x1b]0;title" in terminal.getvalue()
    assert not [sign for sign in ("\x1b[2J", "\x9b", "\u202e", "\x07", "secret") if sign in terminal.getvalue()]


def test_a_plain_board_shows_everything_printable() -> None:
    board = PlainBoard(open_console(file=(written := io.StringIO()), width=300))
    board.start("shuffle")
    board.note(HOSTILE)
    board.finish("shuffle", HOSTILE, 1.0, made=True)
    assert written.getvalue().count(SHOWN) == 2


def test_log_lines_and_their_tracebacks_are_printable() -> None:
    formatter = PrintableFormatter("%(message)s")
    try:
        raise ValueError(f"https://u:secret@h/a {HOSTILE}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "%s", (HOSTILE,), sys.exc_info())
    line = formatter.format(record)
    assert SHOWN in line
    assert f"ValueError: https://***@h/a {SHOWN}" in line
