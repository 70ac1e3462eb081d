"""Proves that what came out is what went in, and describes it in the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kexue_train.foundation.arrow_shards import format_checksum
from kexue_train.foundation.artifacts import (
    FileEntry,
    InputFile,
    Manifest,
    Recipe,
    RowsChecksum,
    build_manifest,
    file_checksum,
)
from kexue_train.foundation.errors import ArtifactError
from kexue_train.shuffle.by_source import Mixture
from kexue_train.shuffle.dropped_samples import join_samples, name_files
from kexue_train.shuffle.gather import GatherResult
from kexue_train.shuffle.mixing import count_groups, rank_correlation, source_mixing
from kexue_train.shuffle.outputs import shard_file_name
from kexue_train.shuffle.rejected_records import DROPPED, REJECTED
from kexue_train.shuffle.scatter_result import FileCounts, ScatterResult


@dataclass(frozen=True)
class Account:
    """All that the tasks of both passes counted."""

    scattered: Sequence[ScatterResult]
    gathered: Sequence[GatherResult]
    near: dict[str, Any] | None = None
    """What the search for near duplicates found; None: there was none."""
    mixture: Mixture = field(default_factory=Mixture)
    """The sources that were shuffled together."""

    def of_files(self) -> Iterator[tuple[int, FileCounts]]:
        """Return (file, what one task counted in it)."""
        for result in self.scattered:
            yield from result.files.items()

    def by_source(self) -> dict[str, dict[str, Any]]:
        """Return what became of every source of a mixture, by its name.

        Raises:
            ArtifactError: If rows of one are missing.
        """
        return self.mixture.describe(self.scattered, [result.sources for result in self.gathered])

    def prove(self) -> RowsChecksum:
        """Compare the multiset of rows offered with that written: offered = written + skipped, and so their hashes.

        Raises:
            ArtifactError: If they differ: something was lost, doubled or changed on the way.
        """
        offered = sum(r.offered for r in self.scattered)
        offered_sum = sum(r.offered_checksum for r in self.scattered)
        results: list[ScatterResult | GatherResult] = [*self.scattered, *self.gathered]
        near = sum(r.near_duplicates for r in self.gathered)
        near_sum = sum(r.near_duplicates_checksum for r in self.gathered)
        skipped = near + sum(r.duplicates + r.sampled_out for r in results)
        skipped_sum = near_sum + sum(r.duplicates_checksum + r.sampled_out_checksum for r in results)
        written, written_sum = sum(r.rows for r in self.gathered), sum(r.checksum for r in self.gathered)
        proof = RowsChecksum(
            input=format_checksum(offered_sum),
            dropped=format_checksum(skipped_sum),
            output=format_checksum(written_sum),
        )
        if offered != written + skipped or proof.input != format_checksum(written_sum + skipped_sum):
            raise ArtifactError(
                f"the shuffle read {offered} documents (checksum {proof.input}) but wrote {written} ({proof.output}) "
                f"and skipped {skipped} ({proof.dropped}): data was damaged on the way, so nothing is published; "
                "check disk and memory of the machine, then run it again"
            )
        return proof


def make_manifest(
    recipe: Recipe,
    account: Account,
    files: dict[str, FileEntry],
    *,
    seed: int,
    proof: RowsChecksum,
    written_in: Mapping[str, Any] | None = None,
) -> Manifest:
    """Return the manifest of a shuffle that wrote ``files``; ``written_in`` is what was found of its writing."""
    return build_manifest(
        recipe,
        files,
        seed=seed,
        rows=sum(result.rows for result in account.gathered),
        rows_checksum=proof,
        inputs=describe_inputs(recipe, account),
        statistics=shuffle_statistics(account, [uri for uri, _, _ in recipe.inputs]) | dict(written_in or {}),
    )


def describe_shuffle_files(account: Account, output: str, folder: Path) -> dict[str, FileEntry]:
    """Return the shards in ``folder``, and what else lies there."""
    num_shards = len(account.gathered)
    files = {
        shard_file_name(output, shard, num_shards): FileEntry(
            bytes=result.file_bytes,
            checksum=result.file_checksum,
            rows=result.rows,
            rows_checksum=format_checksum(result.checksum),
        )
        for shard, result in enumerate(account.gathered)
    }
    for name in ("dataset_info.json", "state.json", f"{REJECTED}/records.jsonl", f"{DROPPED}/records.jsonl"):
        path = folder / name
        if path.exists():
            files[name] = FileEntry(bytes=path.stat().st_size, checksum=file_checksum(path))
    return files


def describe_inputs(recipe: Recipe, account: Account) -> list[InputFile]:
    """Return the records accepted, rejected and filtered, by input file."""
    totals = [FileCounts() for _ in recipe.inputs]
    for number, counts in account.of_files():
        total = totals[number]
        total.rows += counts.rows
        total.blank += counts.blank
        total.checksum += counts.checksum
        total.rejected.update(counts.rejected)
        total.dropped.update(counts.dropped)
    return [
        InputFile(
            uri=uri,
            bytes=num_bytes,
            modified_ns=modified_ns,
            rows=total.rows,
            rows_checksum=format_checksum(total.checksum),
            blank=total.blank,
            rejected=dict(sorted(total.rejected.items())),
            dropped=dict(sorted(total.dropped.items())),
        )
        for (uri, num_bytes, modified_ns), total in zip(recipe.inputs, totals, strict=True)
    ]


def shuffle_statistics(account: Account, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures for the summary and the report; ``names`` are those of the input files."""
    documents, text_bytes = (sum(getattr(r, name) for r in account.gathered) for name in ("rows", "text_bytes"))
    rejected: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    for _, counts in account.of_files():
        rejected.update(counts.rejected)
        dropped.update(counts.dropped)
    samples = join_samples(result.dropped_samples for result in account.scattered)
    groups = count_groups(
        ((number, counts.shard_rows) for number, counts in account.of_files()), len(names), len(account.gathered)
    )
    return {
        "documents": documents,
        "text_bytes": text_bytes,
        "mean_document_bytes": round(text_bytes / documents, 1) if documents else 0.0,
        "longest_document_bytes": max((counts.longest for _, counts in account.of_files()), default=0),
        "input_files": len(names),
        "input_documents": sum(counts.rows for _, counts in account.of_files()),
        "offered": sum(r.offered for r in account.scattered),
        "blank": sum(counts.blank for _, counts in account.of_files()),
        "duplicates": sum(r.duplicates for r in account.scattered) + sum(r.duplicates for r in account.gathered),
        "sampled_out": sum(r.sampled_out for r in account.scattered) + sum(r.sampled_out for r in account.gathered),
        "rejected": dict(sorted(rejected.items())),
        "dropped": dict(sorted(dropped.items())),
        "unread_keys": sorted({key for result in account.scattered for key in result.unread_keys}),
        "shards": len(account.gathered),
        "source_mixing": source_mixing(groups),
        "rank_correlation": rank_correlation([result.order for result in account.gathered]),
        **({"sources": account.by_source()} if account.mixture.sources else {}),
        **({"dropped_samples": name_files(samples, names)} if samples else {}),
        **({} if account.near is None else {"near_duplicates": describe_near(account.near, account.gathered, names)}),
    }


def describe_near(found: dict[str, Any], gathered: Sequence[GatherResult], names: Sequence[str]) -> dict[str, Any]:
    """Return what the search for near duplicates found, with the beginnings of documents of the largest clusters."""
    shown = [entry for result in gathered for entry in result.shown]
    largest = [
        {
            "texts": size,
            "documents": [
                {"file": names[entry.file], "position": entry.position, "is_kept": entry.is_kept, "text": entry.text}
                for entry in sorted(shown, key=lambda entry: (not entry.is_kept, entry.file, entry.position))
                if entry.cluster == rank
            ],
        }
        for rank, size in enumerate(found["largest"])
    ]
    return {"removed": sum(result.near_duplicates for result in gathered), **found, "largest": largest}
