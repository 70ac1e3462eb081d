"""Made-up samples: random words through the project's own tokenizer and packing, so rows are as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.gpu.check import Bench, Sizes
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import ShardWriter, shard_name
from kexue_train.foundation.artifacts import (
    Recipe,
    RowsChecksum,
    build_manifest,
    describe_files,
    open_partial,
    publish,
)
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.shard_texts import texts_checksum
from kexue_train.samples.tokenizer import train_tokenizer
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import Tensors, to_device, to_tensors
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.objective import PretrainingObjective

_SYLLABLES = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "or")]
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def make_samples(folder: Path, sizes: Sizes) -> Path:
    """Write texts of random words, train a tokenizer on them, and cut them into rows; return the folder of the rows."""
    texts = pa.chunked_array([pa.array(_texts(sizes.num_documents), pa.large_string())])
    schema, recipe = pa.schema([("text", pa.string())]), Recipe(kind="text_shards", settings={})
    shards = folder / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    partial = open_partial(shards, recipe)
    with ShardWriter(partial / shard_name(0, 1), schema) as writer:
        writer.write(pa.table({"text": texts.cast(pa.string())}, schema=schema))
    checksum = texts_checksum(texts)
    files = describe_files(partial, {shard_name(0, 1): len(texts)})
    publish(
        partial,
        shards,
        build_manifest(recipe, files, rows=len(texts), rows_checksum=RowsChecksum(input=checksum, output=checksum)),
    )
    train_tokenizer(TokenizerConfig(vocab_size=sizes.vocab_size), shards, folder / "tokenizer")
    config = SampleConfig(seq_len=sizes.seq_len, heldout_fraction=0.05)
    build_samples(config, shards, folder / "tokenizer", folder / "samples", seed=0, executor=LocalExecutor(1))
    return folder / "samples"


def _texts(number: int) -> Iterator[str]:
    """Documents of 20 to 300 words, the frequent ones short."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(_SYLLABLES, 1 + index % 4)) for index in range(4000)]
    for length in generator.integers(20, 300, number):
        ranks = np.minimum(generator.zipf(1.3, length), len(words)) - 1
        chosen = [words[rank] for rank in ranks]
        yield " ".join(" ".join(chosen[start : start + 12]).capitalize() + "." for start in range(0, length, 12))


def batches(bench: Bench, count: int, rows: int) -> list[Tensors]:
    """Return micro-batches of the samples, on the device, as training reads them; if rows run out, they come again."""
    dataset = SampleDataset(bench.samples)
    numbers = np.arange(count * rows).reshape(count, rows) % len(dataset)
    return [to_device(to_tensors(make_batch(dataset, own, 0, seed=0)), bench.device) for own in numbers]


def model_config(bench: Bench, *, dropout: bool = True, **changes: int) -> ModelConfig:
    """Return base with the sizes of the bench, changed."""
    quiet = {} if dropout else _NO_DROPOUT
    settings = {**bench.sizes.model, "max_position_embeddings": bench.sizes.seq_len, **changes, **quiet}
    return ModelConfig.model_validate(settings)


def make_objective(
    bench: Bench, model: ModelConfig, *, rows: int, autocast: torch.dtype | None,
    dtype: torch.dtype = torch.float32,
) -> PretrainingObjective:  # fmt: skip
    """Return a model with the loss of training, alike for the same arguments, on the device and in training mode."""
    dataset = SampleDataset(bench.samples)
    torch.manual_seed(0)
    made = RoFormerV2ForPreTraining(build_hf_config(model, dataset.vocab_size)).to(bench.device, dtype)
    objective = PretrainingObjective(made, pretraining_heads(ObjectiveConfig()), autocast=autocast)
    objective.scale_to(dataset, rows)
    return objective.train()


def loss_and_gradients(
    objective: PretrainingObjective, batch: Tensors, *, seed: int = 1
) -> tuple[Tensor, list[Tensor]]:
    """Run forward and backward; return the loss and all gradients, which nothing keeps."""
    torch.manual_seed(seed)
    loss, _ = objective(batch)
    loss.backward()
    gradients = [param.grad for param in objective.parameters() if param.grad is not None]
    objective.zero_grad(set_to_none=True)
    return loss.detach(), gradients


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the largest ‖a - b‖ / ‖b‖ of pairs of tensors, compared in fp64 on the CPU."""
    errors = [0.0]
    for a, b in zip(found, expected, strict=True):
        wide, reference = a.detach().cpu().double(), b.detach().cpu().double()
        errors.append(float((wide - reference).norm() / reference.norm().clamp(min=1e-30)))
    return max(error if error == error else float("inf") for error in errors)  # NaN is no error that can be compared
