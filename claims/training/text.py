"""Text to train on: by default the documentation installed on this machine, prepared once by the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from claims.claim import Setting
from kexue_train.corpus.installed_docs import CORPUS
from kexue_train.foundation.progress import SILENT
from kexue_train.foundation.run_dir import RunDir
from kexue_train.pipeline.run import open_run, run_stage
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.samples.build_samples import SAMPLES
from kexue_train.samples.tokenizer import TOKENIZER
from kexue_train.shuffle.outputs import iter_shard
from kexue_train.shuffle.shuffle_corpus import SHUFFLE

Bytes = npt.NDArray[np.uint8]
SEQ_LEN = 128
_MAX_SIZE, _VOCAB_SIZE = "6MB", 4096


@cache
def text_shards(setting: Setting) -> Path:
    """Return the folder of shuffled texts, made if it is not there."""
    return _make(setting, "shuffle")


@cache
def samples(setting: Setting) -> tuple[Path, Path]:
    """Return the folders of sample shards (rows of 128, with next sentences) and of their tokenizer."""
    return _make(setting, "samples"), _make(setting, "tokenizer")


@cache
def all_bytes(setting: Setting) -> Bytes:
    """Return all texts one after the other in UTF-8, a line feed between them, in shuffled order."""
    return np.frombuffer(b"\n".join(_documents(setting)), np.uint8)


@cache
def documents(setting: Setting) -> list[str]:
    """Return all texts in shuffled order."""
    return [document.decode() for document in _documents(setting)]


def _documents(setting: Setting) -> Iterator[bytes]:
    for path in sorted(text_shards(setting).glob("data-*")):
        for texts, _ in iter_shard(path, "arrow", ()):
            yield from (text.as_py() for text in texts)


def _make(setting: Setting, last: str) -> Path:
    """Make the stages up to ``last``, or find them complete, and return its folder."""
    source: dict[str, object] = {"source": "installed_docs", "max_size": _MAX_SIZE}
    if setting.corpus:
        source = {"source": "files", "inputs": (str(setting.corpus.resolve()),)}
    config = RunConfig.model_validate(
        {
            "name": "claims",
            "corpus": source,
            "shuffle": {"shards": 1, "dedup": "exact"},
            "tokenizer": {"vocab_size": _VOCAB_SIZE},
            "samples": {"seq_len": SEQ_LEN, "heldout_fraction": 0.02},
            "train": {"steps": 1000, "global_batch_size": 8, "micro_batch_size": 8},
            "execution": {"tasks": "local", "num_workers": 1},
        }
    )
    name = "installed-docs" if not setting.corpus else f"files-{setting.corpus.resolve().name}"
    folder = RunDir(setting.cache / name)
    with folder.lock("--cache"):
        run = open_run(config, folder.root)
        for stage in (CORPUS, SHUFFLE, TOKENIZER, SAMPLES):
            result = run_stage(stage, run, SILENT)
            if stage.name == last:
                return result.folder
    raise ValueError(f"no stage {last!r} prepares text")
