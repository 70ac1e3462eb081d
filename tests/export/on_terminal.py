"""Runs Python programs as a person does who pastes them: each in a process of its own, on a terminal.

    python on_terminal.py < programs.json > shown.json    {"name": "program"} -> {"name": [exit code, "what it showed"]}

Importing torch and transformers takes most of the time, so one process does it, and a copy of it runs each program.
It uses nothing of kexue_train or pytest, so any interpreter with transformers will do.
"""

from __future__ import annotations

import json
import os
import pty
import sys
import traceback

from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast  # noqa: F401  # only loaded


def run(name: str, program: str) -> tuple[int, str]:
    """Return the exit code, and all that the terminal showed, progress bars left out."""
    process, terminal = pty.fork()
    if process == 0:
        os._exit(_execute(name, program))
    written = b""
    while piece := _read(terminal):
        written += piece
    lines = written.decode(errors="replace").replace("\r", "\n").splitlines()
    shown = [line for line in lines if line.strip() and not line.startswith("Loading weights:")]
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), "\n".join(shown)


def _execute(name: str, program: str) -> int:
    try:
        exec(compile(program, name, "exec"), {"__name__": "__main__"})  # noqa: S102  # that is what this is for
    except BaseException:  # noqa: BLE001  # shown, as Python itself would
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the program has ended
        return b""


if __name__ == "__main__":
    json.dump({name: run(name, program) for name, program in json.load(sys.stdin).items()}, sys.stdout)
