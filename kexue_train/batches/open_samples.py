"""What ``--samples`` names, opened: by the length of the rows, since a training may have phases of several lengths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from kexue_train.batches.dataset import SampleDataset, require_agreement
from kexue_train.batches.mixed import MixedDataset, TrainingData
from kexue_train.foundation.artifacts import MANIFEST_NAME, read_manifest
from kexue_train.foundation.config_file import read_yaml
from kexue_train.foundation.errors import ArtifactError, ConfigError
from kexue_train.samples.labelled_rows import KIND


def open_samples(path: Path) -> Mapping[int, TrainingData]:
    """Return the samples that a training can read, by ``seq_len``, rising.

    ``path`` is a folder of sample shards; or a folder of such folders, one for each length; or a YAML file with one
    ``folder: weight`` per line, relative to the file: those of the same length are mixed in these shares. If one of
    its folders holds labelled rows, the weights are shares of the micro-batches.

    Raises:
        ArtifactError: If a folder does not hold what it should, or they do not go together.
        ConfigError: If the file is not such a file.
    """
    weights = _read_weights(path) if path.is_file() else _find_folders(path)
    if any(read_manifest(folder).kind == KIND for folder in weights):
        mixed = MixedDataset(weights)
        return {mixed.seq_len: mixed}
    by_length: dict[int, dict[Path, float]] = {}
    for folder, weight in weights.items():
        seq_len = read_manifest(folder).statistics.get("seq_len", 0)  # what has none is refused when opened
        by_length.setdefault(int(seq_len), {})[folder] = weight
    datasets = {seq_len: SampleDataset(by_length[seq_len]) for seq_len in sorted(by_length)}
    firsts = [(dataset.folders[0], dataset.manifests[0]) for dataset in datasets.values()]
    require_agreement(*zip(*firsts, strict=True), same_length=False)
    return datasets


def _read_weights(file: Path) -> Mapping[Path, float]:
    weights, _ = read_yaml(file)
    if not weights or not all(type(weight) in (int, float) for weight in weights.values()):
        raise ConfigError(f"{file}: must hold lines 'folder: weight' with numbers as weights, holds {weights!r}")
    return {file.parent / str(folder): float(weight) for folder, weight in weights.items()}


def _find_folders(path: Path) -> Mapping[Path, float]:
    inside = sorted(file.parent for file in path.glob(f"*/{MANIFEST_NAME}"))
    if (path / MANIFEST_NAME).exists() or not inside:
        return {path: 1.0}
    lengths = [read_manifest(folder).statistics.get("seq_len") for folder in inside]
    for folder, seq_len in zip(inside, lengths, strict=True):
        if seq_len and lengths.count(seq_len) > 1:
            raise ArtifactError(
                f"{path}: holds several folders of seq_len={seq_len}, {folder.name} among them; to mix them, name them "
                "with their weights in a YAML file, else give one folder"
            )
    return dict.fromkeys(inside, 1.0)
