"""Rows of one labelled task: its examples as token sequences with their labels, in a folder like that of sample shards.

A row is one example: one sequence, or of a choice one for each option. Columns:

* ``input_ids``: list<uint16 or uint32>, the tokens of its sequences one after the other, special ones included.
* ``sequence_lengths``: list<uint16>, tokens of each sequence.
* ``segment_a_lengths``: list<uint16>, per sequence the length of ``[CLS] A [SEP]``; all of a sequence without B.
* ``labels``: list<int32>. Classification: the class. Choice: the index of the right option. Reading: the first and the
  last slot of the answer in the sequence. Tagging: a tag for each token, -100 at special ones.

The first ``heldout_rows`` rows are the development set, which no training step reads; the others lie in random order.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from kexue_train.foundation.arrow_shards import ShardWriter, shard_name, write_dataset_files
from kexue_train.foundation.artifacts import (
    MANIFEST_NAME,
    InputFile,
    Manifest,
    Recipe,
    build_manifest,
    describe_files,
    open_partial,
    publish,
)
from kexue_train.foundation.counter_rng import Purpose, random_words
from kexue_train.samples.schema import TOKENIZER_NAME, id_dtype
from kexue_train.samples.task_kinds import TaskKind

KIND = "labelled_rows"
"""Of the manifest."""
LIST_COLUMNS = ("input_ids", "sequence_lengths", "segment_a_lengths", "labels")
_Ids = npt.NDArray[np.int64]


class Example(NamedTuple):
    """One row."""

    sequences: Sequence[_Ids]
    """The tokens of each."""
    segment_a_lengths: Sequence[int]
    labels: Sequence[int]


class TaskFacts(NamedTuple):
    """What training has to know of a task beside its rows."""

    name: str
    kind: TaskKind
    num_outputs: int
    """Width of its head."""
    label_names: Sequence[str]
    """Of the outputs; empty where they have none."""


def labelled_schema(vocab_size: int) -> pa.Schema:
    """Return the Arrow schema of labelled rows."""
    ids = pa.from_numpy_dtype(np.dtype(id_dtype(vocab_size)))
    kinds = (ids, pa.uint16(), pa.uint16(), pa.int32())
    return pa.schema([(name, pa.list_(kind)) for name, kind in zip(LIST_COLUMNS, kinds, strict=True)])


def write_labelled_rows(
    out_dir: Path,
    recipe: Recipe,
    facts: TaskFacts,
    train: Sequence[Example],
    heldout: Sequence[Example],
    *,
    tokenizer: Path,
    vocab_size: int,
    special_token_ids: dict[str, int],
    seed: int,
    statistics: dict[str, Any],
) -> Manifest:
    """Write the rows of a task to ``out_dir``, and beside them the tokenizer that they were made with.

    Args:
        out_dir: The folder, which replaces one of another recipe.
        recipe: What determines the rows.
        facts: The task.
        train: Examples to learn from; at least one.
        heldout: Examples to score while training; may be empty.
        tokenizer: Folder of the tokenizer.
        vocab_size: Its pieces.
        special_token_ids: Their names -> ids.
        seed: Fixes the order of the training rows.
        statistics: What else the manifest is to tell, such as the counts of what was refused.
    """
    words = random_words(seed, Purpose.LABELLED_ROWS, 0, np.arange(len(train), dtype=np.uint64))[0]
    rows = [*heldout, *(train[index] for index in np.argsort(words, kind="stable"))]
    partial, schema, name = open_partial(out_dir, recipe), labelled_schema(vocab_size), shard_name(0, 1)
    with ShardWriter(partial / name, schema) as writer:
        writer.write(_as_batch(rows, schema))
    features = {
        field.name: {"feature": {"dtype": str(field.type.value_type), "_type": "Value"}, "_type": "Sequence"}
        for field in schema
    }
    write_dataset_files(partial, features, [name])
    shutil.copytree(tokenizer, partial / TOKENIZER_NAME, ignore=shutil.ignore_patterns(MANIFEST_NAME, ".*"))
    longest = max(len(ids) for row in rows for ids in row.sequences)
    found = {
        "task": facts.name,
        "task_kind": facts.kind,
        "num_outputs": facts.num_outputs,
        "label_names": list(facts.label_names),
        "heldout_rows": len(heldout),
        "longest": longest,
        "sequences": sum(len(row.sequences) for row in rows),
        "tokens": sum(len(ids) for row in rows for ids in row.sequences),
        "labels": sum(label != -100 for row in rows for label in row.labels),
        "vocab_size": vocab_size,
        "special_token_ids": special_token_ids,
        **statistics,
    }
    files = describe_files(partial, {name: len(rows)})
    inputs = [InputFile(uri=uri, bytes=size, modified_ns=time) for uri, size, time in recipe.inputs]
    manifest = build_manifest(recipe, files, rows=len(rows), seed=seed, statistics=found, inputs=inputs)
    return publish(partial, out_dir, manifest)


def _as_batch(rows: Sequence[Example], schema: pa.Schema) -> pa.RecordBatch:
    columns = {
        "input_ids": [np.concatenate(row.sequences) for row in rows],
        "sequence_lengths": [np.array([len(ids) for ids in row.sequences]) for row in rows],
        "segment_a_lengths": [np.asarray(row.segment_a_lengths) for row in rows],
        "labels": [np.asarray(row.labels) for row in rows],
    }
    arrays = []
    for field in schema:
        lists = columns[field.name]
        borders = np.concatenate([[0], np.cumsum([len(values) for values in lists])]).astype(np.int32)
        values = np.concatenate(lists).astype(field.type.value_type.to_pandas_dtype())
        arrays.append(pa.ListArray.from_arrays(borders, pa.array(values)))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
