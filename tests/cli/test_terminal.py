"""What a person sees: plain lines in a pipe, a live table in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from kexue_train.cli import terminal
from kexue_train.cli.terminal import LiveBoard, PlainBoard, SingleStage, make_board


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(terminal.time, "monotonic", clock)
    return clock


def plain() -> tuple[io.StringIO, Console]:
    text = io.StringIO()
    return text, Console(file=text, width=60)


def live() -> tuple[io.StringIO, Console]:
    text = io.StringIO()
    return text, Console(file=text, force_terminal=True, width=100, _environ={"TERM": "xterm"})


def test_a_plain_board_says_start_progress_every_ten_seconds_and_end(clock: Clock) -> None:
    text, console = plain()
    with PlainBoard(console, clock) as board:
        board.start("train")
        for second in range(26):
            clock.now = second
            board.update(second * 4.0, 200, "steps", loss=4.8123, tokens_per_second=23412.7)
        board.note("resumed from checkpoint step-00000010")
        board.finish("train", "200 steps", 125.2, made=True)
    assert text.getvalue().splitlines() == [
        "train: started",
        "train: 40/200 steps  ETA 40.0 s  loss 4.812  tokens/s 23,413",
        "train: 80/200 steps  ETA 30.0 s  loss 4.812  tokens/s 23,413",
        "train: resumed from checkpoint step-00000010",
        "train: 200 steps  (2 min 05 s)",
    ]


def test_bytes_are_told_with_their_rate_and_an_unknown_total_without_an_end(clock: Clock) -> None:
    text, console = plain()
    board = PlainBoard(console, clock)
    board.start("shuffle")
    board.update(0, None, "bytes")
    clock.now = 10.0
    board.update(50e6, None, "bytes")
    assert text.getvalue().splitlines()[-1] == "shuffle: 50 MB  5 MB/s"


def test_the_rate_counts_from_where_a_resumed_stage_began(clock: Clock) -> None:
    text, console = plain()
    board = PlainBoard(console, clock)
    board.start("train")
    board.update(900, 1000, "steps")
    clock.now = 10.0
    board.update(910, 1000, "steps")
    assert "910/1,000 steps  ETA 1 min 30 s" in text.getvalue()


def test_a_training_is_told_in_its_units_and_with_its_own_estimate_of_the_time_left(clock: Clock) -> None:
    text, console = plain()
    board = PlainBoard(console, clock)
    board.start("train")
    clock.now = 10.0
    facts = {"loss": 3.21, "mlm_accuracy": 0.4567, "lr": 1e-3, "mfu": 0.391, "memory_bytes": 3.2e9}
    board.update(100, 1000, "steps", eta_seconds=75.0, **facts)
    assert text.getvalue().splitlines()[-1] == (
        "train: 100/1,000 steps  ETA 1 min 15 s  loss 3.21  MLM accuracy 45.7%  lr 0.001  MFU 39.1%  memory 3.2 GB"
    )


def test_brackets_and_long_lines_come_out_as_they_are() -> None:
    text, console = plain()
    PlainBoard(console).note("[MASK] " * 40)
    assert text.getvalue() == ": " + "[MASK] " * 40 + "\n"


def test_work_done_before_is_told_as_such() -> None:
    text, console = plain()
    PlainBoard(console).finish("samples", "10 rows", 0.1, made=False)
    assert text.getvalue() == "samples: 10 rows  (complete before)\n"


def test_a_live_board_shows_every_stage_and_the_running_one_with_its_numbers() -> None:
    text, console = live()
    with LiveBoard(["shuffle", "train", "report"], console) as board:
        board.start("shuffle")
        board.finish("shuffle", "300 documents", 1.3, made=True)
        board.start("train")
        board.update(5, 10, "steps", loss=4.5)
        board.note("resumed from [a] checkpoint")
    out = text.getvalue()
    last = out[out.rindex("shuffle") :]
    assert "train: resumed from [a] checkpoint" in out
    assert "✓" in out
    assert "300 documents  (1.3 s)" in last
    assert "5/10 steps" in last
    assert "loss 4.5" in last
    assert "report" in last


def test_a_live_board_restores_the_cursor_when_a_stage_fails() -> None:
    text, console = live()
    with pytest.raises(ZeroDivisionError), LiveBoard(["train"], console):
        _ = 1 / 0
    assert text.getvalue().rstrip().endswith("\x1b[?25h")


def test_a_terminal_gets_the_live_board_and_a_pipe_the_plain_one() -> None:
    assert isinstance(make_board(["a"], live()[1]), LiveBoard)
    assert isinstance(make_board(["a"], plain()[1]), PlainBoard)


def test_a_single_command_is_a_board_of_one_stage() -> None:
    text, console = plain()
    with SingleStage("verify", console) as progress:
        progress.note("x")
    assert text.getvalue() == "verify: started\nverify: x\n"
