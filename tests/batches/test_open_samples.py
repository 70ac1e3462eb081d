"""What ``--samples`` may name: a folder, a folder of folders, a file of folders with weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.open_samples import open_samples
from kexue_train.foundation.errors import ArtifactError, ConfigError


@pytest.fixture
def parent(samples: Path, tmp_path: Path, write_samples: Callable[..., Path]) -> Path:
    """A folder with samples of 30 and of 48 tokens."""
    shutil.copytree(samples, tmp_path / "parent" / "b")
    write_samples(tmp_path / "parent" / "a", seq_len=48)
    return tmp_path / "parent"


def test_a_folder_of_samples_is_its_length(samples: Path) -> None:
    (found,) = open_samples(samples).items()
    assert (found[0], found[1].folders) == (30, (samples,))


def test_a_folder_of_folders_has_the_lengths_of_all(parent: Path) -> None:
    found = open_samples(parent)
    assert list(found) == [30, 48]
    assert [dataset.folders for dataset in found.values()] == [(parent / "b",), (parent / "a",)]
    assert found[30].content_digest == SampleDataset(parent / "b").content_digest


def test_a_file_mixes_the_folders_of_each_length_in_the_shares_it_says(
    samples: Path, parent: Path, write_samples: Callable[..., Path]
) -> None:
    write_samples(parent / "small", shards=1, heldout_rows=2)
    file = parent / "mixture.yaml"
    file.write_text(f"{samples}: 0.75\nsmall: 0.25\na: 7\n")
    found = open_samples(file)
    assert found[30].folders == (samples, parent / "small")
    assert found[30].shares == (7500, 2500)
    assert found[48].folders == (parent / "a",)


@pytest.mark.parametrize("text", ["{}", "a: much", "a: true", "a: [1]"])
def test_a_file_without_folders_and_weights_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").write_text(text)
    with pytest.raises(ConfigError, match="'folder: weight'"):
        open_samples(tmp_path / "mixture.yaml")


def test_lengths_of_other_vocabularies_are_refused_by_name(parent: Path, write_samples: Callable[..., Path]) -> None:
    write_samples(parent / "c", seq_len=64, vocab_size=98)
    with pytest.raises(ArtifactError, match=r"b and .*c cannot be trained on together: vocab_size is 99 .* and 98"):
        open_samples(parent)


def test_two_folders_of_one_length_are_not_mixed_unasked(parent: Path, write_samples: Callable[..., Path]) -> None:
    write_samples(parent / "c", seq_len=48, shards=2)
    with pytest.raises(ArtifactError, match=r"several folders of seq_len=48, a among them; to mix them"):
        open_samples(parent)


def test_a_folder_with_other_things_in_it_is_refused_by_their_name(parent: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no manifest\.json; give a folder that a kexue stage made"):
        open_samples(tmp_path / "nothing")
    manifest = parent / "a" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"sample_shards"', '"text_shards"').replace('"seq_len"', '"x"'))
    with pytest.raises(ArtifactError, match=r"a: holds text_shards, not sample_shards"):
        open_samples(parent)
