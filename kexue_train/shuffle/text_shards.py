"""Text shards: what the shuffle writes and the tokenizer and the samples read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kexue_train.foundation.arrow_shards import format_checksum
from kexue_train.foundation.artifacts import Manifest, verify_artifact
from kexue_train.foundation.errors import ArtifactError
from kexue_train.foundation.progress import SILENT, Progress
from kexue_train.shuffle.keys import hash_rows, sum_words
from kexue_train.shuffle.outputs import iter_shard, text_schema


def text_features(keep: Sequence[str]) -> dict[str, Any]:
    """Return the columns as ``datasets.Features.to_dict()`` gives them; loading ``datasets`` would take 80 MB."""
    return {name: {"dtype": "string", "_type": "Value"} for name in text_schema(keep).names}


def verify_text_shards(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Check every file against the manifest, then every row against its proof: as many rows, the same sum of hashes.

    Raises:
        ArtifactError: Names what differs.
    """
    manifest = verify_artifact(folder, progress)
    settings = manifest.settings
    total_rows = total = 0
    for name, entry in manifest.files.items():
        if not name.startswith("data-"):
            continue
        rows, checksum = _count(folder / name, settings.get("output", "arrow"), settings.get("keep", ()))
        found = (rows, format_checksum(checksum))
        if entry.rows_checksum is not None and found != (entry.rows, entry.rows_checksum):
            raise _differs(folder / name, rows, checksum, entry.rows, entry.rows_checksum)
        total_rows, total = total_rows + rows, total + checksum
    proof = manifest.rows_checksum.output if manifest.rows_checksum else None
    if total_rows != manifest.rows or format_checksum(total) != proof:
        raise _differs(folder, total_rows, total, manifest.rows, proof)
    return manifest


def _count(path: Path, output: Any, keep: Sequence[str]) -> tuple[int, int]:
    rows = checksum = 0
    for texts, extras in iter_shard(path, output, keep):
        rows += len(texts)
        checksum += sum_words(hash_rows(texts, extras))
    return rows, checksum


def _differs(path: Path, rows: int, checksum: int, expected_rows: int | None, expected: str | None) -> ArtifactError:
    return ArtifactError(
        f"{path}: holds {rows} rows with checksum {format_checksum(checksum)}, the manifest says {expected_rows} rows "
        f"with {expected or 'no checksum'}; delete the folder and run its stage again"
    )
