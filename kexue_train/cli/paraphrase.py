"""``kexue paraphrase``: write paraphrases with a model that was trained to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kexue_train.cli.commands import AsJson, QuickGroup, command, print_json
from kexue_train.cli.options import Given, options_of

if TYPE_CHECKING:
    from kexue_train.downstream.settings import DecodingSettings

paraphrase_app = typer.Typer(cls=QuickGroup)


@command(paraphrase_app, "paraphrase", example='kexue paraphrase paraphraser "how do I reset my password" -n 20')
def write(
    model: Annotated[Path, typer.Argument(help="Folder of 'kexue finetune paraphrase'.")],
    text: Annotated[str, typer.Argument(help="A sentence.")],
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many to show.")] = 20,
    given: "Given[DecodingSettings]" = options_of("kexue_train.downstream.settings:DecodingSettings"),
    as_json: AsJson = False,
) -> None:
    """Write paraphrases of a sentence, the most similar by the model's own vectors first."""
    from kexue_train.downstream.paraphrase.write_paraphrases import write_paraphrases  # noqa: PLC0415  # loads torch

    found = write_paraphrases(model, text, number, given.config())
    if as_json:
        print_json([entry._asdict() for entry in found.ranked])
        return
    for entry in found.ranked:
        typer.echo(f"{entry.similarity:6.3f}  {entry.text}")
    typer.echo(found.summary, err=True)
