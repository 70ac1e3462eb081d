"""How a command is declared, and what several of them share: arguments, progress, results."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from kexue_train.cli.options import ConfigOptions
from kexue_train.foundation.errors import ConfigError

if TYPE_CHECKING:
    from kexue_train.downstream.results.result import EvaluationResult
    from kexue_train.executor import Executor
    from kexue_train.foundation.artifacts import Manifest

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
Function = TypeVar("Function", bound=Callable[..., None])

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; other contents are not overwritten.")]
OutFile = Annotated[Path, typer.Option("--out", "-o", dir_okay=False, help="JSON file to write.")]
ConfigFile = Annotated[
    Path, typer.Option("--config", "-c", help="YAML file of a run, or the name of a shipped one, such as demo.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="section.key=value", help="Values that replace the file's.")
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Every random choice derives from it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else on standard output.")]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Run Python code of the model folder that is not kexue_train's own.")
]
Workers = Annotated[int | None, typer.Option(min=1, help="Local worker processes (default: the CPUs).")]
Ray = Annotated[str | None, typer.Option("--ray", metavar="ADDRESS", help="Run the tasks on this Ray cluster instead.")]


def command(app: typer.Typer, name: str, *, example: str) -> Callable[[Function], Function]:
    """Register a function as the command ``name``; its parameters are the arguments and options.

    Args:
        app: Where the command belongs.
        name: As it is typed.
        example: A command line that works, for the help text.
    """

    def register(function: Function) -> Function:
        kind = type("Command", (LazyCommand,), {"function": staticmethod(function)})
        epilog = f"\b\nExample:\n  {example}"
        app.command(name, cls=kind, help=inspect.getdoc(function), epilog=epilog)(lambda: None)
        return function

    return register


class LazyCommand(TyperCommand):
    """A command whose parameters are made when they are asked for, so that a list of commands is quick."""

    function: ClassVar[Callable[..., Any]]
    _is_made = False

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters."""
        if not self._is_made:
            made: Any = as_typer_command(self.function)
            self.params, self.callback, self._is_made = made.params, made.callback, True
        return super().get_params(ctx)


class QuickGroup(TyperGroup):
    """A group of commands that does not load pydantic, as typer does to convert a flag that is None."""

    def get_params(self, ctx: Any) -> Any:
        """Return the parameters, with False for the flags that are not given."""
        params = super().get_params(ctx)
        for param in params:
            if getattr(param, "is_flag", False) and param.default is None:
                param.default = False
        return params


def as_typer_command(function: Callable[..., Any]) -> Any:
    """Return ``function`` as typer's command; a parameter marked with ``options_of`` becomes several options."""
    parameters = inspect.signature(function).parameters
    marked = {name: entry.default for name, entry in parameters.items() if isinstance(entry.default, ConfigOptions)}
    typed = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for name, entry in parameters.items():
        typed += marked[name].parameters() if name in marked else [entry.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

    def run(context: typer.Context, **arguments: Any) -> Any:
        given = {name: options.take(arguments, context.command_path) for name, options in marked.items()}
        return function(**arguments, **given)

    return typer_command(run, typed)


def typer_command(run: Callable[..., Any], parameters: list[inspect.Parameter], **about: Any) -> Any:
    """Return typer's command that calls ``run`` with ``parameters``; ``about`` is its help and so on."""

    def call(**arguments: Any) -> Any:
        return run(**arguments)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect looks there first
    call.__annotations__ = {}
    app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP_OPTIONS)
    app.command(**about)(call)
    return typer.main.get_command(app)


def show_progress(stage: str) -> Any:
    """Return the board of a single stage, on standard error."""
    from kexue_train.cli.terminal import SingleStage, open_console  # noqa: PLC0415

    return SingleStage(stage, open_console(stderr=True))


@contextmanager
def making(stage: str, out: Path) -> Iterator[Any]:
    """Give the board of a single stage that makes ``out``; if it is refused, nothing is left of what it began."""
    from kexue_train.foundation.traces import untouched_if_refused  # noqa: PLC0415

    with untouched_if_refused(out), show_progress(stage) as progress:
        yield progress


def make_executor(workers: int | None, ray: str | None) -> Executor:
    """Return where the tasks run: local processes, or the Ray cluster that ``--ray`` names.

    Raises:
        ConfigError: If both are given.
    """
    from kexue_train.executor import LocalExecutor, RayExecutor  # noqa: PLC0415
    from kexue_train.foundation.runtime import available_cpus  # noqa: PLC0415

    if ray and workers:
        raise ConfigError("--workers and --ray are both given; local processes or a Ray cluster, not both")
    return RayExecutor(None if ray == "local" else ray) if ray else LocalExecutor(workers or available_cpus())


def ray_override(address: str | None) -> list[str]:
    """Return the override of a run's configuration that ``--ray`` stands for."""
    return [f"execution.ray_address={address}"] if address and address != "local" else []


def print_json(value: Any) -> None:
    """Print a result for a program."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_manifest(folder: Path, manifest: Manifest, as_json: bool, verb: str = "made") -> None:
    """Say in one line, or as JSON, what lies in ``folder``."""
    from kexue_train.foundation.runtime import format_size  # noqa: PLC0415

    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    rows = f"{manifest.rows:,} rows, " if manifest.rows else ""
    excluded = {"blank": manifest.statistics.get("blank", 0), "duplicate": manifest.statistics.get("duplicates", 0)}
    excluded["near-duplicate"] = manifest.statistics.get("near_duplicates", {}).get("removed", 0)
    excluded |= manifest.statistics.get("rejected", {})
    counted = "".join(f", {count:,} {reason}" for reason, count in excluded.items() if count)
    size = format_size(manifest.bytes)
    typer.echo(f"{folder}: {manifest.kind} {verb}, {rows}{len(manifest.files)} files, {size}{counted}")


def print_result(out: Path, result: EvaluationResult, summary: str, as_json: bool) -> None:
    """Write an evaluation to ``out`` and show it; the command ends here, with exit code 1 if something failed."""
    from kexue_train.cli.ending import print_tables  # noqa: PLC0415
    from kexue_train.downstream.results.files import write_result  # noqa: PLC0415

    write_result(out, result)
    if as_json:
        typer.echo(out.read_text(encoding="utf-8"), nl=False)
    else:
        print_tables(result, f"{out}: {summary}")
    raise typer.Exit(int(bool(result.failures)))
