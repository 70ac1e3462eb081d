"""Run a flow from a shell, ``python -m flows.NAME CONFIG ...``; its options are the parameters of its function."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from flows.context import load_config
from flows.credentials import masked_parameters
from flows.server import require_server
from kexue_train.cli.commands import typer_command
from kexue_train.cli.errors import run_command
from kexue_train.cli.terminal import open_console
from kexue_train.foundation.shown import take_arguments
from kexue_train.pipeline.run_config import RunConfig


def run_flow(
    flow: Any,
    arguments: list[str] | None = None,
    *,
    find_complete: Callable[[RunConfig, Path], bool] = lambda *_: False,
    ending: Callable[[Path, Console], None] = lambda *_: None,
) -> int:
    """Run ``flow`` with the arguments of a command line.

    Args:
        flow: The flow; its function's parameters are the options, and the docstring's section Args their help.
        arguments: The arguments of the command line; by default those of this process.
        find_complete: Return whether nothing is left to do, and show it; in that case no server is started.
        ending: Print what was made.

    Returns:
        The exit code.
    """

    def run(**options: Any) -> None:
        config = load_config(options["config_path"], options["overrides"], options.get("ray_address"))
        options["run_dir"] = root = options["run_dir"] or Path("runs", config.name)
        if options.get("fresh") or not find_complete(config, root):  # a typo should not wait for a server to start
            require_server()
            with masked_parameters(options) as parameters:
                flow(**parameters)
        ending(root, open_console())

    return run_function(flow.fn, arguments, call=run, example="configs/demo.yaml --run-dir runs/demo")


def run_function(
    function: Callable[..., Any],
    arguments: list[str] | None = None,
    *,
    call: Callable[..., Any] | None = None,
    example: str,
) -> int:
    """Run ``call``, or ``function`` itself, with options made from the signature and docstring of ``function``.

    Returns:
        The exit code.
    """
    name = f"python -m flows.{function.__name__}"
    description, _, args = inspect.cleandoc(function.__doc__ or "").partition("\n\nArgs:\n")
    helps = {
        key: " ".join(text.split()) for key, text in re.findall(r"^    (\w+): ((?:.+\n?)(?:     +.+\n?)*)", args, re.M)
    }
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    command = typer_command(
        call or function,
        [_typed(parameter, helps[parameter.name]) for parameter in parameters],
        help=description,
        epilog=f"\b\nExample:\n  {name} {example}",
    )
    repeated = [_flag(parameter.name) for parameter in parameters if list[str] in (*get_args(parameter.annotation),)]
    return run_command(command, _spread(take_arguments() if arguments is None else arguments, repeated), name)


def _typed(parameter: inspect.Parameter, text: str) -> inspect.Parameter:
    text = text.replace("``", "")
    if parameter.name == "overrides":
        described: Any = typer.Argument(metavar="section.key=value", help=text)
    elif parameter.default is parameter.empty:
        described = typer.Argument(metavar=parameter.name.removesuffix("_path"), help=text)
    else:
        described = typer.Option(_flag(parameter.name), help=text)
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=Annotated[parameter.annotation, described])


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _spread(words: list[str], repeated: list[str]) -> list[str]:
    """Turn ``--inputs a b`` into ``--inputs a --inputs b``, for options that take several values."""
    spread: list[str] = []
    flag = ""
    for word in words:
        if word.startswith("-"):
            flag = word if word in repeated else ""
        elif flag and spread[-1] != flag:
            spread.append(flag)
        spread.append(word)
    return spread
