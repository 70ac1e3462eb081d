"""A training of one small layer that takes a second, and checkpoints without any training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from safetensors.torch import load_file

from kexue_train.executor import LocalExecutor
from kexue_train.foundation.arrow_shards import ShardWriter, format_checksum, shard_name
from kexue_train.foundation.artifacts import (
    Recipe,
    RowsChecksum,
    build_manifest,
    describe_files,
    open_partial,
    publish,
    read_manifest,
    write_atomic,
)
from kexue_train.metrics.file import read_metrics
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.config import ModelConfig
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.optim import Tiger, build_param_groups
from kexue_train.samples.build_samples import build_samples
from kexue_train.samples.config import SampleConfig, TokenizerConfig
from kexue_train.samples.tokenizer import train_tokenizer
from kexue_train.train.checkpoint import CheckpointFolder, Retention, TrainerState, save_checkpoint
from kexue_train.train.config import RENAMED_KEYS, ObjectiveConfig
from kexue_train.train.engine import TorchEngine
from kexue_train.train.faults.stop import Ending
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.launch import preserve_process_state
from kexue_train.train.objective import PretrainingObjective
from kexue_train.train.worker import run_worker
from tests.free_port import free_port
from tests.reference.row_hashes import sum_hashes, text_hashes
from tests.train.warm_worker import WarmProcess

SECONDS = 600
"""Far more than any process of these tests takes, also on a machine that does much else."""
SEQ_LEN = 32
MODEL = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": SEQ_LEN,
}
_TIMES = ("time", "seconds", "tokens_per_second", "flops_per_second", "mfu", "eta_seconds", "data_wait",
          "memory_bytes", "memory_share")  # fmt: skip
_SENTENCES = (
    "The harbour was quiet that morning.",
    "Nobody expected the storm; it came at noon.",
    "They count words, boats and storms, and they never sleep.",
    "今天天气很好，我们去公园散步。",
    "Walking along the pier is harder in winter.",
)


def write_samples(folder: Path) -> Path:
    """Samples made as a run makes them: 80 documents -> text shards -> tokenizer -> rows of 32 tokens."""
    texts = [f"Document {i}. " + " ".join(_SENTENCES[(i + j) % 5] for j in range(2 + i % 7)) for i in range(80)]
    recipe = Recipe(kind="text_shards", settings={})
    shards, partial, schema = (
        folder / "shards",
        open_partial(folder / "shards", recipe),
        pa.schema([("text", pa.string())]),
    )
    with ShardWriter(partial / shard_name(0, 1), schema) as writer:
        writer.write(pa.table({"text": texts}, schema=schema))
    checksum = format_checksum(sum_hashes(text_hashes(text.encode() for text in texts)))
    files = describe_files(partial, {shard_name(0, 1): len(texts)})
    checksums = RowsChecksum(input=checksum, output=checksum)
    publish(partial, shards, build_manifest(recipe, files, rows=len(texts), rows_checksum=checksums))
    train_tokenizer(TokenizerConfig(vocab_size=160), shards, folder / "tokenizer")
    config = SampleConfig(seq_len=SEQ_LEN, heldout_fraction=0.1)
    build_samples(config, shards, folder / "tokenizer", folder / "samples", seed=3, executor=LocalExecutor(1))
    return folder / "samples"


def make_config(
    model: dict[str, Any] | None = None,
    lr: float = 2e-3,
    optimizer: dict[str, Any] | None = None,
    **train: Any,
) -> JobConfig:
    """A job of 8 steps of 8 rows with dropout 0.1, plain torch, one worker with one thread on the CPU.

    ``train`` names keys without their section.
    """
    given = {"steps": 8, "global_batch_size": 8, "micro_batch_size": 4, "engine": "torch", "device": "cpu",
                "threads_per_worker": 1, "log_every": 1, "validate_every": 4, "checkpoint_every": 2,
                "launcher": "torchrun", **train}  # fmt: skip
    settings: dict[str, Any] = {}
    for key, value in given.items():
        *section, name = RENAMED_KEYS.get(f"train.{key}", f"train.{key}").split(".")[1:]
        (settings.setdefault(section[0], {}) if section else settings)[name] = value
    steps = {"lr": lr, "schedule": {4: 1.0, 8: 0.5}, **(optimizer or {})}
    values = {"seed": 7, "model": {**MODEL, **(model or {})}, "optimizer": steps, "train": settings}
    return JobConfig.parse(values, where="test")


def train_here(config: JobConfig, samples: Path, out: Path) -> Ending:
    """Be the one worker, in this process, which is then as it was before."""
    with preserve_process_state():
        return run_worker(config, samples, out, alone=True, listen=True)


def start_worker(
    config: JobConfig,
    samples: Path,
    out: Path,
    *,
    script: str = "-m kexue_train.train.worker",
    environment: Mapping[str, str] | None = None,
) -> WarmProcess:
    """Start the worker as a process of its own; ``script`` may be a program that calls the worker's ``main``."""
    file = out.with_name(f"{out.name}.yaml")
    write_atomic(file, config.model_dump_json())  # a rank before this one may be reading it
    return WarmProcess([*script.split(), "--config", file, "--samples", samples, "--out", out], environment)


def train_by_ranks(config: JobConfig, samples: Path, out: Path) -> None:
    """Train with ``config.train.num_workers`` processes, which are started without a launcher."""
    count, port = config.train.num_workers, free_port()
    ranks = [
        start_worker(config, samples, out, environment=rank_environment(rank, count, port)) for rank in range(count)
    ]
    outputs = [process.communicate(timeout=SECONDS)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * count, outputs


def make_model(vocab_size: int, seed: int = 0, **changes: Any) -> tuple[RoFormerV2ForPreTraining, Tiger]:
    """A random model and an optimizer with random momenta."""
    torch.manual_seed(seed)
    model = RoFormerV2ForPreTraining(build_hf_config(ModelConfig(**{**MODEL, **changes}), vocab_size))
    optimizer = Tiger(build_param_groups(model), accumulation_steps=2)
    for parameter in model.parameters():
        optimizer.momentum(parameter).normal_()
    return model, optimizer


def make_objective(
    model: RoFormerV2ForPreTraining, *, expected: Sequence[float] = (1.0, 1.0), nsp_weight: float = 1.0
) -> PretrainingObjective:
    """The loss of ``model``, divided by these expected numbers of predictions and pairs."""
    objective = PretrainingObjective(model, pretraining_heads(ObjectiveConfig(nsp_weight=nsp_weight)))
    objective.expected = expected
    return objective


def make_engine(model: RoFormerV2ForPreTraining, optimizer: Tiger) -> TorchEngine:
    """An engine of plain torch, good for its tensors."""
    return TorchEngine(make_objective(model), optimizer)


def make_recipe(samples: Path, **changes: Any) -> Recipe:
    """What ``make_checkpoint`` says it is a checkpoint of."""
    return make_config(changes).recipe(read_manifest(samples).content_digest)


def make_checkpoint(
    folder: Path, samples: Path, *, step: int, keep: int = 9, loss: float | None = None, **changes: Any
) -> Path:
    """A checkpoint of ``make_model(seed=step)`` after so many steps of two micro-batches."""
    model, optimizer = make_model(read_manifest(samples).statistics["vocab_size"], seed=step, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    path = save_checkpoint(
        folder,
        model,
        *make_engine(model, optimizer).full_tensors(),
        TrainerState(step=step, micro_step=2 * step, seed=7, tokens=100 * step),
        recipe=make_recipe(samples, **changes),
        tokenizer=samples / "tokenizer",
        validation_loss=loss,
    )
    CheckpointFolder(folder, Retention(keep)).admit(path)
    return path


def final_tensors(out: Path, step: int = 8) -> dict[str, torch.Tensor]:
    """Weights and momenta of a checkpoint."""
    folder = TrainDir(out).checkpoints / f"step-{step:08d}"
    return load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether both hold the same names with the same values, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def curve(out: Path, *kinds: str) -> list[dict[str, Any]]:
    """The lines of metrics of these kinds (by default training and validation), without times."""
    lines = [line for line in read_metrics(TrainDir(out).metrics) if line["kind"] in (kinds or ("train", "validation"))]
    return [{name: value for name, value in line.items() if name not in _TIMES} for line in lines]


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment of a rank that was started without a launcher."""
    ranks = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    return os.environ | ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
