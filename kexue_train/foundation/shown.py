"""The border to a terminal: text of inputs moves no cursor and sets no colour there, and no credentials get there.

File names, column names, keys, texts and values of configurations may hold escape sequences. They reach a person in
messages, so every text that a process of ours writes to a terminal passes through here.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kexue_train.foundation.credentials import redact

# C0 without newline and tab, DEL and C1; what turns the direction of text around; halves of surrogate pairs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return ``text`` without credentials and with control characters as escapes such as ``\x1b``.

    Newlines and tabs stay. The escapes are those of JSON where JSON has the characters as they are, so that a JSON text
    keeps its meaning.
    """
    return _CONTROLS.sub(_escaped, redact(text))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"


class PrintableStream:
    """A text stream that writes what is printable of a text; everything else is that of the stream below.

    Attributes:
        below: The stream as it is, for ``cli.terminal.open_console``, which moves the cursor on purpose.
    """

    def __init__(self, below: Any) -> None:
        self.below = below

    def write(self, text: str) -> int:
        """Write ``text``, printable."""
        self.below.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write each of ``lines``, printable."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def keep_streams_printable() -> None:
    """Let standard output and standard error of this process take printable text alone, up to the last traceback.

    What a program writes as bytes (``sys.stdout.buffer``, the file descriptor) is not changed.
    """
    sys.stdout, sys.stderr = (
        stream if stream is None or isinstance(stream, PrintableStream) else PrintableStream(stream)
        for stream in (sys.stdout, sys.stderr)
    )


def take_arguments() -> list[str]:
    """Return the arguments of this process as they were given, and mask their credentials in what it tells of itself.

    Loggers of curves record ``sys.argv``.
    """
    arguments = sys.argv[1:]
    sys.argv[1:] = map(redact, arguments)
    return arguments


@contextmanager
def printable_streams() -> Iterator[None]:
    """Let standard output and standard error take printable text alone meanwhile."""
    before = sys.stdout, sys.stderr
    keep_streams_printable()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class PrintableFormatter(logging.Formatter):
    """A formatter whose lines are printable, with the tracebacks in them."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return printable(super().format(record))
