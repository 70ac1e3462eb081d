"""Reads data sets through Hugging Face ``datasets``: ``hf://NAME[@REVISION][:CONFIG][:SPLIT]``, without a download."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kexue_train.corpus.builder import BlockBuilder, gather_blocks
from kexue_train.corpus.records import PART_BITS, ReadOptions, RecordBlock
from kexue_train.foundation.errors import CorpusError

HUB = "hf://"
_DEFAULT_SPLIT = "train"


def count_hub_shards(path: str) -> int:
    """Return how many shards the data set has; each can be read on its own.

    Raises:
        CorpusError: If there is no such data set, configuration or split, or it cannot be reached.
    """
    return max(int(_load(path).num_shards), 1)


def other_splits(path: str) -> list[str]:
    """Return the splits that are not read since ``path`` names none.

    Raises:
        CorpusError: If there is no such data set or configuration, or it cannot be reached.
    """
    name, revision, config, split = _parse(path)
    if split is not None:
        return []
    with _explain(path):
        from datasets import get_dataset_split_names  # noqa: PLC0415  # slow to import, and rarely needed

        return [found for found in get_dataset_split_names(name, config, revision=revision) if found != _DEFAULT_SPLIT]


def read_hub(
    path: str, _: str | None, options: ReadOptions, start: int = 0, end: int | None = None
) -> Iterator[RecordBlock]:
    """Yield the records of the shards ``[start, end)``; positions are ``shard << 40 | row``.

    Raises:
        CorpusError: If the data set cannot be reached or is damaged.
    """
    builder = BlockBuilder(options)
    yield from gather_blocks(_fill(builder, path, start, end), builder, options.block_bytes)


def _fill(builder: BlockBuilder, path: str, start: int, end: int | None) -> Iterator[None]:
    dataset = _load(path)
    num_shards = max(int(dataset.num_shards), 1)
    for shard in range(start, num_shards if end is None else min(end, num_shards)):
        with _explain(path):
            rows = iter(dataset.shard(num_shards, shard))
        number = 0
        while (row := _next_row(path, rows)) is not None:
            builder.add(shard << PART_BITS | number, row)
            number += 1
            yield


def _next_row(path: str, rows: Iterator[dict[str, object]]) -> dict[str, object] | None:
    with _explain(path):
        return next(rows, None)


def _load(path: str) -> Any:
    name, revision, config, split = _parse(path)
    with _explain(path):
        from datasets import load_dataset  # noqa: PLC0415  # slow to import, and rarely needed

        return load_dataset(name, config, split=split or _DEFAULT_SPLIT, streaming=True, revision=revision)


def _parse(path: str) -> tuple[str, str | None, str | None, str | None]:
    """Return name, revision, configuration and split, as far as they are named."""
    whole, *rest = path.removeprefix(HUB).split(":")
    name, _, revision = whole.partition("@")
    if not name or len(rest) > 2 or not all(rest):
        raise CorpusError(
            f"{path}: not the name of a data set; expected hf://NAME, hf://NAME:SPLIT or hf://NAME:CONFIG:SPLIT"
        )
    return name, revision or None, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


@contextmanager
def _explain(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  # a loader raises whatever its parser, its file system or its network raises
        raise CorpusError(
            f"{path}: cannot be read ({str(error) or type(error).__name__}); check the name, configuration and split, "
            "the network and HF_HUB_OFFLINE, or leave the data set out"
        ) from None  # whose text may have the credentials of a mirror
