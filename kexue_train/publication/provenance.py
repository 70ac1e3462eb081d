"""The chain of manifests from the documents to the weights, and whether its links hold.

Each manifest names its parents by digests of their contents. So the manifest of the model commits to the checkpoint,
the checkpoint to the samples, the samples to tokenizer and shards, and the shards to the checksum of every document
that went in. A manifest of another artifact, or one that was changed, breaks a link.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kexue_train.foundation.arrow_shards import format_checksum
from kexue_train.foundation.artifacts import Manifest, read_manifest, read_manifest_file, write_atomic
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.train.initial_weights import recorded_digest_of_weights

MODEL, SHARDS = "hf_model", "text_shards"
_FROM_ELSEWHERE = frozenset({"init_from"})
"""Parents that may lie outside of the run: weights that were downloaded, say."""


class Origin(NamedTuple):
    """A parent that no manifest describes."""

    child: str
    """Kind of the artifact that has it."""
    name: str
    digest: str


@dataclass(frozen=True)
class Chain:
    """Manifests whose links hold."""

    manifests: tuple[Manifest, ...]
    """Parents first; the model comes last."""
    origins: tuple[Origin, ...]

    @property
    def model(self) -> Manifest:
        """The manifest of the model."""
        return self.manifests[-1]

    @property
    def shards(self) -> list[Manifest]:
        """The manifests of text shards, which name the documents."""
        return [manifest for manifest in self.manifests if manifest.kind == SHARDS]


def trace(run: RunDir) -> Chain:
    """Return the chain of a run's exported model; inputs are named from the folder that they share.

    Raises:
        ArtifactError: If the model is not there, or something that it was made from has changed or gone.
    """
    manifests = [read_manifest(folder) for folder in [*_artifacts_of(run), run.hf]]
    return make_chain(map(without_common_folder, manifests), drop_unused=True)


def make_chain(manifests: Iterable[Manifest], *, drop_unused: bool = False) -> Chain:
    """Return the chain of the only model among ``manifests``, every link of it checked.

    Args:
        manifests: In any order.
        drop_unused: Leave out what the model does not come from, instead of refusing it.

    Raises:
        ArtifactError: Names what is missing, changed, or not part of the chain.
    """
    found = list(manifests)
    models = [manifest for manifest in found if manifest.kind == MODEL]
    if len(models) != 1:
        raise ArtifactError(f"the provenance describes {len(models)} exported models; expected one")
    for manifest in found:
        check_account(manifest)
    order, origins = _parents_first(models[0], found)
    if not drop_unused and (strays := [manifest.kind for manifest in found if manifest not in order]):
        raise ArtifactError(
            f"the provenance describes what the model does not come from ({', '.join(strays)}), so files were added or "
            "changed; get the folder again, or publish the run again"
        )
    return Chain(tuple(order), tuple(dict.fromkeys(origins)))


def check_account(manifest: Manifest) -> None:
    """Check that the figures of a manifest fit each other: digests, sizes, and the checksums of the rows.

    Raises:
        ArtifactError: Names what does not fit.
    """
    if manifest.settings_digest != manifest.recipe.settings_digest:
        raise ArtifactError(f"{manifest.kind}: its settings do not fit their digest, so they were changed")
    if manifest.bytes != sum(entry.bytes for entry in manifest.files.values()):
        raise ArtifactError(f"{manifest.kind}: its size is not that of its files, so it was changed")
    proof = manifest.rows_checksum
    if manifest.kind != SHARDS or proof is None:
        return
    written = [entry.rows_checksum for entry in manifest.files.values() if entry.rows_checksum is not None]
    if written and sum_of(written) != proof.output:
        raise ArtifactError(f"{SHARDS}: the rows of its files do not add up to those of the whole")
    if sum_of([proof.dropped, proof.output]) != proof.input:
        raise ArtifactError(f"{SHARDS}: the rows that came out and those left out do not add up to those that went in")
    read = [entry.rows_checksum for entry in manifest.inputs if entry.rows_checksum is not None]
    if counts_each_once(manifest) and len(read) == len(manifest.inputs) and sum_of(read) != proof.input:
        raise ArtifactError(f"{SHARDS}: the documents of its inputs do not add up to those that went in")


def counts_each_once(shards: Manifest) -> bool:
    """Return whether every document was offered once: no weights, no drawing with replacement."""
    read = shards.statistics.get("input_documents")
    return not shards.settings.get("weights") and read is not None and read == shards.statistics.get("offered")


def sum_of(checksums: Sequence[str]) -> str:
    """Return the sum of checksums of rows, in the form of ``RowsChecksum``."""
    return format_checksum(sum(int(checksum, 16) for checksum in checksums))


def write_chain(chain: Chain, folder: Path) -> None:
    """Write ``01-corpus.json`` ... into ``folder``, parents first."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, manifest in enumerate(chain.manifests, 1):
        write_atomic(folder / f"{number:02d}-{manifest.kind}.json", manifest.model_dump_json(indent=2) + "\n")


def read_chain(folder: Path) -> Chain:
    """Read what ``write_chain`` wrote, and check it.

    Raises:
        ArtifactError: If the chain is not there, or does not hold.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise ArtifactError(f"{folder}: holds no provenance; give a folder that 'kexue publish' made")
    return make_chain([_read(path) for path in paths])


def _read(path: Path) -> Manifest:
    try:
        return read_manifest_file(path)
    except (OSError, ValueError, AttributeError) as error:  # pydantic's errors are ValueErrors
        first = str(error).partition("\n")[0]
        raise ArtifactError(f"{path}: is no manifest ({first}); get the folder again") from None


def without_common_folder(manifest: Manifest) -> Manifest:
    """Return the manifest with its inputs named from the folder they share: nobody needs to know where it was.

    Inputs ``/home/eva/corpus/a.txt`` and ``/home/eva/corpus/more/b.txt`` become ``a.txt`` and ``more/b.txt``. Digests
    of contents do not depend on these names.
    """
    folders = [entry.uri.rpartition("/")[0] for entry in manifest.inputs]
    if not folders or len({folder.startswith("/") for folder in folders}) > 1:
        return manifest
    shared = os.path.commonpath(folders)  # an address is text here; of s3://a/b and s3://a/c this is s3:/a
    if any(not entry.uri.startswith(shared) for entry in manifest.inputs):
        return manifest
    inputs = [entry.model_copy(update={"uri": entry.uri[len(shared) :].lstrip("/")}) for entry in manifest.inputs]
    statistics = _without_prefix(manifest.statistics, f"{shared}/")
    return manifest.model_copy(update={"inputs": inputs, "statistics": statistics})


def _without_prefix(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return {key: _without_prefix(member, prefix) for key, member in value.items()}
    if isinstance(value, list):
        return [_without_prefix(member, prefix) for member in value]
    return value.removeprefix(prefix) if isinstance(value, str) else value


def _parents_first(model: Manifest, known: Sequence[Manifest]) -> tuple[list[Manifest], list[Origin]]:
    order: list[Manifest] = []
    origins: list[Origin] = []

    def add(manifest: Manifest, children: tuple[Manifest, ...]) -> None:
        if manifest in children:
            raise ArtifactError(f"{manifest.kind}: is said to be made from itself, so the provenance was changed")
        if manifest in order:
            return
        for name, digest in manifest.parents.items():
            parent = _find(digest, known)
            if parent is not None:
                add(parent, (*children, manifest))
            elif name in _FROM_ELSEWHERE:
                origins.append(Origin(manifest.kind, name, digest))
            else:
                raise ArtifactError(
                    f"{manifest.kind}: was made from '{name}' with the digest {digest}, which is not here: it was made "
                    "again, changed or deleted since; run the stages again, then publish"
                )
        order.append(manifest)

    add(model, ())
    return order, origins


def _find(digest: str, known: Sequence[Manifest]) -> Manifest | None:
    for manifest in known:
        if digest in (manifest.content_digest, recorded_digest_of_weights(manifest)):
            return manifest
    return None


def _artifacts_of(run: RunDir) -> Iterator[Path]:
    stages = [run.corpus, run.shards, run.tokenizer, run.samples]
    checkpoints = [
        path for stage in (run.pretrain, run.supervised) for path in sorted(stage.glob("checkpoints/step-*"))
    ]
    for folder in [*stages, *checkpoints]:
        if (folder / "manifest.json").exists():
            yield folder
