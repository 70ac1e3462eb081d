"""What determines a folder of text shards, and how its manifest names the inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from kexue_train.corpus.inputs import Source
from kexue_train.corpus.streams import is_pipe
from kexue_train.foundation.artifacts import MANIFEST_NAME, Manifest, Recipe, read_manifest
from kexue_train.shuffle.config import ShufConfig, ShuffleConfig

_SETTINGS = {"format", "document", "text_key", "keep", "filters", "keep_dropped", "on_bad_record", "dedup", "output"}


def make_recipe(
    config: ShuffleConfig, sources: Sequence[Source], num_shards: int, seed: int, shuf: ShufConfig | None = None
) -> Recipe:
    """Return the recipe of shuffling ``sources``.

    A file of another artifact counts by that artifact's contents, under the name folder/file, so that a run folder may
    be moved; any other file counts by its path, size and time of change.
    """
    more = shuf.model_dump(exclude_defaults=True) if shuf else {}
    settings = {"seed": seed, "shards": num_shards, **config.model_dump(include=_SETTINGS), **more}
    manifests = {folder: _read_manifest(folder) for folder in {Path(source.path).parent for source in sources}}
    parents, inputs, weights = {}, [], {}
    for source in sources:
        path = Path(source.path)
        manifest = manifests[path.parent]
        if is_pipe(source.path):
            inputs.append((source.path, 0, time.time_ns()))  # never the same twice
        elif manifest and path.name in manifest.files:
            parents[path.parent.name] = manifest.content_digest
            inputs.append((f"{path.parent.name}/{path.name}", source.bytes, 0))
        else:
            inputs.append((_uri(source.path), source.bytes, source.modified_ns))
        if source.weight != 1:
            weights[inputs[-1][0]] = source.weight
    return Recipe(kind="text_shards", settings=settings | {"weights": weights}, parents=parents, inputs=inputs)


def _read_manifest(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None


def _uri(path: str) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:  # a name that is not UTF-8 cannot stand in JSON
        return Path(path).as_uri()
    return path
