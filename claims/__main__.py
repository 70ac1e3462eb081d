"""``python -m claims``: measure what the blog says; ``--help`` tells the options."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from claims.all_claims import CLAIMS
from claims.claim import Claim, Setting
from claims.page import write_page, write_pictures
from claims.results import Entry, read_results, write_results
from claims.run_claims import Outcome, run_claims
from claims.table import make_table
from kexue_train.foundation.errors import KexueError


def choose(only: str, claims: tuple[Claim, ...] = CLAIMS) -> list[Claim]:
    """Return the claims that ``only`` names, with commas between the names; all of them for an empty text.

    Raises:
        KexueError: If there is no such claim.
    """
    wanted = [name.strip() for name in only.split(",") if name.strip()]
    by_name = {claim.name: claim for claim in claims}
    for name in wanted:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise KexueError(f"--only: no claim {name!r}; {hint}There are: {', '.join(by_name)}")
    return [by_name[name] for name in dict.fromkeys(wanted)] or list(claims)


def main(
    only: Annotated[str, typer.Option(metavar="NAMES", help="Claims, with commas; default: all.")] = "",
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Time for all; the cheapest come first, what does not fit is not run.")
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="File that keeps results; claims measured now replace their entries.")
    ] = None,
    pictures: Annotated[Path | None, typer.Option(help="Folder for one SVG per claim.")] = None,
    page: Annotated[Path | None, typer.Option(help="Markdown page with table and pictures, as docs/claims.md.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Text to train on: a file or folder that kexue shuffle reads.")
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder for text and samples that are made once.")] = Setting.cache,
) -> None:
    """Measure claims of kexue.fm and write one table: figures, confirmed / refuted / undecidable here, seconds.

    Exit status 1: a measurement crashed. That a claim is refuted is a result and no error.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    torch.set_num_threads(1)
    try:
        chosen, entries = choose(only), read_results(json_path) if json_path else {}
    except KexueError as error:
        console.print(str(error), markup=False)
        raise typer.Exit(error.exit_code) from None
    outcomes: list[Outcome] = []
    for outcome in run_claims(chosen, Setting(cache, corpus), minutes=minutes):
        outcomes.append(outcome)
        console.print(f"{outcome.status:16} {outcome.name}, {outcome.seconds:.1f} s {outcome.message}", markup=False)
        if outcome.status not in ("not run", "crashed"):
            entries[outcome.name] = Entry.of(outcome)
            if json_path:
                write_results(json_path, entries, CLAIMS)
    if pictures:
        write_pictures(pictures, CLAIMS, entries)
    if page:
        write_page(page, CLAIMS, entries)
    Console().print(make_table(chosen, outcomes))
    raise typer.Exit(int(any(outcome.status == "crashed" for outcome in outcomes)))


if __name__ == "__main__":
    typer.run(main)
