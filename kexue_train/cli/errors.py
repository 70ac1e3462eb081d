"""What a person at a terminal sees of an error: one paragraph, and an exit code."""

from __future__ import annotations

import errno
import logging
import traceback
from collections.abc import Callable
from typing import Any

import typer

from kexue_train.foundation.errors import ConfigError, KexueError
from kexue_train.foundation.json_logs import logs_as_asked, wants_json
from kexue_train.foundation.shown import printable_streams

_INTERRUPTED = 130
_UsageError: Any = typer.BadParameter.__base__  # of typer's own click, or of the package in older versions


logger = logging.getLogger(__name__)


def run_command(command: Callable[..., Any], arguments: list[str], name: str) -> int:
    """Run a command of typer and return the exit code; an error becomes one paragraph on standard error.

    With ``--debug`` anywhere among the arguments an error shows its traceback.
    """
    with printable_streams():
        try:
            with logs_as_asked():
                return _run(command, arguments, name)
        except ConfigError as error:
            typer.echo(f"error: {error}", err=True)
            return error.exit_code


def _run(command: Callable[..., Any], arguments: list[str], name: str) -> int:
    words = [argument for argument in arguments if argument != "--debug"]
    try:
        code = int(command(words, prog_name=name, standalone_mode=False) or 0)
    except KeyboardInterrupt:
        code = _INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the border to the person at the terminal
        message, code = explain(error)
        _tell(error, message, with_traceback=len(words) < len(arguments))
        return code
    if code == _INTERRUPTED:
        typer.echo("stopped; finished work is kept, run the same command to resume", err=True)
    return code


def _tell(error: Exception, message: str, *, with_traceback: bool) -> None:
    if wants_json():
        is_ours = isinstance(error, KexueError | _UsageError)
        logger.error("%s", message.removeprefix("error: "), exc_info=error if with_traceback or not is_ours else None)
    elif with_traceback:
        traceback.print_exception(error)
    else:
        typer.echo(message, err=True)


def explain(error: Exception) -> tuple[str, int]:
    """Return the paragraph and the exit code for an error: 2 is for the user to correct, 1 is a failure."""
    if isinstance(error, KexueError):
        return f"error: {error}", error.exit_code
    if isinstance(error, _UsageError):
        message = error.format_message()
        if message.startswith("Usage: "):  # a group of commands without any
            return message, 2
        command = error.ctx.command_path if error.ctx else "kexue"
        return f"error: {message.strip()} Try '{command} --help'.", 2
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        advice = _OS_ADVICE.get(error.errno or 0)
        return f"error: {where}{advice or error.strerror or error}", 2 if advice else 1
    name = f"{type(error).__name__}: {error}"
    return f"error: internal error, {name}. Run again with --debug for the traceback, and please report it.", 1


_FREE_SPACE = "free some space, then run the same command again: finished work is kept"
_OS_ADVICE = {
    errno.ENOSPC: f"the disk is full; {_FREE_SPACE}",
    errno.EDQUOT: f"the disk quota is used up; {_FREE_SPACE}",
    errno.EACCES: "permission denied; check the owner and mode of the path, or choose another",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EMFILE: "too many open files; raise the limit with ulimit -n",
}
