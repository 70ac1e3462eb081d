from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from kexue_train.foundation.arrow_shards import read_shard, shard_name
from kexue_train.foundation.errors import ArtifactError
from kexue_train.samples import mix_rows
from kexue_train.samples.mix_rows import GatherRowsTask, SpilledShard, gather_rows, spill_rows
from kexue_train.samples.schema import sample_schema

SCHEMA = sample_schema(16, 99)


def rows_of(numbers: range) -> pa.RecordBatch:
    """Rows that can be told apart by their first lengths."""
    rows = [
        {
            "input_ids": [2, *[number % 99] * 15],
            "sequence_lengths": [number, 3],
            "segment_a_lengths": [number, 3],
            "next_sentence_labels": [-100, -100],
            "word_starts": [255, 255],
        }
        for number in numbers
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def spill(folder: Path, index: int, num_shards: int, seed: int, *, heldout: range, training: list[range]) -> None:
    with spill_rows(SpilledShard(folder, index), SCHEMA, num_shards=num_shards, seed=seed) as rows:
        rows.keep(rows_of(heldout))
        for part in training:
            rows.write(rows_of(part))


def gather(folder: Path, num_shards: int) -> list[list[int]]:
    """The rows of every shard, by number."""
    shards = []
    for index in range(num_shards):
        task = GatherRowsTask(index, num_shards, folder, folder, SCHEMA)
        result = gather_rows(task)
        table = read_shard(folder / shard_name(index, num_shards))
        assert result.rows == table.num_rows
        assert task.finished() == result
        shards.append([lengths[0] for lengths in table.column("sequence_lengths").to_pylist()])
    return shards


def mix(folder: Path, seed: int, sizes: list[int], heldout: int = 0) -> list[list[int]]:
    folder.mkdir()
    edges = np.cumsum([heldout, *sizes]).tolist()
    for index, (start, stop) in enumerate(pairwise(edges)):
        kept = range(heldout if index == 0 else 0)
        spill(folder, index, len(sizes), seed, heldout=kept, training=[range(start, stop)])
    return gather(folder, len(sizes))


def test_every_row_comes_back_once_and_held_out_rows_stay_first(tmp_path: Path) -> None:
    shards = mix(tmp_path / "a", 5, [300, 0, 200], heldout=7)
    assert shards[0][:7] == list(range(7))
    assert sorted(row for shard in shards for row in shard) == list(range(507))
    # Each shard is a mixture of all: of 200 rows from one shard, a third goes to each.
    for shard in shards:
        assert abs(sum(row >= 307 for row in shard) - 200 / 3) < 4 * np.sqrt(200 * 2 / 9)


def test_every_order_and_every_place_is_as_likely(tmp_path: Path) -> None:
    found = Counter(
        (tuple(map(len, shards)), tuple(row for shard in shards for row in shard))
        for shards in (mix(tmp_path / str(seed), seed, [2, 1]) for seed in range(320))
    )
    orders, places = Counter(), Counter()
    for (sizes, order), count in found.items():
        orders[order] += count
        places[sizes] += count
    # 6 orders; 0 to 3 of the rows in the first shard, with 1, 3, 3, 1 chances of 8. Chi-square, 5 and 3 degrees.
    assert sum((orders[order] - 320 / 6) ** 2 / (320 / 6) for order in orders) < 5 + 4 * np.sqrt(10)
    expected = {(0, 3): 40, (1, 2): 120, (2, 1): 120, (3, 0): 40}
    assert sum((places[sizes] - n) ** 2 / n for sizes, n in expected.items()) < 3 + 4 * np.sqrt(6)


def test_the_order_depends_on_seed_and_place_alone(tmp_path: Path) -> None:
    whole = mix(tmp_path / "whole", 3, [50, 50])
    parts = tmp_path / "parts"
    parts.mkdir()
    spill(parts, 1, 2, 3, heldout=range(0), training=[range(50, 51), range(51, 100)])
    spill(parts, 0, 2, 3, heldout=range(0), training=[range(i, i + 10) for i in range(0, 50, 10)])
    assert gather(parts, 2) == whole
    assert mix(tmp_path / "other", 4, [50, 50]) != whole


def test_little_memory_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = mix(tmp_path / "whole", 3, [700, 500], heldout=3)
    monkeypatch.setattr(mix_rows, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(mix_rows, "_ORDER_BYTES", 1000)
    assert mix(tmp_path / "little", 3, [700, 500], heldout=3) == whole


def test_nothing_is_left_of_rows_that_could_not_be_written(tmp_path: Path) -> None:
    other = rows_of(range(3)).select(["input_ids"])
    with (
        pytest.raises(KeyError),
        spill_rows(SpilledShard(tmp_path, 0), SCHEMA, num_shards=2, seed=0) as rows,
    ):
        rows.write(other)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_spill_is_refused(tmp_path: Path) -> None:
    spill(tmp_path, 0, 1, 0, heldout=range(0), training=[range(100)])
    path = SpilledShard(tmp_path, 0).spill
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"rows-00000.spill: an intermediate file"):
        gather(tmp_path, 1)
