"""Runs the ``kexue`` command in this process, for checks that look at what a person sees."""

from __future__ import annotations

import contextlib
import io
import logging
from pathlib import Path
from typing import NamedTuple

from kexue_train.cli.app import app
from kexue_train.cli.errors import run_command


class Ended(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str
    """Standard error, warnings included."""


def kexue(folder: Path, *arguments: object) -> Ended:
    """Run ``kexue`` with ``arguments`` in ``folder``; what writes bytes to the standard output needs a process."""
    out, err = io.StringIO(), io.StringIO()
    package, handler = logging.getLogger("kexue_train"), logging.StreamHandler(err)
    package.addHandler(handler)
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(app, [str(argument) for argument in arguments], "kexue")
    finally:
        package.removeHandler(handler)
    return Ended(code, out.getvalue(), err.getvalue())


def shuffle(folder: Path, *arguments: object) -> Ended:
    """Run ``kexue shuffle … -o out.jsonl --workers 1`` in ``folder``."""
    return kexue(folder, "shuffle", *arguments, "-o", "out.jsonl", "--workers", "1")


def count_rows(path: Path) -> int:
    """Return how many lines a file has."""
    return path.read_bytes().count(b"\n")
