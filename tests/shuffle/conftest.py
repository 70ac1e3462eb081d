from __future__ import annotations

import json
from pathlib import Path

import pytest

from kexue_train.executor import Executor, LocalExecutor
from kexue_train.foundation.artifacts import Manifest
from kexue_train.shuffle.config import ShuffleConfig
from kexue_train.shuffle.shuffle_corpus import shuffle_corpus


def write_jsonl(path: Path, texts) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts))
    return path


def run_shuffle(
    inputs,
    out: Path,
    *,
    seed: int = 0,
    executor: Executor | None = None,
    replace: bool = False,
    progress=None,
    **settings,
) -> Manifest:
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    return shuffle_corpus(
        ShuffleConfig(**settings),
        [str(path) for path in inputs],
        out,
        seed=seed,
        executor=executor or LocalExecutor(1),
        replace=replace,
        **({"progress": progress} if progress else {}),
    )


def read_bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def make_corpus():
    return write_jsonl


@pytest.fixture(scope="session")
def shuffle():
    return run_shuffle


@pytest.fixture(scope="session")
def contents():
    return read_bytes


@pytest.fixture
def corpus(tmp_path) -> Path:
    """Two files of 300 short and long documents with a few copies and line-by-line lengths that differ."""
    texts = [f"document {i} " + "word " * (i * i % 97) for i in range(300)]
    write_jsonl(tmp_path / "in" / "a.jsonl", texts[:200])
    write_jsonl(tmp_path / "in" / "b.jsonl", [*texts[200:], *texts[:20]])
    return tmp_path / "in"
