from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.shuffle.outputs import (
    BatchCutter,
    ShardForm,
    from_record_batch,
    open_shard,
    text_schema,
    to_record_batch,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.mark.parametrize("step", [7, 4095, 4096, 4097, 30_000])
def test_batches_do_not_depend_on_how_the_rows_arrive(step):
    rng = np.random.default_rng(0)
    texts = pa.array([b"y" * int(n) for n in rng.integers(0, 4000, 12_000)] + [b"z" * 5_000_000] * 2, pa.large_binary())
    cutter, found = BatchCutter(), []
    for start in range(0, len(texts), step):
        found += [len(batch) for batch, _ in cutter.cut(texts.slice(start, step), None)]
    found += [len(batch) for batch, _ in cutter.finish()]
    whole = BatchCutter()
    assert found == [len(batch) for batch, _ in (*whole.cut(texts, None), *whole.finish())]
    assert sum(found) == len(texts)


@pytest.mark.parametrize("output", ["arrow", "parquet"])
def test_bytes_of_a_shard_do_not_depend_on_how_the_rows_arrive(tmp_path, output):
    rng = np.random.default_rng(1)
    texts = pa.array([b"ab" * int(n) for n in rng.integers(0, 100, 12_001)], pa.large_binary())
    made = []
    for step in (len(texts), 7000, 999):
        path = tmp_path / str(step)
        with open_shard(path, ShardForm(output), durable=False) as (shard, _):
            for start in range(0, len(texts), step):
                shard.write(texts.slice(start, step), None)
        made.append(path.read_bytes())
    assert made[0] == made[1] == made[2]


def test_batches_hold_the_rows():
    cutter = BatchCutter()
    texts = pa.array([b"%d" % i for i in range(9000)], pa.large_binary())
    extras = pa.array([b"[%d]" % i for i in range(9000)], pa.large_binary())
    batches = [*cutter.cut(texts, extras), *cutter.finish()]
    assert [len(batch) for batch, _ in batches] == [4096, 4096, 808]
    assert [value for batch, _ in batches for value in batch.to_pylist()] == texts.to_pylist()
    assert [value for _, batch in batches for value in batch.to_pylist()] == extras.to_pylist()


@given(st.lists(st.tuples(TEXT, st.none() | TEXT, st.none() | TEXT), min_size=1))
def test_kept_columns_come_back_byte_for_byte(rows):
    texts = pa.array([text.encode() for text, *_ in rows], pa.large_binary())
    encoded = [json.dumps(more, ensure_ascii=False, separators=(",", ":")).encode() for _, *more in rows]
    batch = to_record_batch((texts, pa.array(encoded, pa.large_binary())), text_schema(["a", "b"]))
    assert batch.column("text").to_pylist() == [text for text, *_ in rows]
    assert batch.column("b").to_pylist() == [b for *_, b in rows]
    back_texts, back_extras = from_record_batch(batch)
    assert (back_texts.to_pylist(), back_extras.to_pylist()) == (texts.to_pylist(), encoded)
