from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.arrow_shards import read_shard, shard_paths
from kexue_train.foundation.errors import ArtifactError


def rows_by_hand(folder: Path) -> list[dict[str, Any]]:
    return [row for path in shard_paths(folder) for row in read_shard(path).to_pylist()]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.data())
def test_rows_are_read_in_the_order_asked_for(samples: Path, data: st.DataObject) -> None:
    dataset, expected = SampleDataset(samples), rows_by_hand(samples)
    rows = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=40))
    found = dataset.take(np.array(rows))
    most = max(len(expected[row]["sequence_lengths"]) for row in rows)
    for i, row in enumerate(rows):
        bits = np.unpackbits(np.array(expected[row]["word_starts"], np.uint8), bitorder="little")[:30]
        assert found["input_ids"][i].tolist() == expected[row]["input_ids"]
        assert found["word_starts"][i].tolist() == bits.astype(bool).tolist()
        for name, filler in (("sequence_lengths", 0), ("segment_a_lengths", 0), ("next_sentence_labels", -100)):
            values = expected[row][name]
            assert found[name][i].tolist() == values + [filler] * (most - len(values))


def test_every_row_is_there(samples: Path) -> None:
    assert len(SampleDataset(samples)) == len(rows_by_hand(samples))


def test_large_vocabularies_keep_their_ids(tmp_path: Path, write_samples: Callable[..., Path]) -> None:
    folder = write_samples(tmp_path / "samples", vocab_size=70_000)
    ids = SampleDataset(folder).take(np.arange(20))["input_ids"]
    assert ids.dtype == np.uint32
    assert ids.max() > 65_536


def test_files_are_opened_when_first_read(tmp_path: Path, samples: Path) -> None:
    folder = Path(shutil.copytree(samples, tmp_path / "samples"))
    dataset = SampleDataset(folder)
    shard_paths(folder)[2].unlink()
    dataset.take(np.array([0, 1]))
    with pytest.raises(ArtifactError, match="data-00002-of-00003"):
        dataset.take(np.array([len(dataset) - 1]))


def test_rows_outside_are_refused(samples: Path) -> None:
    dataset = SampleDataset(samples)
    for row in (-1, len(dataset)):
        with pytest.raises(IndexError, match="not all in range"):
            dataset.take(np.array([0, row]))


def test_other_or_damaged_folders_are_refused(tmp_path: Path, samples: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        SampleDataset(tmp_path)
    folder = Path(shutil.copytree(samples, tmp_path / "samples"))
    shard_paths(folder)[0].write_bytes(b"torn")
    with pytest.raises(ArtifactError, match="has 4 bytes"):
        SampleDataset(folder)
