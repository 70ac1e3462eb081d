from __future__ import annotations

import gzip

import pytest

from kexue_train.corpus.inputs import find_inputs
from kexue_train.corpus.readers import describe_position
from kexue_train.foundation.errors import CorpusError
from tests.corpus.written_formats import to_jsonl

SHARDS = [[{"text": f"shard {i} row {j}", "source": "s"} for j in range(3)] for i in range(3)]


@pytest.fixture
def dataset(tmp_path):
    """A data set as it lies in a folder: what ``load_dataset`` takes a path for."""
    for i, rows in enumerate(SHARDS):
        (tmp_path / f"part-{i}.jsonl").write_bytes(to_jsonl(rows))
    return tmp_path


@pytest.mark.parametrize("ranges", [[(0, None)], [(0, 1), (1, 3)], [(0, 2), (2, None)]])
def test_shards_are_read_in_any_cut_with_kept_values(dataset, read, ranges):
    result = read(f"hf://{dataset}", keep=("source",), ranges=ranges, block_bytes=30)
    assert result.texts == [row["text"] for rows in SHARDS for row in rows]
    assert result.positions == [i << 40 | j for i in range(3) for j in range(3)]
    assert result.extras == [b'["s"]'] * 9


def test_a_data_set_is_cut_at_its_shards(dataset):
    (source,) = find_inputs([f"hf://{dataset}:default:train"])
    assert (source.format, source.units, source.bytes) == ("hub", 3, 0)
    assert describe_position(source, 2 << 40 | 7) == f"hf://{dataset}:default:train: row 7 of shard 2"


def test_other_splits_are_told_unless_one_is_named(dataset):
    for split in ("train", "test"):
        (dataset / f"{split}.jsonl").write_bytes(to_jsonl(SHARDS[0]))
    for path, expected in ((f"hf://{dataset}", 1), (f"hf://{dataset}:train", 0), (f"hf://{dataset}:test", 0)):
        notes = []
        assert len(find_inputs([path], note=notes.append)) == 1
        assert len(notes) == expected
        assert all(f"not read: test (other splits: name one with {path}:SPLIT)" in note for note in notes)


def test_records_without_text_are_rejected(dataset, read):
    assert read(f"hf://{dataset}", text_keys=("none",)).rejected == {"no key 'none'": 9}


@pytest.mark.parametrize(
    ("suffix", "message"),
    [(":test", "Bad split"), (":none:train", "none"), ("/none", "none"), ("@:a:b:c", "not the name of a data set")],
)
def test_a_wrong_name_is_refused(dataset, suffix, message):
    with pytest.raises(CorpusError, match=f"hf://.*{message}"):
        find_inputs([f"hf://{dataset}{suffix}"])


def test_what_comes_before_a_damaged_shard_is_read(dataset, read):
    (dataset / "part-1.jsonl").unlink()
    whole = gzip.compress(to_jsonl(SHARDS[1] * 9999))
    (dataset / "part-1.jsonl.gz").write_bytes(whole[:-20])
    first, second = [read(f"hf://{dataset}", block_bytes=size, stop_at_damage=True) for size in (10, 10**6)]
    assert (first.texts[:3], first.damaged) == ([row["text"] for row in SHARDS[0]], 1)
    assert first == second
