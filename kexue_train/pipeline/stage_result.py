"""What a stage did, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kexue_train.foundation.artifacts import Manifest, read_manifest
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.runtime import format_seconds, format_size

_DATA = ("corpus", "text_shards", "sample_shards")


@dataclass(frozen=True)
class StageResult:
    """What a stage did."""

    stage: str
    made: bool
    """False if it was complete before."""
    seconds: float
    summary: str
    manifest: Manifest | None
    folder: Path
    """Where it lies."""

    @property
    def facts(self) -> dict[str, str]:
        """The same as a table: rows, bytes, speed, checksum, as far as the stage has them."""
        facts = {"result": self.summary}
        facts["time"] = format_seconds(self.seconds) if self.made else "complete before"
        if self.manifest is not None:
            facts |= {"rows": f"{self.manifest.rows:,}"} if self.manifest.rows else {}
            facts["bytes"] = format_size(self.manifest.bytes)
            if self.made and self.manifest.kind in _DATA:
                facts["speed"] = f"{format_size(self.manifest.bytes / self.seconds)}/s"
            if self.manifest.rows_checksum:
                facts["checksum of the rows"] = self.manifest.rows_checksum.output
            facts["digest"] = self.manifest.content_digest
        return facts | {"folder": str(self.folder)}


def describe(name: str, manifest: Manifest | None, folder: RunDir, samples: Mapping[int, Path]) -> str:
    """What the stage ``name`` made in ``folder``, in one line; ``samples`` are its sample folders by length."""
    if name == "report":
        return str(folder.report / "index.html")
    if manifest is None:
        return "files as given"
    s = manifest.statistics
    size = format_size(manifest.bytes)
    match name:
        case "corpus":
            return f"{manifest.rows:,} documents, {size} of installed documentation"
        case "shuffle":
            shards = len(list(folder.shards.glob("data-*")))
            return f"{manifest.rows:,} documents in {shards} shards, {size}, checksums agree"
        case "tokenizer":
            return f"{s['vocab_size']:,} pieces, {s['bytes_per_token']:.2f} bytes per token"
        case "samples":
            rows = " and ".join(f"{read_manifest(path).rows:,} rows of {seq_len}" for seq_len, path in samples.items())
            return f"{rows} tokens, {s['fill']:.1%} filled, {s['heldout_rows']:,} held out"
        case "train":
            return f"{s['steps']:,} steps, {s['tokens']:,} tokens, {s['parameters']:,} parameters"
        case "export":
            return f"{size}, logits equal to {s['max_logit_difference']:.1g} after reloading"
        case "evaluate":
            return f"MLM loss {s['mlm_loss']:.2f} nats, {s['mlm_accuracy']:.1%} of predicted tokens right"
        case _:
            return size
