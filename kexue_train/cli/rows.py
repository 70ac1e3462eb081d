"""``kexue rows``: what a step of a training has read."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kexue_train.cli.commands import AsJson, QuickGroup, command, print_json, show_progress

if TYPE_CHECKING:
    from kexue_train.pipeline.rows import Row, Segment, Step

rows_app = typer.Typer(cls=QuickGroup)
_SHOWN = 90


@command(rows_app, "rows", example="kexue rows runs/demo --step 800 --documents")
def rows_command(
    run: Annotated[Path, typer.Argument(help="Run folder whose samples are there.")],
    step: Annotated[int, typer.Option(min=1, help="Step of the pretraining, from 1.")],
    left_out: Annotated[
        bool, typer.Option("--left-out", help="The rows that it read before the training went back because of a spike.")
    ] = False,
    documents: Annotated[
        bool, typer.Option("--documents", help="Find their documents; reads the text shards they come from.")
    ] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Find the files and lines of the documents too; reads the whole corpus.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the rows that a step read as text, their documents, and the files and lines of these."""
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.pipeline.rows import find_lines, rows_of_step, with_documents  # noqa: PLC0415

    folder = RunDir(run)
    found, places = rows_of_step(folder, step, left_out=left_out), {}
    if documents or lines:
        with show_progress("documents") as progress:
            found = with_documents(found, folder.shards, progress)
    if lines:
        with show_progress("lines") as progress:
            places = find_lines(found, folder.shards, progress)
    if as_json:
        print_json(_as_values(found, places))
        return
    for line in _as_lines(found, places):
        typer.echo(line)


def _as_lines(step: "Step", lines: dict[str, list[str]]) -> Iterator[str]:
    from kexue_train.foundation.shown import printable  # noqa: PLC0415

    skipped = f", after {step.skipped_rows:,} that were left out" if step.skipped_rows else ""
    yield f"step {step.number:,}: {len(step.rows):,} rows of {step.samples}{skipped}"
    for row in step.rows:
        yield f"row {row.number:,} (shard {row.shard}, epoch {row.epoch})"
        for sequence in row.sequences:
            names = ("A", {True: "B, follows", False: "B, from another document", None: ""}[sequence.follows])
            for name, segment in zip(names, sequence.segments, strict=False):
                of = f" ({printable(segment.source)})" if segment.source else ""
                yield f"  {name}{of}: {printable(_shorten(segment.text))}"
                yield from (f"      {printable(line)}" for line in _where(segment, lines))


def _where(segment: "Segment", lines: dict[str, list[str]]) -> Iterator[str]:
    for place in segment.places:
        yield f"{place.shard.name}, document {place.document}"
        yield from lines.get(place.text, ())


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _as_values(step: "Step", lines: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "step": step.number,
        "samples": str(step.samples),
        "skipped_rows": step.skipped_rows,
        "rows": [_row_values(row, lines) for row in step.rows],
    }


def _row_values(row: "Row", lines: dict[str, list[str]]) -> dict[str, Any]:
    def values(segment: "Segment") -> dict[str, Any]:
        places = [
            {"shard": str(place.shard), "document": place.document, "lines": lines.get(place.text, [])}
            for place in segment.places
        ]
        source = {"source": segment.source} if segment.source else {}
        return {"text": segment.text, **source, "tokens": segment.tokens.tolist(), "documents": places}

    sequences = [
        {"follows": sequence.follows, "segments": [values(segment) for segment in sequence.segments]}
        for sequence in row.sequences
    ]
    return {"row": row.number, "epoch": row.epoch, "shard": row.shard, "sequences": sequences}
