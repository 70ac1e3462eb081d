"""Whether a run has nothing left to do, answered from small files, before Prefect or Ray are started."""

from __future__ import annotations

import json
from pathlib import Path

from kexue_train.corpus.inputs import find_inputs
from kexue_train.downstream.evaluate.evaluate_model import inputs_of
from kexue_train.foundation.artifacts import (
    Manifest,
    check_files,
    digest_of,
    file_checksum,
    read_manifest,
    write_atomic,
)
from kexue_train.foundation.errors import KexueError
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.samples.bert_tokenizer import find_vocabulary

_NAME = ".complete.json"


def record_complete(config: RunConfig, folder: RunDir) -> None:
    """Remember that every stage of ``config`` is complete in ``folder``."""
    write_atomic(folder.root / _NAME, json.dumps(_fingerprint(config, folder), indent=2) + "\n")


def is_complete(config: RunConfig, folder: RunDir) -> bool:
    """Whether every stage is complete for this configuration, with inputs and artifacts as they were then."""
    record = folder.root / _NAME
    try:
        return record.exists() and json.loads(record.read_text(encoding="utf-8")) == _fingerprint(config, folder)
    except (KexueError, OSError, ValueError):
        return False


def _fingerprint(config: RunConfig, folder: RunDir) -> dict[str, object]:
    own_corpus = config.corpus.source == "installed_docs"
    samples = folder.sample_folders(config.samples.seq_len, config.train.seq_lens).values()
    stages = [folder.shards, folder.tokenizer, *samples, folder.pretrain, folder.hf, folder.evaluate]
    manifests: dict[str, Manifest] = {}
    for path in [folder.corpus, *stages] if own_corpus else stages:
        manifests[path.name] = read_manifest(path)
        check_files(path, manifests[path.name])
    if not (folder.report / "index.html").exists():
        raise FileNotFoundError(folder.report)
    inputs = [] if own_corpus else find_inputs(config.corpus.inputs, format=config.shuffle.format)
    return {
        "config": digest_of(config.model_dump(mode="json")),
        "word_lists": [file_checksum(path) for path in _word_lists(config)],
        "inputs": [[str(source.path), source.bytes, source.modified_ns] for source in inputs],
        "initial_weights": _initial_weights(config),
        "evaluation_inputs": [list(entry) for entry in inputs_of(config.evaluate)],
        "artifacts": {name: manifest.content_digest for name, manifest in manifests.items()},
    }


def _initial_weights(config: RunConfig) -> list[list[int]]:
    """Bytes and time of the files in ``train.init_from``, in the order of their names."""
    folder = config.train.init_from
    states = [path.stat() for path in sorted(folder.iterdir())] if folder else []
    return [[state.st_size, state.st_mtime_ns] for state in states]


def _word_lists(config: RunConfig) -> list[Path]:
    source, dictionary = config.tokenizer.source, config.samples.dictionary
    return [*([find_vocabulary(source)] if source else []), *([dictionary] if dictionary else [])]
