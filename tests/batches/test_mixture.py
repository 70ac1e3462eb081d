"""Several folders as one stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.mixture import WINDOW, quotas, split
from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.errors import ArtifactError, ConfigError

WEIGHTS = st.lists(st.floats(0.1, 100), min_size=1, max_size=6)


@given(WEIGHTS)
def test_quotas_are_the_shares_to_the_nearest_row_and_add_up(weights: list[float]) -> None:
    found = np.array(quotas(weights))
    assert found.sum() == WINDOW
    assert (np.abs(found - np.array(weights) / sum(weights) * WINDOW) < 1).all()
    assert quotas(found.tolist()) == tuple(found.tolist())


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")], [1.0, 1e-5]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        quotas(weights)


@settings(max_examples=20)
@given(WEIGHTS, st.integers(0, 2**32 - 1))
def test_every_window_has_exactly_its_quotas_and_every_folder_is_read_in_order(weights: list[float], seed: int) -> None:
    shares = quotas(weights)
    folders, own = split(np.arange(3 * WINDOW), shares, seed)
    for folder, share in enumerate(shares):
        assert np.bincount(np.flatnonzero(folders == folder) // WINDOW, minlength=3).tolist() == [share] * 3
        assert own[folders == folder].tolist() == list(range(3 * share))


def test_a_position_is_the_same_alone_and_with_others() -> None:
    shares, positions = quotas([0.7, 0.2, 0.1]), np.array([0, 9_999, 10_000, 123_456])
    folders, own = split(positions, shares, 4)
    for i, position in enumerate(positions):
        assert split(np.array([position]), shares, 4) == (folders[i], own[i])


def test_folders_come_mixed_evenly_within_a_window() -> None:
    folders, _ = split(np.arange(WINDOW), quotas([0.3, 0.7]), 1)
    counts = folders.reshape(20, -1).sum(axis=1)  # 500 rows, 350 of folder 1 in the mean
    assert np.abs(counts - 350).max() < 4 * np.sqrt(500 * 0.3 * 0.7)
    assert (folders != split(np.arange(WINDOW), quotas([0.3, 0.7]), 2)[0]).any()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, write_samples: Callable[..., Path]) -> Path:
    return write_samples(tmp_path_factory.mktemp("small") / "samples", shards=1, heldout_rows=2)


def test_each_folder_is_read_as_if_it_were_alone_in_its_share(samples: Path, small: Path) -> None:
    mixture = SampleDataset({samples: 3.0, small: 1.0})
    rows, epochs = mixture.rows_at(np.arange(4000), 7)
    offset = read_manifest(samples).rows
    of_small = rows >= offset
    assert abs(of_small.mean() - 0.25) < 0.03
    first, first_epochs = SampleDataset(samples).rows_at(np.arange(int((~of_small).sum())), 7)
    np.testing.assert_array_equal(rows[~of_small], first)
    np.testing.assert_array_equal(epochs[~of_small], first_epochs)
    num_training = read_manifest(small).rows - 2
    laps = rows[of_small][: num_training * 5].reshape(5, num_training) - offset - 2
    assert (np.sort(laps, axis=1) == np.arange(num_training)).all()


def test_rows_are_counted_through_the_folders(samples: Path, small: Path) -> None:
    mixture, offset = SampleDataset({samples: 3.0, small: 1.0}), read_manifest(samples).rows
    assert len(mixture) == offset + read_manifest(small).rows
    for here, alone in ((2, SampleDataset(samples)), (offset + 2, SampleDataset(small))):
        found, expected = mixture.take(np.array([here])), alone.take(np.array([2]))
        assert all((found[name] == array).all() for name, array in expected.items())
    assert mixture.heldout_rows.tolist() == [0, 1, 2, 3, offset, offset + 1]


def test_folders_that_do_not_go_together_are_refused_by_name(
    samples: Path, tmp_path: Path, write_samples: Callable[..., Path]
) -> None:
    for name, change in (("seq_len", {"seq_len": 40}), ("vocab_size", {"vocab_size": 98})):
        other = write_samples(tmp_path / name, **change)
        with pytest.raises(ArtifactError, match=f"{samples} and {other} cannot be mixed: {name} is"):
            SampleDataset({samples: 0.5, other: 0.5})


def test_contents_and_shares_make_the_digest(samples: Path, small: Path) -> None:
    mixtures = [SampleDataset({samples: 0.75, small: 0.25}), SampleDataset({samples: 0.5, small: 0.5})]
    alone = SampleDataset(samples).content_digest
    assert len({alone, *(mixture.content_digest for mixture in mixtures)}) == 3
    assert alone == read_manifest(samples).content_digest


def test_a_weight_of_nothing_is_refused(samples: Path, small: Path) -> None:
    with pytest.raises(ConfigError, match="leave the folder out"):
        SampleDataset({samples: 1.0, small: 0.0})
