"""One training process: joins the group, builds model and engine, resumes, trains. Knows neither Ray nor Prefect.

torchrun --nproc-per-node 8 -m kexue_train.train.worker --config configs/base.yaml --samples DIR --out DIR
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import math
import signal
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from kexue_train.artifacts import MANIFEST_NAME, build_manifest, describe_files, write_atomic
from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.batches.loader import Plan, iter_batches, read_ahead
from kexue_train.counter_rng import Purpose, random_words
from kexue_train.errors import KexueError
from kexue_train.model import RoFormerV2ForPreTraining
from kexue_train.model.hf_folder import build_hf_config
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.optim.build import build_optimizer
from kexue_train.optim.windows import WindowedOptimizer
from kexue_train.progress import Silent
from kexue_train.runtime import available_cpus, configure_logging, rank
from kexue_train.samples.mlm import IGNORE_INDEX, MaskingRates
from kexue_train.train.balance import loss_units
from kexue_train.train.checkpoint import TrainerState, checkpoint_name, latest_checkpoint, load_checkpoint
from kexue_train.train.config import RecomputeEvery
from kexue_train.train.distributed import choose_device, join_process_group, same_on_all_ranks
from kexue_train.train.engine import build_engine
from kexue_train.train.job import JobConfig, TrainDir, prepare, read_samples
from kexue_train.train.loop import Training, train_loop
from kexue_train.train.metrics import MetricLogger
from kexue_train.train.objective import ExpectedCounts, PretrainingObjective
from kexue_train.train.tensors import Tensors, pinned, to_tensors

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
STOPPED = 3
"""Exit code of a worker that saved a checkpoint and ended because it was asked to."""


def run_worker(config: JobConfig, samples: Path, out_dir: Path) -> bool:
    """Train on this process's device as one rank of the group.

    Returns:
        Whether the last step was reached.
    """
    paths = TrainDir(out_dir)
    paths.logs.mkdir(parents=True, exist_ok=True)
    configure_logging(logging.INFO, paths.logs / f"rank-{rank()}.log")
    device = choose_device(config.train.device)
    join_process_group(device)
    config = _with_world_size(config)
    torch.set_num_threads(config.train.threads_per_worker or max(1, available_cpus() // config.train.num_workers))
    training = _build(config, samples, paths, device)
    training.stop.listen()
    with closing(training.batches):
        finished = _train(training)
    if finished and dist.get_rank() == 0:
        _finish(training)
    dist.barrier()
    dist.destroy_process_group()
    return finished


def _build(config: JobConfig, samples: Path, paths: TrainDir, device: torch.device) -> Training:
    dataset = read_samples(samples, config)
    objective = _build_objective(config, dataset, device)
    optimizer = build_optimizer(
        config.optimizer,
        objective.model,
        accumulation_steps=config.train.accumulation_steps,
        seed=config.seed,
        partitioned=config.train.zero_stage > 0,
    )
    state = _resume(config, paths, objective.model, optimizer)
    return Training(
        config=config,
        recipe=config.recipe(dataset.content_digest),
        paths=paths,
        tokenizer=dataset.folders[0] / "tokenizer",
        rows_per_epoch=dataset.num_training_rows,
        num_parameters=sum(p.numel() for p in objective.model.parameters()),  # an engine may leave less to count
        objective=objective,
        optimizer=optimizer,
        engine=build_engine(config.train, objective, optimizer, paths.root),
        device=device,
        batches=_training_batches(config, dataset, state.step, device),
        heldout=_heldout_batches(config, dataset),
        state=state,
    )


def _build_objective(config: JobConfig, dataset: SampleDataset, device: torch.device) -> PretrainingObjective:
    """The model, initialised from the seed alike on every rank, with its loss."""
    train = config.train
    torch.manual_seed(int(random_words(config.seed, Purpose.INIT, 0, 0)[0, 0]) & (2**63 - 1))
    weights = torch.bfloat16 if config.optimizer.states == "bf16" else torch.float32
    model = RoFormerV2ForPreTraining(build_hf_config(config.model, dataset.vocab_size)).to(device, weights)
    if isinstance(train.recompute, RecomputeEvery):
        enable_recompute(model.roformer, "full", every=train.recompute.every)
    elif train.recompute != "none":
        enable_recompute(model.roformer, train.recompute)
    if train.compile:
        compile_layers(model.roformer)
    tokens, sequences, pairs = map(dataset.mean_per_row, ("real_tokens", "sequences", "pairs"))
    maskable = tokens - 2 * sequences - pairs  # without [CLS] and [SEP]
    expected = ExpectedCounts(
        predictions=train.masking.total * maskable * train.micro_batch_size,
        pairs=pairs * train.micro_batch_size,
    )
    autocast = torch.bfloat16 if train.precision == "bf16" else None
    units = loss_units(train.loss_unit, dataset)
    return PretrainingObjective(model, expected, nsp_weight=train.nsp_weight, autocast=autocast, units=units)


def _resume(
    config: JobConfig, paths: TrainDir, model: RoFormerV2ForPreTraining, optimizer: WindowedOptimizer
) -> TrainerState:
    """Load the newest whole checkpoint that rank 0 sees, the same on every rank; a fresh state if there is none."""
    found = latest_checkpoint(paths.checkpoints, _LogNotes()) if dist.get_rank() == 0 else None
    name = same_on_all_ranks(str(found) if found else None)
    if name is None:
        return TrainerState(seed=config.seed)
    state = load_checkpoint(Path(name), model, optimizer)
    logger.info("resumed from %s", name)
    return replace(state, micro_step=state.step * config.train.accumulation_steps)


def _train(training: Training) -> bool:
    state, train = training.state, training.config.train
    if dist.get_rank() != 0:
        return train_loop(training)
    with MetricLogger(training.paths, resumed_step=state.step) as metrics:
        training.metrics, training.seconds = metrics, metrics.resumed_seconds
        metrics.event(
            "resume" if state.step else "start",
            state.step,
            world_size=dist.get_world_size(),
            engine=train.engine,
            zero_stage=train.zero_stage,
            device=training.device.type,
            precision=train.precision,
            recompute=train.model_dump(mode="json")["recompute"],
            accumulation_steps=train.accumulation_steps,
            parameters=training.num_parameters,
            rows_per_epoch=training.rows_per_epoch,
        )
        finished = train_loop(training)
        metrics.event("end" if finished else "stop", training.state.step)
        return finished


def _finish(training: Training) -> None:
    """Write the manifest that says training is complete; its files are those of the last checkpoint."""
    root = training.paths.root
    name = f"{training.paths.checkpoints.name}/{checkpoint_name(training.state.step)}"
    files = {f"{name}/{file}": entry for file, entry in describe_files(root / name).items()}
    statistics = {
        "checkpoint": name,
        "steps": training.state.step,
        "tokens": training.state.tokens,
        "parameters": training.num_parameters,
    }
    manifest = build_manifest(training.recipe, files, seed=training.config.seed, statistics=statistics)
    write_atomic(root / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")


def _training_batches(
    config: JobConfig, dataset: SampleDataset, start_step: int, device: torch.device
) -> Generator[Tensors]:
    plan = Plan(
        seed=config.seed,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        micro_batch_size=config.train.micro_batch_size,
        accumulation_steps=config.train.accumulation_steps,
        global_batch_size=config.train.global_batch_size,
        rates=_rates(config),
    )
    batches = iter_batches(dataset, plan, start_step=start_step, num_processes=config.train.num_loader_workers)
    return read_ahead(pinned(batches, device))


def _heldout_batches(config: JobConfig, dataset: SampleDataset) -> list[Tensors]:
    """This rank's share of the held-out rows, masked once and for all (epoch 0).

    All ranks have as many batches, since under ZeRO 3 they compute together; a rank short of rows takes one unlabelled.
    """
    rows, ranks = dataset.heldout_rows, dist.get_world_size()
    if not len(rows):
        return []
    pieces = np.array_split(
        rows[dist.get_rank() :: ranks], math.ceil(len(rows) / (ranks * config.train.micro_batch_size))
    )
    batches = []
    for piece in pieces:
        chosen = piece if len(piece) else rows[:1]
        batch = to_tensors(make_batch(dataset, chosen, 0, seed=config.seed, rates=_rates(config)))
        if not len(piece):
            batch |= {name: torch.full_like(batch[name], IGNORE_INDEX) for name in ("prediction_labels", "pair_labels")}
        batches.append(batch)
    return batches


def _rates(config: JobConfig) -> MaskingRates:
    return MaskingRates(**config.train.masking.model_dump())


def _with_world_size(config: JobConfig) -> JobConfig:
    """The configuration with the number of workers that the launcher really started, checked again.

    Raises:
        ConfigError: If the batch sizes do not multiply out for that number.
    """
    values = config.model_dump(mode="json")
    values["train"]["num_workers"] = dist.get_world_size()
    return JobConfig.parse(values, where=f"{dist.get_world_size()} training workers")


class _LogNotes(Silent):
    """Notes go to the rank's log."""

    def note(self, message: str) -> None:
        """Log as a warning."""
        logger.warning(message)


def _end_with_launcher() -> None:
    """Ask the kernel (Linux) to end this process when its launcher dies, even by kill -9.

    torchrun puts workers into sessions of their own, so a killed run would leave them writing beside its successor.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str] | None = None) -> int:
    """Entry point for torchrun, ``deepspeed`` and ``srun``; exit code 0 done, 2 user's mistake, 3 stopped."""
    parser = argparse.ArgumentParser(prog="kexue_train.train.worker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="YAML with the sections model, optimizer and train")
    parser.add_argument(
        "--samples", type=Path, required=True, help="folder of sample shards, or a YAML file of 'folder: weight'"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for checkpoints, metrics, logs; resumed if it has some"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_args(arguments)
    _end_with_launcher()
    try:
        config = JobConfig.load(options.config, options.overrides)
        prepare(config, options.samples, TrainDir(options.out))
        return 0 if run_worker(config, options.samples, options.out) else STOPPED
    except KexueError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
