"""What the card of a published model says beyond that of the export: its name, licences, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from kexue_train.foundation.artifacts import Manifest
from kexue_train.foundation.runtime import format_size
from kexue_train.publication.provenance import Chain

_MOST_FILES = 30
_PLACEHOLDER = '"PATH"'


def complete_card(card: str, chain: Chain, *, license: str | None, data_notes: str, repository: str) -> str:
    """Return the card of the export with what a reader of the published model needs.

    Args:
        card: Markdown after YAML metadata.
        chain: Where the model comes from.
        license: Of the weights, an identifier of the hub such as ``apache-2.0``.
        data_notes: Markdown about the texts and their licences; may be empty.
        repository: ``OWNER/NAME`` on the hub, for the snippet; may be empty.
    """
    if repository:
        card = card.replace(_PLACEHOLDER, f'"{repository}"')
    sections = [_texts(chain, data_notes), _provenance(chain, repository)]
    return "\n\n".join([_with_license(card, license).rstrip(), *sections]) + "\n"


def _with_license(card: str, license: str | None) -> str:
    opening, _, rest = card.partition("---\n")
    metadata, closing, body = rest.partition("\n---\n")
    if license is None or opening or not closing:
        return card
    values = yaml.safe_load(metadata) | {"license": license}
    return f"---\n{yaml.safe_dump(values, allow_unicode=True, sort_keys=False)}---\n{body}"


def _texts(chain: Chain, notes: str) -> str:
    lines = ["## Texts"]
    for shards in chain.shards:
        entries = sorted(shards.inputs, key=lambda entry: -entry.rows)
        lines += ["", "| file | documents | size |", "|---|---:|---:|"]
        lines += [f"| {entry.uri} | {entry.rows:,} | {format_size(entry.bytes)} |" for entry in entries[:_MOST_FILES]]
        if more := entries[_MOST_FILES:]:
            size = format_size(sum(entry.bytes for entry in more))
            lines.append(f"| {len(more)} more | {sum(entry.rows for entry in more):,} | {size} |")
        lines += ["", ", ".join(_account(shards)) + "."]
    return "\n".join([*lines, "", notes.strip() or "The publisher said nothing about the licences of these texts."])


def _account(shards: Manifest) -> Iterator[str]:
    statistics = shards.statistics
    yield f"Training read {shards.rows:,} documents"
    yield f"{statistics.get('duplicates', 0):,} duplicates were left out"
    if near := statistics.get("near_duplicates"):
        yield f"{near['removed']:,} near-duplicates were left out"
    yield f"{sum(statistics.get('dropped', {}).values()):,} were left out for what they are or by filters"
    yield f"{sum(statistics.get('rejected', {}).values()):,} could not be read"


def _provenance(chain: Chain, repository: str) -> str:
    steps = " → ".join(manifest.kind.replace("_", " ") for manifest in chain.manifests)
    folder = repository.rpartition("/")[2] or "FOLDER"
    begins = "".join(
        f"\n\nTraining began with other weights, which are not part of this chain (digest `{origin.digest}`)."
        for origin in chain.origins
    )
    return f"""## Provenance

`provenance/` holds the manifest of each step: {steps}. Each names those before it by digests of their contents, and the
shards name every file of documents with the checksum of these.{begins}

```
kexue verify {folder}            # every file, and every link from the documents to the weights
kexue verify {folder} FILES...   # the same, and whether these files hold the documents
```

This finds what was damaged or mixed up. It is no signature. Who wants proof trains again: equal documents and settings
give equal shards, samples and batches."""
