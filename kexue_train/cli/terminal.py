"""What a person sees while a run works: a live list of stages in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderHook, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from kexue_train.cli.json_board import JsonBoard
from kexue_train.foundation.json_logs import wants_json
from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.foundation.shown import PrintableStream, printable
from kexue_train.metrics.fields import ETA_SECONDS, Metric, metric_of

_PLAIN_INTERVAL_SECONDS = 10.0


def open_console(
    *, stderr: bool = False, file: Any = None, width: int | None = None, highlight: bool = True
) -> Console:
    """Return a console of rich that shows printable text alone; no other is made in this package.

    Rich writes what it is given beside the sequences that it makes for colours and cursor, so a text of an input has
    to be made harmless before the two are mixed.
    """
    stream = file or (sys.stderr if stderr else sys.stdout)
    below = stream.below if isinstance(stream, PrintableStream) else stream
    console = Console(file=below, width=width, highlight=highlight)
    console.push_render_hook(_PrintableHook())
    return console


class _PrintableHook(RenderHook):
    """What rich asks before it prints."""

    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        """Return the same, printable."""
        return [Printable(renderable) for renderable in renderables]


class Printable:
    """What rich shows as it would show ``content``, with every text of it printable."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.content, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class StageBoard(Protocol):
    """Show the stages of a run."""

    def start(self, stage: str) -> None:
        """Show that a stage begins."""
        ...

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Show how far the running stage is, as ``Progress`` has it."""
        ...

    def note(self, message: str) -> None:
        """Show a line that stays."""
        ...

    def finish(self, stage: str, summary: str, seconds: float, *, made: bool) -> None:
        """Show that a stage is complete."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_board(stages: Sequence[str], console: Console) -> StageBoard:
    """Return a live board in a terminal, plain lines when the output goes to a file or pipe; records for JSON logs."""
    if wants_json():
        return JsonBoard()
    return LiveBoard(stages, console) if console.is_terminal else PlainBoard(console)


class _Meter:
    """Rate and time left of the running stage."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first: float | None = None
        self.done, self.total, self.unit = 0.0, None, ""  # type: float, float | None, str
        self.facts: dict[str, float | str] = {}
        self.seconds_left: float | str | None = None

    def update(self, done: float, total: float | None, unit: str, facts: dict[str, float | str]) -> None:
        if self.first is None or unit != self.unit:
            self.first, self.started = done, time.monotonic()
        self.done, self.total, self.unit, self.facts = done, total, unit, facts
        self.seconds_left = facts.pop(ETA_SECONDS.key, None)  # of a stage that knows better

    def describe(self) -> str:
        """Return such as ``412/600 steps  ETA 1 min 12 s  loss 4.81``."""
        return "  ".join(filter(None, (self.describe_progress(), self.describe_facts())))

    def describe_progress(self) -> str:
        """Return such as ``412/600 steps  ETA 1 min 12 s``."""
        parts = []
        if self.unit == "bytes":
            parts.append(format_size(self.done) + (f"/{format_size(self.total)}" if self.total else ""))
        elif self.unit:
            parts.append(f"{self.done:,.0f}" + (f"/{self.total:,.0f}" if self.total else "") + f" {self.unit}")
        rate = (self.done - (self.first or 0.0)) / max(time.monotonic() - self.started, 1e-3)
        if self.unit == "bytes" and rate > 0:
            parts.append(f"{format_size(rate)}/s")
        left = self.seconds_left
        if left is None and self.total and rate > 0:
            left = (self.total - self.done) / rate
        if left:
            parts.append(f"ETA {format_seconds(float(left))}")
        return "  ".join(parts)

    def describe_facts(self) -> str:
        """Return such as ``loss 4.812  MLM accuracy 23.4%``."""
        return "  ".join(_describe_fact(name, value) for name, value in self.facts.items())


class PlainBoard:
    """One line when a stage starts and ends, and every ten seconds in between."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._meter, self._stage, self._said = _Meter(), "", 0.0

    def start(self, stage: str) -> None:
        """Write a line that the stage begins."""
        self._meter, self._stage, self._said = _Meter(), stage, self._clock()
        self._say(f"{stage}: started")

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Write a line if ten seconds have passed since the last one."""
        self._meter.update(done, total, unit, facts)
        if self._clock() - self._said >= _PLAIN_INTERVAL_SECONDS:
            self._said = self._clock()
            self._say(f"{self._stage}: {self._meter.describe()}")

    def note(self, message: str) -> None:
        """Write the message as a line."""
        self._say(f"{self._stage}: {message}")

    def finish(self, stage: str, summary: str, seconds: float, *, made: bool) -> None:
        """Write a line with what the stage made."""
        self._say(f"{stage}: {_ending(summary, seconds, made)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is nothing to put away."""

    def _say(self, text: str) -> None:
        self._console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


class LiveBoard:
    """A table with one row per stage; the running one has a bar."""

    def __init__(self, stages: Sequence[str], console: Console) -> None:
        self._rows: dict[str, Text | None] = dict.fromkeys(stages)
        self._meter, self._stage = _Meter(), ""
        self._spinner = Spinner("dots")
        self._live = Live(
            console=console,
            get_renderable=lambda: Printable(self._render()),
            refresh_per_second=8,
            redirect_stdout=False,
        )

    def start(self, stage: str) -> None:
        """Give the stage's row the bar."""
        self._stage, self._meter = stage, _Meter()

    def update(self, done: float, total: float | None, unit: str, **facts: float | str) -> None:
        """Move the bar."""
        self._meter.update(done, total, unit, facts)

    def note(self, message: str) -> None:
        """Write the message above the table."""
        self._live.console.print(Text(printable(f"{self._stage}: {message}"), style="dim"))

    def finish(self, stage: str, summary: str, seconds: float, *, made: bool) -> None:
        """Put what the stage made in place of the bar."""
        self._rows[stage] = Text(printable(_ending(summary, seconds, made)), style="" if made else "dim")
        self._stage = ""

    def __enter__(self) -> Self:
        self._live.__enter__()  # from now on what is written to standard error is shown above the table
        sys.stderr = cast("TextIO", PrintableStream(sys.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(width=2)
        table.add_column(min_width=10)
        table.add_column(overflow="fold")
        for stage, ending in self._rows.items():
            if ending is not None:
                table.add_row(Text("✓", style="green"), stage, ending)
            elif stage == self._stage:
                table.add_row(self._spinner, Text(stage, style="bold"), self._running())
            else:
                table.add_row("", Text(stage, style="dim"), "")
        return table

    def _running(self) -> Table:
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(
            total=self._meter.total or 1, completed=self._meter.done if self._meter.total else 0, width=24
        )
        row.add_row(bar, Text(self._meter.describe_progress()))
        table = Table.grid()
        table.add_row(row)
        if facts := self._meter.describe_facts():
            table.add_row(Text(printable(facts)))
        return table


def _ending(summary: str, seconds: float, made: bool) -> str:
    return f"{summary}  ({format_seconds(seconds)})" if made else f"{summary}  (complete before)"


def _describe_fact(name: str, value: float | str) -> str:
    """Write a fact of a stage: a metric of training as it is declared, others by their names."""
    metric = metric_of(name) or Metric(name, name)
    return f"{metric.label} {value if isinstance(value, str) else metric.write(value)}"


class SingleStage:
    """The board of one command: a ``Progress`` that is also a context manager."""

    def __init__(self, stage: str, console: Console) -> None:
        self._board = make_board([stage], console)
        self._stage = stage

    def __enter__(self) -> StageBoard:
        self._board.__enter__()
        self._board.start(self._stage)
        return self._board

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.__exit__(kind, error, trace)
