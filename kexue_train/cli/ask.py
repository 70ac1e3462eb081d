"""``kexue ask``: what the checkpoints of a run have learnt so far."""

from pathlib import Path
from typing import Annotated

import typer

from kexue_train.cli.commands import AsJson, QuickGroup, command, print_json

ask_app = typer.Typer(cls=QuickGroup)


@command(ask_app, "ask", example="kexue ask runs/demo 'the [MASK] of the file is not known.'")
def ask_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run, finished or not, of a checkpoint, or of a model.")],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", help="Sentences with [MASK]; of others, which are most like the first."),
    ] = None,
    sentences: Annotated[
        Path | None, typer.Option(help="File of more sentences, one per line.", exists=True, dir_okay=False)
    ] = None,
    step: Annotated[
        list[int] | None, typer.Option(help="Checkpoint to ask, beside each other (default: the oldest, the newest).")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="Answers to show.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Ask the checkpoints of a run for words at [MASK], or for the sentences most like one, old beside new."""
    from kexue_train.cli.ending import print_table  # noqa: PLC0415
    from kexue_train.cli.terminal import open_console  # noqa: PLC0415
    from kexue_train.downstream.ask import ask, find_checkpoints  # noqa: PLC0415  # loads torch
    from kexue_train.downstream.evaluate.masked_words import read_sentences  # noqa: PLC0415

    checkpoints = find_checkpoints(run, step or ())
    tables = ask(checkpoints, [*(texts or []), *(read_sentences(sentences) if sentences else [])], number)
    if as_json:
        print_json([table._asdict() for table in tables])
        return
    console = open_console(highlight=False)
    for table in tables:
        print_table(table, console)
