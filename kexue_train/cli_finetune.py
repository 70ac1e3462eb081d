"""``kexue finetune``: train an exported model further on labelled data, and say what that is worth."""

from __future__ import annotations

import typer

finetune_app = typer.Typer(help="Train an exported model further on labelled data.", no_args_is_help=True)


@finetune_app.callback()
def _finetune() -> None:
    """Keeps the names of the commands while there is only one."""
