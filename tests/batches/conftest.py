"""Sample shards of random ids, made without a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kexue_train.foundation.arrow_shards import ShardWriter, shard_name
from kexue_train.foundation.artifacts import Recipe, build_manifest, describe_files, open_partial, publish
from kexue_train.samples.encode import Documents
from kexue_train.samples.nsp import make_sequences
from kexue_train.samples.rows import pack, row_batches
from kexue_train.samples.schema import sample_schema

SPECIALS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


@pytest.fixture(scope="session")
def write_samples() -> Callable[..., Path]:
    def write(folder: Path, *, seq_len: int = 30, vocab_size: int = 99, shards: int = 3, heldout_rows: int = 4) -> Path:
        recipe = Recipe(kind="sample_shards", settings={})
        partial = open_partial(folder, recipe)
        rows, sequences = {}, 0
        for i in range(shards):
            rng = np.random.default_rng(i)
            offsets = np.cumsum([0, *rng.integers(1, 80, 9 + i)])
            total = int(offsets[-1])
            ids = rng.integers(5, vocab_size, total).astype(np.uint16 if vocab_size <= 65536 else np.uint32)
            sentences = np.union1d(offsets[:-1], rng.integers(0, total, total // 8))
            documents = Documents(ids, rng.random(total) < 0.6, offsets, sentences)
            found = make_sequences(documents, seq_len=seq_len, nsp=True, short_sequence_probability=0.4, rng=rng)
            packed, num_rows = pack(found.lengths, seq_len)
            sequences += len(found.lengths)
            name = shard_name(i, shards)
            with ShardWriter(partial / name, sample_schema(seq_len, vocab_size)) as writer:
                for batch in row_batches(
                    documents,
                    found,
                    packed,
                    num_rows,
                    seq_len=seq_len,
                    vocab_size=vocab_size,
                    special_token_ids=SPECIALS,
                ):
                    # Several record batches in a shard, as in large ones.
                    for first in range(0, batch.num_rows, 5):
                        writer.write(batch.slice(first, 5))
            rows[name] = num_rows
        statistics = {
            "seq_len": seq_len,
            "vocab_size": vocab_size,
            "heldout_rows": heldout_rows,
            "special_token_ids": SPECIALS,
            "sequences": sequences,
        }
        files = describe_files(partial, rows)
        publish(partial, folder, build_manifest(recipe, files, rows=sum(rows.values()), statistics=statistics))
        return folder

    return write


@pytest.fixture(scope="session")
def samples(tmp_path_factory: pytest.TempPathFactory, write_samples: Callable[..., Path]) -> Path:
    return write_samples(tmp_path_factory.mktemp("samples") / "samples")
