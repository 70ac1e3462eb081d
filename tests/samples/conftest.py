"""Small text shards, a tokenizer trained on them and samples made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from kexue_train.foundation.arrow_shards import ShardWriter, format_checksum, shard_name
from kexue_train.foundation.artifacts import (
    Recipe,
    RowsChecksum,
    build_manifest,
    describe_files,
    open_partial,
    publish,
)
from kexue_train.samples.config import TokenizerConfig
from kexue_train.samples.tokenizer import load_tokenizer, train_tokenizer
from tests.reference.row_hashes import sum_hashes, text_hashes

ENGLISH = [
    "The harbour was quiet that morning. Dr. Gray walked along the pier, counting boats; there were 3.14 per mile!",
    "Nobody expected the storm. It came at noon, and the fishermen were playing cards. Were they afraid? Not at all.",
    "Counting is what machines do best. They count words, boats and storms, and they never sleep. Walking is harder.",
]
CHINESE = [
    "今天天气很好，我们去公园散步。孩子们在草地上玩耍，老人们在树下喝茶！你说好不好？",
    "北京大学的学生正在图书馆里学习自然语言处理。他们使用Python编写程序，处理3.14亿个词语。",
]


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """60 documents of both languages, all different."""
    pool = [*ENGLISH, *CHINESE]
    return [f"Document {i}. " + " ".join(pool[(i + j) % 5] for j in range(1 + i % 7)) for i in range(60)]


@pytest.fixture(scope="session")
def write_text_shards() -> Callable[[Path, Sequence[str], int], Path]:
    def write(folder: Path, texts: Sequence[str], num_shards: int = 1) -> Path:
        recipe = Recipe(kind="text_shards", settings={})
        partial = open_partial(folder, recipe)
        schema = pa.schema([("text", pa.string())])
        rows = {}
        for i in range(num_shards):
            part = list(texts[i::num_shards])
            with ShardWriter(partial / shard_name(i, num_shards), schema) as writer:
                writer.write(pa.table({"text": part}, schema=schema))
            rows[shard_name(i, num_shards)] = len(part)
        checksum = format_checksum(sum_hashes(text_hashes(text.encode() for text in texts)))
        manifest = build_manifest(
            recipe,
            describe_files(partial, rows),
            rows=len(texts),
            rows_checksum=RowsChecksum(input=checksum, output=checksum),
        )
        publish(partial, folder, manifest)
        return folder

    return write


@pytest.fixture(scope="session")
def text_shards(tmp_path_factory: pytest.TempPathFactory, texts: list[str], write_text_shards: Callable) -> Path:
    return write_text_shards(tmp_path_factory.mktemp("text") / "shards", texts, 3)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, text_shards: Path) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    train_tokenizer(TokenizerConfig(vocab_size=256), text_shards, folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)
