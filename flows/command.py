"""``python -m flows.NAME CONFIG ...``: a flow from a shell, its errors in one paragraph."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.server import require_server
from flows.workshop import load_config
from kexue_train.foundation.errors import KexueError
from kexue_train.pipeline.run_config import RunConfig

_INTERRUPTED = 130


def parser_of(flow: Any, *, ray: bool = True) -> argparse.ArgumentParser:
    """The arguments that all flows have, and that of Ray."""
    module = flow.fn.__module__ if flow.fn.__module__ != "__main__" else f"flows.{flow.fn.__name__}"
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=flow.description.partition("\n")[0])
    parser.add_argument(
        "config_path", metavar="config", type=Path, help="YAML file of a run, such as configs/demo.yaml"
    )
    parser.add_argument("--run-dir", type=Path, help="run folder (default: runs/NAME)")
    if ray:
        parser.add_argument("--ray-address", metavar="HOST:PORT", help="a running Ray cluster (default: a local one)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def run_flow(
    flow: Any,
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    *,
    find_complete: Callable[[RunConfig, Path], bool] = lambda *_: False,
    ending: Callable[[Path, Console], None] = lambda *_: None,
) -> int:
    """Run ``flow`` with the arguments of the command line.

    Args:
        flow: The flow; its parameters are the parser's arguments.
        parser: From ``parser_of``, with what the flow has of its own.
        arguments: Of the command line.
        find_complete: Whether nothing is left to do, in which case no server is started; it says so itself.
        ending: Says what was made.

    Returns:
        The exit code.
    """
    options = vars(parser.parse_intermixed_args(arguments))
    try:
        config = load_config(options["config_path"], options["overrides"], options.get("ray_address"))
        options["run_dir"] = root = options["run_dir"] or Path("runs", config.name)
        if options.get("fresh") or not find_complete(config, root):  # a typo should not wait for a server to start
            require_server()
            flow(**options)
    except KexueError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on\n")
        return _INTERRUPTED
    ending(root, Console())
    return 0
