"""Other ways to do what the sample stage and the loader do; each is a command that prints its figures as JSON.

python benchmarks/sample_peers.py bare|datasets SHARDS TOKENIZER WORKERS
python benchmarks/sample_peers.py loader|collator|collator-words SAMPLES SECONDS
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

_BATCH_DOCUMENTS = 1000
_BATCH_ROWS = 32


def tokenize_bare(shards: Path, tokenizer: Path, workers: int) -> dict[str, float]:
    """Nothing but ``encode_batch_fast`` of all documents, with as many threads; reading them is not counted."""
    os.environ["RAYON_NUM_THREADS"] = str(workers)
    from tokenizers import Tokenizer  # noqa: PLC0415  # reads the variable

    from kexue_train.foundation.arrow_shards import read_shard, shard_paths  # noqa: PLC0415

    encoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    seconds, tokens = 0.0, 0
    for path in shard_paths(shards):
        column = read_shard(path).column("text")
        for first in range(0, len(column), _BATCH_DOCUMENTS):
            texts = column.slice(first, _BATCH_DOCUMENTS).to_pylist()
            start = time.perf_counter()
            encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
            seconds += time.perf_counter() - start
            tokens += sum(map(len, encodings))
    return {"seconds": seconds, "tokens": tokens}


def tokenize_with_datasets(shards: Path, tokenizer: Path, workers: int) -> dict[str, float]:
    """As the language-modelling scripts of transformers do it: tokenize, join all, cut into rows of 512."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its processes take the cores
    from datasets import disable_progress_bars, load_from_disk  # noqa: PLC0415
    from transformers import AutoTokenizer  # noqa: PLC0415

    disable_progress_bars()
    encoder = AutoTokenizer.from_pretrained(tokenizer)

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        found = encoder(batch["text"], return_special_tokens_mask=True, return_token_type_ids=False)
        return {"input_ids": found["input_ids"], "special_tokens_mask": found["special_tokens_mask"]}

    def group(batch: dict[str, Any]) -> dict[str, Any]:
        joined = {name: [value for row in rows for value in row] for name, rows in batch.items()}
        total = len(joined["input_ids"]) // 512 * 512
        return {name: [flat[i : i + 512] for i in range(0, total, 512)] for name, flat in joined.items()}

    start = time.perf_counter()
    texts = load_from_disk(str(shards)).select_columns(["text"])
    encoded = texts.map(encode, batched=True, num_proc=workers, remove_columns=["text"], load_from_cache_file=False)
    rows = encoded.map(group, batched=True, num_proc=workers, load_from_cache_file=False)
    return {"seconds": time.perf_counter() - start, "tokens": len(rows) * 512}


def load_batches(samples: Path, seconds: float) -> dict[str, float]:
    """Our loader: reading, masking and collating in this one process."""
    from kexue_train.batches.collate import make_batch  # noqa: PLC0415
    from kexue_train.batches.dataset import SampleDataset  # noqa: PLC0415
    from kexue_train.batches.order import rows_of_step  # noqa: PLC0415

    dataset = SampleDataset(samples)

    def batches() -> Iterator[int]:
        step = 0
        while True:
            rows = rows_of_step(dataset.manifests[0], 0, _BATCH_ROWS, step)
            yield int((make_batch(dataset, rows, 0, seed=0)["sequence_ids"] > 0).sum())
            step += 1

    return _count_tokens(batches(), seconds)


def collate(samples: Path, seconds: float, *, whole_word: bool) -> dict[str, float]:
    """The same rows through the collator of transformers, given as it wants them: lists of numbers, made beforehand."""
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling  # noqa: PLC0415

    from kexue_train.batches.dataset import SampleDataset  # noqa: PLC0415

    tokenizer = AutoTokenizer.from_pretrained(samples / "tokenizer")
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=0.15, whole_word_mask=whole_word, return_tensors="np", seed=0
    )
    dataset = SampleDataset(samples)
    columns = dataset.take(np.arange(min(len(dataset), 32 * _BATCH_ROWS)))
    specials = list(dataset.special_token_ids.values())
    examples = []
    for ids, starts in zip(columns["input_ids"], columns["word_starts"], strict=True):
        example = {"input_ids": ids.tolist(), "special_tokens_mask": np.isin(ids, specials).astype(int).tolist()}
        if whole_word:  # it takes pieces whose offsets touch for one word
            ends = np.arange(len(ids)) * 2 + 2 - np.append(starts[1:], True)
            example["offset_mapping"] = list(
                zip((np.append(-1, ends[:-1]) + starts).tolist(), ends.tolist(), strict=False)
            )
        examples.append(example)

    def batches() -> Iterator[int]:
        place = 0
        while True:
            chosen = [dict(example) for example in examples[place : place + _BATCH_ROWS]]
            place = (place + _BATCH_ROWS) % (len(examples) - _BATCH_ROWS + 1)
            yield int((collator(chosen)["input_ids"] != 0).sum())

    return _count_tokens(batches(), seconds)


def _count_tokens(batches: Iterator[int], seconds: float) -> dict[str, float]:
    """Real tokens of the batches made in at least ``seconds``, after some to warm up."""
    for _ in islice(batches, 5):
        pass
    start, tokens = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        tokens += next(batches)
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


_STAGES: dict[str, Callable[[Path, Path, int], dict[str, float]]] = {
    "bare": tokenize_bare,
    "datasets": tokenize_with_datasets,
}


def main(arguments: list[str]) -> None:
    """Run one peer."""
    match arguments:
        case [name, shards, tokenizer, workers]:
            found = _STAGES[name](Path(shards), Path(tokenizer), int(workers))
        case ["loader", samples, seconds]:
            found = load_batches(Path(samples), float(seconds))
        case ["collator" | "collator-words" as name, samples, seconds]:
            found = collate(Path(samples), float(seconds), whole_word=name == "collator-words")
        case _:
            sys.exit(__doc__)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
