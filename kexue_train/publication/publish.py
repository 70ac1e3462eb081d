"""A finished run -> a folder for others: the model, its card, the report, and the chain from documents to weights."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kexue_train.foundation.artifacts import (
    CARD_NAME,
    MANIFEST_NAME,
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    digest_of,
    file_checksum,
    find_complete,
    open_partial,
    publish,
    read_manifest,
    verify_artifact,
)
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.foundation.run_dir import RunDir
from kexue_train.publication.card import complete_card
from kexue_train.publication.provenance import Chain, read_chain, trace, write_chain

KIND = "publication"
_PROVENANCE, _REPORT = "provenance", "report.html"


def publish_run(
    run: RunDir,
    out_dir: Path,
    *,
    license: str | None = None,
    data_notes: str = "",
    repository: str = "",
    progress: Progress = SILENT,
) -> Manifest:
    """Write ``out_dir`` from a run whose model is exported; an earlier publication in it is replaced.

    Raises:
        ArtifactError: If there is no exported model, a link of its chain is broken, or ``out_dir`` holds other things.
    """
    chain = trace(run)
    verify_artifact(run.hf, progress)
    card = (run.hf / CARD_NAME).read_text(encoding="utf-8") if (run.hf / CARD_NAME).exists() else ""
    card = complete_card(card, chain, license=license, data_notes=data_notes, repository=repository)
    report = run.report / "index.html"
    recipe = Recipe(
        kind=KIND,
        settings={"card": digest_of(card), "report": file_checksum(report) if report.exists() else None},
        parents={"hf_model": chain.model.content_digest},
    )
    if manifest := find_complete(out_dir, recipe, replace=_is_publication(out_dir), progress=progress):
        return manifest
    partial = open_partial(out_dir, recipe)
    for name in chain.model.files:
        _copy(run.hf / name, partial / name)
    if report.exists():
        _copy(report, partial / _REPORT)
    write_chain(chain, partial / _PROVENANCE)
    (partial / CARD_NAME).write_text(card, encoding="utf-8")
    return publish(partial, out_dir, build_manifest(recipe, describe_files(partial)))


def verify_publication(folder: Path, progress: Progress = SILENT) -> Chain:
    """Read every file of a publication again, and check the chain from the documents to these very weights.

    Raises:
        ArtifactError: Names the file or the link that does not hold.
    """
    manifest = verify_artifact(folder, progress)
    chain = read_chain(folder / _PROVENANCE)
    if manifest.parents.get("hf_model") != chain.model.content_digest:
        raise ArtifactError(f"{folder}: the provenance is that of another model; get the folder again")
    for name, entry in chain.model.files.items():
        if manifest.files.get(name) != entry:
            raise ArtifactError(
                f"{folder / name}: is not the file of the model that the provenance describes; get the folder again"
            )
    return chain


def find_paths(folder: Path) -> list[str]:
    """Return the absolute paths that the settings in a publication name, as ``manifest: key=path``."""
    chain = read_chain(folder / _PROVENANCE)
    return [f"{manifest.kind}: {line}" for manifest in chain.manifests for line in _paths_in(manifest.settings)]


def _paths_in(value: Any, key: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for name, member in value.items():
            if name.startswith("/"):
                yield f"{key}: {name}"
            yield from _paths_in(member, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for member in value:
            yield from _paths_in(member, key)
    elif isinstance(value, str) and value.startswith("/"):
        yield f"{key}={value}"


def _is_publication(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).exists() and read_manifest(folder).kind == KIND


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
