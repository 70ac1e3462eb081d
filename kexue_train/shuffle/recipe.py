"""What determines a folder of text shards, and how its manifest names the inputs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kexue_train.corpus.config import NamedSource
from kexue_train.corpus.inputs import Source
from kexue_train.corpus.mixture import Documents
from kexue_train.corpus.patterns import was_named_by
from kexue_train.corpus.streams import is_pipe
from kexue_train.foundation.artifacts import MANIFEST_NAME, Manifest, Recipe, read_manifest
from kexue_train.foundation.credentials import without_credentials
from kexue_train.shuffle.by_source import order_sources, sources_of
from kexue_train.shuffle.config import SOURCE_COLUMN, ShufConfig, ShuffleConfig

_SETTINGS = {"format", "document", "text_key", "keep", "filters", "keep_dropped", "on_bad_record", "dedup", "output"}


def make_recipe(
    config: ShuffleConfig, sources: Sequence[Source], num_shards: int, seed: int, shuf: ShufConfig | None = None
) -> Recipe:
    """Return the recipe of shuffling ``sources``.

    A file of another artifact counts by that artifact's contents, under the name folder/file, so that a run folder may
    be moved; any other file counts by its path, size and time of change.
    """
    more = shuf.model_dump(exclude_defaults=True) if shuf else {}
    settings = _settings_of(config, num_shards, seed) | more | _settings_of_sources(config, sources)
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
        if source.weight != 1 and source.named is None:
            weights[inputs[-1][0]] = source.weight
    return Recipe(kind="text_shards", settings=settings | {"weights": weights}, parents=parents, inputs=inputs)


def recipe_without_inputs(config: ShuffleConfig, documents: Documents, seed: int, out_dir: Path) -> Recipe | None:
    """Return the recipe of the shards in ``out_dir`` if they were made with these settings from ``documents``.

    For shards whose inputs are gone: moved away, or out of reach. The manifest says what the inputs were, and how many
    shards there are if ``config`` leaves that open. None: the shards are others, or an input is there and changed.
    """
    if not (out_dir / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(out_dir)
    found, weights = manifest.recipe, manifest.settings.get("weights", {})
    if config.keep_all:
        kept = tuple(manifest.settings.get("keep", ()))
        config = config.model_copy(update={"keep": kept[:-1] if "sources" in found.settings else kept})
    names = [uri for uri, _, _ in found.inputs]
    settings = _settings_of(config, config.shards or manifest.settings.get("shards", 0), seed)
    settings |= {"weights": weights}
    asked, made = order_sources(config, documents), found.settings.get("sources", [])
    if [named.name for named in asked] != [entry["name"] for entry in made]:
        return None
    counts = [entry["files"] for entry in made]
    settings |= _describe_sources(config, asked, counts)
    ends = itertools.pairwise(itertools.accumulate(counts, initial=0))
    groups: list[tuple[Sequence[str], Sequence[str]]] = [
        (named.inputs, names[low:high]) for named, (low, high) in zip(asked, ends, strict=True)
    ]
    groups = groups or [([entry for entry in documents if isinstance(entry, str)], names)]
    wanted = Recipe(kind="text_shards", settings=settings, parents=found.parents, inputs=found.inputs)
    is_as_asked = all(_are_named(uris, patterns, config, weights) for patterns, uris in groups)
    is_changed = any(_has_changed(*entry) for entry in found.inputs)
    return found if is_as_asked and not is_changed and wanted.difference(found) is None else None


def _are_named(
    names: Sequence[str], patterns: Sequence[str], config: ShuffleConfig, weights: Mapping[str, float]
) -> bool:
    """Return whether ``patterns`` name or named these files, all of them and each with its weight."""
    named = {pattern: {uri for uri in names if was_named_by(uri, pattern)} for pattern in patterns}
    return (
        all(named.values())
        and set(names) == set().union(*named.values())
        and all(
            weights.get(uri, 1) == config.weights.get(pattern, 1) for pattern, uris in named.items() for uri in uris
        )
    )


def _has_changed(uri: str, size: int, modified_ns: int) -> bool:
    path = Path(uri)
    return (
        path.is_absolute() and path.exists() and (path.stat().st_size, path.stat().st_mtime_ns) != (size, modified_ns)
    )


def _settings_of(config: ShuffleConfig, num_shards: int, seed: int) -> dict[str, Any]:
    names = _SETTINGS | ({"near"} if config.dedup == "near" else set())
    settings = config.model_dump(include=names)
    if not config.filters.published:  # which earlier releases did not know
        del settings["filters"]["published"]
    more = {"languages": True} if config.languages else {}  # which earlier releases did not know
    return {"seed": seed, "shards": num_shards, **settings, **more}


def _settings_of_sources(config: ShuffleConfig, inputs: Sequence[Source]) -> dict[str, Any]:
    names = [source.named.name for source in inputs if source.named]
    sources = sources_of(inputs)
    return _describe_sources(config, sources, [names.count(named.name) for named in sources])


def _describe_sources(config: ShuffleConfig, sources: Sequence[NamedSource], files: Sequence[int]) -> dict[str, Any]:
    """Return what a mixture adds to the settings; ``files`` says how many of the inputs each source has, in order."""
    if not sources:
        return {}
    described = [
        named.model_dump(mode="json", exclude={"inputs"}, exclude_none=True) | {"files": number}
        for named, number in zip(sources, files, strict=True)
    ]
    return {"keep": [*config.keep, SOURCE_COLUMN], "sources": described}


def _read_manifest(folder: Path) -> Manifest | None:
    return read_manifest(folder) if (folder / MANIFEST_NAME).exists() else None


def _uri(path: str) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:  # a name that is not UTF-8 cannot stand in JSON
        return Path(path).as_uri()
    return without_credentials(path)
