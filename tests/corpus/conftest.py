from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records


@dataclass
class Read:
    """All that a reader gave for some inputs."""

    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_positions: list[int] = field(default_factory=list)
    blank: int = 0


def read_all(*patterns: Path | str, format: str = "auto", text_key: str = "text", block_bytes: int = 1 << 20) -> Read:
    result = Read()
    for source in find_inputs([str(pattern) for pattern in patterns], format=format):
        for block in read_records(source, text_key=text_key, block_bytes=block_bytes):
            result.texts += block.texts.to_pylist()
            result.positions += block.positions.tolist()
            result.rejected.update(entry.reason for entry in block.rejected)
            result.rejected_positions += [entry.position for entry in block.rejected]
            result.blank += block.blank
    return result


@pytest.fixture(scope="session")
def read():
    return read_all
