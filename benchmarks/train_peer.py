"""Hugging Face's ``Trainer`` at the micro-batches of a training: the same real tokens, masked by its own collator."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.train_blocks import MicroBatches
from kexue_train.batches.dataset import SampleDataset
from kexue_train.model.config import ModelConfig

_MASKED_SHARE = 0.15
_SHAPE = {
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "hidden_dropout_prob", "attention_probs_dropout_prob",
}  # fmt: skip
Examples = list[dict[str, Any]]


def paired_documents(batches: MicroBatches) -> Examples:
    """One example per sequence ``[CLS] A [SEP] B [SEP]``, with its label for next-sentence prediction."""
    return [document for batch in batches for row in _rows(batch) for document in row]


def joined_documents(batches: MicroBatches) -> Examples:
    """One example per row, its sequences one after another, as run_mlm.py cuts a corpus: nothing to pad, no pairs."""
    return [{"input_ids": np.concatenate([d["input_ids"] for d in row])} for batch in batches for row in _rows(batch)]


def _rows(batch: dict[str, Tensor]) -> list[Examples]:
    numbers, words, types, pairs = before_masking(batch)
    rows = []
    for row, last in enumerate(numbers.max(axis=1)):
        places = [np.flatnonzero(numbers[row] == number) for number in range(1, last + 1)]
        rows.append(
            [
                {
                    "input_ids": words[row, place],
                    "token_type_ids": types[row, place],
                    "next_sentence_label": int(pairs[row, place[0]]),
                }
                for place in places
            ]
        )
    return rows


def before_masking(batch: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(sequence ids, words, token types, pairs' labels at first tokens, else -100), each [rows, seq_len]."""
    shape = batch["input_ids"].shape
    words, pairs = batch["input_ids"].flatten().clone(), torch.full((batch["input_ids"].numel(),), -100)
    for target, name in ((words, "prediction"), (pairs, "pair")):
        real = batch[f"{name}_labels"] >= 0
        target[batch[f"{name}_slots"][real]] = batch[f"{name}_labels"][real].to(target.dtype)
    arrays = (batch["sequence_ids"], words, batch["token_type_ids"], pairs)
    numbers, *others = (array.reshape(shape).numpy().astype(np.int64) for array in arrays)
    return numbers, *others  # type: ignore[return-value]


PEERS: dict[str, tuple[str, type[nn.Module], Callable[[MicroBatches], Examples]]] = {
    "trainer": ("Trainer, BertForPreTraining, pairs padded", BertForPreTraining, paired_documents),
    "trainer-joined": ("Trainer, BertForMaskedLM, texts joined, no pairs", BertForMaskedLM, joined_documents),
}


class TrainerPeer:
    """One model and its ``Trainer``, which goes on with every block.

    Make it before any process group: ``Trainer`` would take it for a reason to wrap the model.

    Args:
        name: One of ``PEERS``.
        model: Size and dropout, ours.
        samples: Folder of sample shards.
        out: A folder that the arguments of ``Trainer`` must name.
        rows: Of our micro-batch; a batch of the peer's has as many real tokens on average.
        windows: Micro-batches of a step.
    """

    def __init__(self, name: str, model: ModelConfig, samples: Path, out: Path, rows: int, windows: int) -> None:
        _, kind, self._examples = PEERS[name]
        sequences = SampleDataset(samples).mean_per_row("sequences") if self._examples is paired_documents else 1
        tokenizer = AutoTokenizer.from_pretrained(str(samples / "tokenizer"))
        shape = model.model_dump(include=_SHAPE)
        arguments = TrainingArguments(
            output_dir=str(out), per_device_train_batch_size=max(1, round(sequences * rows)), learning_rate=1e-4,
            gradient_accumulation_steps=windows, num_train_epochs=1, lr_scheduler_type="constant", logging_steps=10,
            save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        self._clock = _Stopwatch()
        self._trainer = Trainer(
            kind(BertConfig(vocab_size=len(tokenizer), **shape)), arguments, callbacks=[self._clock], train_dataset=[],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=_MASKED_SHARE),
        )  # fmt: skip

    def __call__(self, batches: MicroBatches) -> float:
        """See ``Work``: from the beginning of training to its end, without making the model and the optimizer."""
        self._trainer.train_dataset = self._examples(batches)
        self._trainer.train()
        return self._clock.seconds


class _Stopwatch(TrainerCallback):
    seconds = 0.0
    _started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._started
