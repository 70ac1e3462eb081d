from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions, RecordBlock
from kexue_train.foundation.errors import CorpusError


@dataclass
class Read:
    """All that a reader gave for some inputs."""

    texts: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    rejected_positions: list[int] = field(default_factory=list)
    blank: int = 0
    extras: list[bytes] = field(default_factory=list)
    damaged: int = 0

    def add(self, block: RecordBlock) -> None:
        assert len(block.texts) == len(block.positions)
        self.texts += block.texts.to_pylist()
        self.positions += block.positions.tolist()
        self.rejected.update(entry.reason for entry in block.rejected)
        self.rejected_positions += [entry.position for entry in block.rejected]
        self.blank += block.blank
        if block.extras is not None:
            assert len(block.extras) == len(block.texts)
            self.extras += block.extras.to_pylist()


def read_all(
    *patterns: Path | str,
    format: str = "auto",
    ranges: Sequence[tuple[int, int | None]] = ((0, None),),
    stop_at_damage: bool = False,
    **options,
) -> Read:
    """Read all inputs, each range of an input after the other; with ``stop_at_damage``, what comes before it."""
    result = Read()
    options = ReadOptions(**{"block_bytes": 1 << 20} | options)
    for source in find_inputs([str(pattern) for pattern in patterns], format=format, document=options.document):
        for start, end in ranges:
            try:
                for block in read_records(source, options, start=start, end=end):
                    result.add(block)
            except CorpusError:
                if not stop_at_damage:
                    raise
                result.damaged += 1
    return result


@pytest.fixture(scope="session")
def read():
    return read_all
