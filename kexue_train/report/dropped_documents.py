"""What the shuffle left out for its kind or by a filter: how many documents by reason, and a few of them."""

from __future__ import annotations

from collections import Counter

from kexue_train.report.run_data import RunData
from kexue_train.report.tables import Table

_SHOWN_CHARS = 160


def dropped_document_tables(run: RunData) -> list[Table]:
    """Return the table; none if nothing was left out."""
    shards = run.manifests.get("shards")
    counts = sum((Counter(entry.dropped) for entry in shards.inputs), Counter[str]()) if shards else Counter[str]()
    if shards is None or not counts:
        return []
    samples = shards.statistics.get("dropped_samples", {})
    rows = []
    for reason, count in counts.most_common():
        shown = samples.get(reason) or [{"file": "", "position": None, "text": ""}]
        for number, document in enumerate(shown):
            where = f"{document['file']}, {document['position']:,}" if document["file"] else ""
            text = " ".join(document["text"].split())[:_SHOWN_CHARS]
            rows.append([*([reason, f"{count:,}"] if number == 0 else ["", ""]), where, text])
    documents = counts.total() + sum(entry.rows for entry in shards.inputs)
    note = f"Of {documents:,} documents {counts.total():,} were left out."
    header = ["Reason", "Documents", "File, position", "The start of some of them"]
    return [Table("Documents that were left out", header, rows, numeric=False, notes=[note], wide=True)]
