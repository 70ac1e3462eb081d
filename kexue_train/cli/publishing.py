"""Commands about what leaves this machine: a run published, a folder verified."""

from pathlib import Path
from typing import Annotated, Any

import typer

from kexue_train.cli.commands import AsJson, command, making, print_json, print_manifest, show_progress
from kexue_train.foundation.errors import ConfigError

publishing_app = typer.Typer()


@command(publishing_app, "publish", example="kexue publish runs/demo --out published/demo --license apache-2.0")
def publish_command(
    run: Annotated[Path, typer.Argument(help="Folder of a run whose model is exported.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write (default: RUN/published).", show_default=False)
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="Of the weights, as the hub calls it: apache-2.0, cc-by-4.0...")
    ] = None,
    data_notes: Annotated[
        Path | None,
        typer.Option(
            help="Markdown file about the texts and their licences, for the card.", exists=True, dir_okay=False
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to this repository of the Hugging Face hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository a private one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a folder for others: model, card, report, and the chain from the documents to the weights."""
    from kexue_train.foundation.run_dir import RunDir  # noqa: PLC0415
    from kexue_train.publication.hub import check_repository, push_folder  # noqa: PLC0415
    from kexue_train.publication.publish import find_paths, publish_run  # noqa: PLC0415

    if private and push is None:
        raise ConfigError("--private does nothing without --push; add --push OWNER/NAME, or leave it out")
    if push is not None:
        check_repository(push)
    folder = out or RunDir(run).published
    notes = _read_notes(data_notes) if data_notes else ""
    with making("publish", folder) as progress:
        manifest = publish_run(
            RunDir(run), folder, license=license, data_notes=notes, repository=push or "", progress=progress
        )
    print_manifest(folder, manifest, as_json)
    for path in find_paths(folder):
        typer.echo(f"published with the settings: {path}", err=True)
    if push is not None:
        typer.echo(push_folder(folder, push, private=private), err=as_json)


@command(publishing_app, "verify", example="kexue verify runs/demo/shards")
def verify_command(
    folder: Annotated[Path, typer.Argument(help="Folder that a stage wrote, or a published model.")],
    documents: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="DOCUMENTS...", help="Of a published model: files, folders or globs that it may be made from."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read a stage's folder or a published model again and compare every checksum."""
    from kexue_train.foundation.artifacts import read_manifest, verify_artifact  # noqa: PLC0415
    from kexue_train.samples.verify import verify_sample_shards  # noqa: PLC0415
    from kexue_train.shuffle.text_shards import verify_text_shards  # noqa: PLC0415

    kind = read_manifest(folder).kind
    if kind == "publication":
        _verify_publication(folder, documents or [], as_json)
        return
    if documents:
        raise ConfigError(
            f"{documents[0]}: documents are compared with a published model, and {folder} is of the kind {kind}; give "
            "the folder alone"
        )
    checks = {"text_shards": verify_text_shards, "sample_shards": verify_sample_shards}
    with show_progress("verify") as progress:
        manifest = checks.get(kind, verify_artifact)(folder, progress)
    print_manifest(folder, manifest, as_json, verb="whole")


def _verify_publication(folder: Path, corpus: list[str], as_json: bool) -> None:
    from kexue_train.publication.documents import compare_documents  # noqa: PLC0415
    from kexue_train.publication.publish import verify_publication  # noqa: PLC0415

    with show_progress("verify") as progress:
        chain = verify_publication(folder, progress)
        compared = (
            [entry for shards in chain.shards for entry in compare_documents(shards, corpus, progress)]
            if corpus
            else []
        )
    missing = [entry for entry in compared if entry.found_in is None]
    if as_json:
        print_json(_as_values(chain, compared))
    else:
        typer.echo(f"{folder}: every file is whole, and every link holds:")
        for manifest in chain.manifests:
            typer.echo(f"  {manifest.kind:<14} {manifest.content_digest}")
        for origin in chain.origins:
            typer.echo(f"  training began with weights from elsewhere, {origin.digest}")
        for entry in compared:
            typer.echo(
                f"  {entry.name}: {entry.documents:,} documents, {entry.found_in or 'not among the given files'}"
            )
    if missing:
        typer.echo(f"{len(missing)} of {len(compared)} files of documents were not found", err=True)
    raise typer.Exit(int(bool(missing)))


def _as_values(chain: Any, compared: list[Any]) -> dict[str, Any]:
    return {
        "chain": [{"kind": manifest.kind, "digest": manifest.content_digest} for manifest in chain.manifests],
        "origins": [origin._asdict() for origin in chain.origins],
        "documents": [entry._asdict() for entry in compared],
    }


def _read_notes(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--data-notes {path}: cannot be read as a UTF-8 text file ({error})") from None
