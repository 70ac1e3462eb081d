"""What the shuffle found of near duplicates: clusters by size, and the largest ones with the start of their texts."""

from __future__ import annotations

from collections import Counter
from typing import Any

from kexue_train.report.run_data import RunData
from kexue_train.report.tables import Table

_MAX_ROWS = 12
_SHOWN_CHARS = 160


def near_duplicate_tables(run: RunData) -> list[Table]:
    """Return the tables; none if the shuffle did not look for near duplicates."""
    found = run.manifests["shards"].statistics.get("near_duplicates") if "shards" in run.manifests else None
    if not found:
        return []
    note = (
        f"{found['clusters']:,} clusters of {found['texts']:,} different texts, of each of which the first in the "
        f"order of the corpus stays; {found['removed']:,} documents were left out. "
        f"In all bands {found['compared']:,} comparisons were made, {found['below_threshold']:,} of them below it."
    )
    rows = [
        [_name_range(low, high), f"{count:,}", f"{texts - count:,}"]
        for (low, high), count, texts in _by_range(found["sizes"])
    ]
    by_size = Table(
        "Clusters of near-duplicates", ["Different texts", "Clusters", "Texts left out"], rows, notes=[note]
    )
    return [by_size, *_largest(found["largest"])]


def _largest(clusters: list[dict[str, Any]]) -> list[Table]:
    rows = [
        [
            f"{cluster['texts']:,} texts" if number == 0 else "",
            "kept" if document["is_kept"] else "left out",
            f"{document['file']}, {document['position']:,}",
            " ".join(document["text"].split())[:_SHOWN_CHARS],
        ]
        for cluster in clusters
        for number, document in enumerate(cluster["documents"])
    ]
    notes = ["Of each cluster the document that is kept and up to two that are not, with the start of their texts."]
    header = ["", "", "File, position", "Text"]
    return [Table("Largest clusters", header, rows, numeric=False, notes=notes, wide=True)] if rows else []


def _by_range(sizes: dict[str, int]) -> list[tuple[tuple[int, int], int, int]]:
    """Return (range of sizes, clusters, texts): each size, or ranges up to powers of two if there are many."""
    clusters: Counter[tuple[int, int]] = Counter()
    texts: Counter[tuple[int, int]] = Counter()
    for size, count in ((int(size), count) for size, count in sizes.items()):
        high = size if len(sizes) <= _MAX_ROWS else 1 << (size - 1).bit_length()
        key = (high if len(sizes) <= _MAX_ROWS else high // 2 + 1, high)
        clusters[key] += count
        texts[key] += size * count
    return [(key, clusters[key], texts[key]) for key in sorted(clusters)]


def _name_range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
