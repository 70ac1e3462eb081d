"""A run folder of a few kilobytes whose shards are real and whose later artifacts are made by hand."""

from __future__ import annotations

import json
from pathlib import Path

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.artifacts import (
    MANIFEST_NAME,
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    write_atomic,
)
from kexue_train.foundation.run_dir import RunDir
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus

CARD = """---
library_name: transformers
model-index: []
---

# A small encoder

AutoModel.from_pretrained("PATH")
"""


def write_corpus(folder: Path) -> list[Path]:
    """Two files of documents; one text occurs in both, and one is too short for the filter."""
    folder.mkdir(parents=True)
    texts = {"news": ["the cat sat", "a dog ran", "no"], "books": ["the cat sat", "once upon a time", "the end of it"]}
    paths = []
    for name, documents in texts.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        paths.append(path)
    return paths


def write_run(root: Path, corpus: Path, *, init_from: str | None = None) -> RunDir:
    """A run of ``corpus``, exported; ``init_from`` is the digest of weights from elsewhere."""
    run = RunDir(root)
    root.mkdir(parents=True)
    config = ShuffleConfig(shards=1, dedup="exact", filters={"min_chars": 5})
    shards = shuffle_corpus(config, [str(corpus)], run.shards, seed=1, executor=LocalExecutor(1))
    tokenizer = make(run.tokenizer, "tokenizer", {"vocab.txt": "[PAD]"}, text_shards=shards.content_digest)
    samples = make(
        run.samples, "sample_shards", {"rows": "1 2 3"},
        text_shards=shards.content_digest, tokenizer=tokenizer.content_digest,
    )  # fmt: skip
    weights = {"config.json": "{}", "model.safetensors": "weights"}
    more = {"init_from": init_from} if init_from else {}
    checkpoint = make(
        run.pretrain / "checkpoints" / "step-00000002", "checkpoint", weights, samples=samples.content_digest, **more
    )
    make(
        run.pretrain / "checkpoints" / "step-00000001",
        "checkpoint",
        weights | {"model.safetensors": "earlier weights"},
        samples="gone",
    )
    make(run.hf, "hf_model", weights, checkpoint=checkpoint.content_digest)
    (run.hf / "README.md").write_text(CARD)
    run.report.mkdir()
    (run.report / "index.html").write_text("<p>report</p>")
    return run


def make(folder: Path, kind: str, files: dict[str, str], **parents: str) -> Manifest:
    """An artifact of ``kind`` with these files."""
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    manifest = build_manifest(Recipe(kind=kind, settings={"kind": kind}, parents=parents), describe_files(folder))
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json())
    return manifest
