"""The reference of the commands, from the commands themselves: what ``--help`` says, as pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from kexue_train.cli.app import TREE, app

_INTRODUCTION = """\
Every command takes `-h` and `--help`, and `--debug` to see a traceback. Each is safe to interrupt: run it again and it
resumes. Exit code 2: something to correct. Exit code 1: something failed."""


def command_reference() -> str:
    """Return the page of all commands, in the order of ``kexue --help``."""
    kexue: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        _INTRODUCTION,
    ]
    for heading, names in TREE.items():
        parts.append(f"## {heading}")
        for name in names:
            parts += _described(f"kexue {name}", kexue.commands[name])
    return "\n\n".join([*parts, ""])


def _described(name: str, command: Any) -> Iterator[str]:
    subcommands = getattr(command, "commands", {})
    if subcommands:
        for inner, subcommand in subcommands.items():
            yield from _described(f"{name} {inner}", subcommand)
        return
    context = command.make_context(name, [], resilient_parsing=True)
    yield f"### {name}"
    yield _prose(command.help or "")
    yield f"```text\n{name} {' '.join(command.collect_usage_pieces(context))}\n```"
    if example := re.sub(r"^.*Example:\n", "", command.epilog or "", flags=re.DOTALL).strip():
        yield f"```sh\n{example}\n```"
    rows = [_row(parameter, context) for parameter in command.get_params(context) if not _is_hidden(parameter)]
    yield "\n".join(["| argument, option | value | meaning |", "|---|---|---|", *rows])


def _is_hidden(parameter: Any) -> bool:
    return getattr(parameter, "hidden", False) or parameter.name == "help"


def _row(parameter: Any, context: Any) -> str:
    names, about = parameter.get_help_record(context)
    names, _, value = names.partition(" <")
    value = value.removesuffix(">").replace("|", " · ")
    return f"| `{names}` | {_cell(value)} | {_cell(about)} |"


def _cell(text: str) -> str:
    """Return ``text`` for a cell of a table: on one line, with nothing that Markdown would take for markup."""
    escaped = re.sub(r"([\\`*_{}<>|\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(
        r"(?<![\w-])(--?[a-z][\w-]*(?:\\_[\w-]+)*)", lambda flag: f"`{flag[1].replace(chr(92), '')}`", escaped
    )


def _prose(text: str) -> str:
    return text.replace("``", "`").replace("\b\n", "\n")
