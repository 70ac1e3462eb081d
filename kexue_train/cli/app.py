"""The ``kexue`` command: the tree of its commands. Each loads what it needs only when it runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from kexue_train import __version__
from kexue_train.cli.ask import ask_app
from kexue_train.cli.commands import HELP_OPTIONS, QuickGroup
from kexue_train.cli.data import data_app
from kexue_train.cli.errors import run_command
from kexue_train.cli.evaluate import evaluate_app
from kexue_train.cli.finetune import finetune_app
from kexue_train.cli.paraphrase import paraphrase_app
from kexue_train.cli.publishing import publishing_app
from kexue_train.cli.rows import rows_app
from kexue_train.cli.runs import runs_app
from kexue_train.cli.training import training_app
from kexue_train.cli.trying import trying_app
from kexue_train.foundation.shown import take_arguments

TREE = {
    "Before a run": ("doctor", "init", "plan", "try"),
    "A whole run": ("pipeline",),
    "Data": ("corpus-from-docs", "shuffle", "tokenizer", "samples", "verify"),
    "Training": ("train", "supervise", "export", "import-weights"),
    "Results": ("ask", "rows", "evaluate", "finetune", "paraphrase", "report", "publish", "metrics"),
}
"""The commands in the order of the data, under the headings of ``kexue --help``."""


class KexueGroup(QuickGroup):
    """The command ``kexue``, whose help lists the commands under headings."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  # click's
        """Return the commands in the order of the data."""
        return [name for names in TREE.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # click's
        """Write a list for each heading."""
        for heading, names in TREE.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:16}", self.commands[name].get_short_help_str(100)) for name in names])


app = typer.Typer(
    cls=KexueGroup,
    help="Raw text in, a pretrained RoFormerV2 encoder out. Each command is safe to interrupt; run it again to resume.",
    epilog="Add --debug to any command to see a traceback. Exit code 2: something to correct; 1: something failed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
)
for commands in (runs_app, trying_app, data_app, training_app, publishing_app, ask_app, rows_app, paraphrase_app):
    app.add_typer(commands)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(finetune_app, name="finetune")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kexue {__version__}")
        raise typer.Exit


@app.callback()
def _kexue(
    version: Annotated[  # its callback acts
        bool, typer.Option("--version", is_eager=True, help="Show the version and exit.", callback=_show_version)
    ] = False,
) -> None:
    """Take the options of ``kexue`` itself."""


def main() -> None:
    """Run the command; errors become one paragraph and an exit code."""
    os.environ.setdefault("MIMALLOC_PURGE_DELAY", "10000")  # for Arrow, before it is loaded; see keep_freed_memory
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # to look for some takes a tenth of the time of --help
    sys.exit(run_command(app, take_arguments(), "kexue"))
