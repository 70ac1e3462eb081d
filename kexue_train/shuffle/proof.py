"""Proves that what came out is what went in, and describes it in the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kexue_train.arrow_shards import format_checksum, shard_name
from kexue_train.artifacts import (
    FileEntry,
    InputFile,
    Manifest,
    Recipe,
    RowsChecksum,
    build_manifest,
    file_checksum,
)
from kexue_train.errors import ArtifactError
from kexue_train.shuffle.gather import GatherResult
from kexue_train.shuffle.pieces import count_sources
from kexue_train.shuffle.plan import ShufflePlan
from kexue_train.shuffle.scatter import ScatterResult

_MOD = 1 << 128


def prove_and_describe(
    recipe: Recipe,
    plan: ShufflePlan,
    scattered: Sequence[ScatterResult],
    gathered: Sequence[GatherResult],
    folder: Path,
    seed: int,
) -> Manifest:
    """The manifest of the shards in ``folder``.

    Raises:
        ArtifactError: If rows or sums of hashes in and out differ: something was lost, doubled or changed on the way.
    """
    checksum = prove(scattered, gathered)
    files = {
        shard_name(shard, plan.num_shards): FileEntry(
            bytes=result.file_bytes, checksum=result.file_checksum, rows=result.rows
        )
        for shard, result in enumerate(gathered)
    }
    for name in ("dataset_info.json", "state.json", "rejected/records.jsonl"):
        path = folder / name
        if path.exists():
            files[name] = FileEntry(bytes=path.stat().st_size, checksum=file_checksum(path))
    return build_manifest(
        recipe,
        files,
        seed=seed,
        rows=sum(result.rows for result in gathered),
        rows_checksum=checksum,
        inputs=describe_inputs(recipe, plan, scattered),
        statistics=describe(plan, scattered, gathered, len(recipe.inputs)),
    )


def prove(scattered: Sequence[ScatterResult], gathered: Sequence[GatherResult]) -> RowsChecksum:
    """Compare the multiset of texts read with that written: rows in = rows out + dropped, likewise their hashes."""
    rows_in, rows_out = sum(r.rows for r in scattered), sum(r.rows for r in gathered)
    dropped = sum(r.dropped for r in gathered)
    sum_in, sum_out = sum(r.checksum for r in scattered) % _MOD, sum(r.checksum for r in gathered) % _MOD
    sum_dropped = sum(r.dropped_checksum for r in gathered) % _MOD
    if rows_in != rows_out + dropped or sum_in != (sum_out + sum_dropped) % _MOD:
        raise ArtifactError(
            f"the shuffle read {rows_in} documents (checksum {format_checksum(sum_in)}) but wrote {rows_out} "
            f"({format_checksum(sum_out)}) and dropped {dropped} ({format_checksum(sum_dropped)}) as duplicates: data "
            "was damaged on the way, so nothing is published; check disk and memory of the machine, then run it again"
        )
    return RowsChecksum(
        input=format_checksum(sum_in), dropped=format_checksum(sum_dropped), output=format_checksum(sum_out)
    )


def describe_inputs(recipe: Recipe, plan: ShufflePlan, scattered: Sequence[ScatterResult]) -> list[InputFile]:
    """Records taken and refused, by input file."""
    rows: Counter[int] = Counter()
    rejected: dict[int, Counter[str]] = {}
    for entry, result in zip(plan.ranges, scattered, strict=True):
        rows[entry.file_index] += result.rows
        rejected.setdefault(entry.file_index, Counter()).update(result.rejected)
    return [
        InputFile(
            uri=uri,
            bytes=num_bytes,
            modified_ns=modified_ns,
            rows=rows[index],
            rejected=dict(sorted(rejected[index].items())),
        )
        for index, (uri, num_bytes, modified_ns) in enumerate(recipe.inputs)
    ]


def describe(
    plan: ShufflePlan, scattered: Sequence[ScatterResult], gathered: Sequence[GatherResult], num_files: int
) -> dict[str, Any]:
    """Figures for the summary and the report."""
    documents, text_bytes = sum(r.rows for r in gathered), sum(r.text_bytes for r in gathered)
    rejected: Counter[str] = Counter()
    for result in scattered:
        rejected.update(result.rejected)
    return {
        "documents": documents,
        "text_bytes": text_bytes,
        "mean_document_bytes": round(text_bytes / documents, 1),
        "longest_document_bytes": max(r.longest_text_bytes for r in scattered),
        "input_files": num_files,
        "input_documents": sum(r.rows for r in scattered),
        "blank": sum(r.blank for r in scattered),
        "duplicates": sum(r.dropped for r in gathered),
        "rejected": dict(sorted(rejected.items())),
        "shards": plan.num_shards,
        "source_mixing": measure_mixing(count_sources(scattered, plan, num_files)),
    }


def measure_mixing(counts: npt.NDArray[np.int64]) -> dict[str, float]:
    """How evenly the files (rows) lie over the shards (columns): Pearson's chi-square of independence.

    In a uniform shuffle of many documents it is about ``degrees_of_freedom``, give or take twice ``sqrt(2 * dof)``.
    """
    counts = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    expected = counts.sum(1, keepdims=True) * counts.sum(0, keepdims=True) / max(counts.sum(), 1)
    chi_square = float(((counts - expected) ** 2 / np.maximum(expected, 1e-300)).sum())
    return {"chi_square": round(chi_square, 3), "degrees_of_freedom": (counts.shape[0] - 1) * (counts.shape[1] - 1)}
