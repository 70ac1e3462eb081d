"""What training will take: by the sizes of the model, the batches and the kept checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.foundation.stage import Outlook, StagePlan
from kexue_train.train.communication import (
    GPUS_PER_MACHINE,
    NETWORKS,
    Communication,
    communication_of_step,
    transfers_of_step,
)
from kexue_train.train.config import RecomputeEvery
from kexue_train.train.monitor.flops import FlopRule, flop_rule
from kexue_train.train.stage import TrainSections

GPU_COUNTS = (8, 64, 512)
"""What communication is planned for."""
_WORD_TABLE_MULTIPLE = 128
_TENSORS_OF_LAYER, _TENSORS_BESIDE = {"softmax": 6, "grouped": 6, "linear": 6, "latent": 8}, 4
_USUAL_ROWS = 32
"""Of a micro-batch that is found when the training starts."""

# Measured on one CPU (half of a machine with 2 cores, AMD EPYC), without a GPU; benchmarks/RESULTS.md explains each.
_WORKER_BYTES = 1.35e9
"""Resident memory of a training worker beside model and activations: Python, PyTorch, DeepSpeed ("demo run")."""
_CHECKPOINT_EXTRA_BYTES = 0.3e6
"""Tokenizer and settings in every checkpoint ("demo run")."""
_KEPT_BYTES = {"none": 102.0, "selective": 35.9, "full": 4.0}
"""Kept by one layer per token and unit of width after forward, on a CPU in fp32 with dropout, feed-forward four times
as wide ("the encoder", recomputation): the slopes from 6 to 24 layers."""
_KEPT_BYTES_BF16 = {"none": 36.0, "selective": 20.0, "full": 4.0}
"""The same on a GPU under bf16 autocast, as torch keeps it: products, attention and relu in two bytes, the residual
stream in four, masks in one; "selective": the input, q, k, v, the inner layer and the second product."""
_LAYERS_BESIDE = 2
"""Embeddings, heads and the layer that backward is in count as so many layers without recomputation: the table's peaks
within a sixth."""
_USUAL_SHARE, _USUAL_PEAK = 0.45, 312e12
"""Share of its peak that a GPU reaches in trainings like this, and the peak of an A100 in bf16 by its data sheet."""
_RECOMPUTE_SLOWDOWN = {"none": 1.0, "selective": 1.23, "full": 1.4}
"""("the encoder", recomputation)"""
_NARROW, _WIDE = (192, 41e9), (768, 65e9)
"""Width of the model, useful operations per second of one CPU in fp32 without recomputation: the demo's 5,850
tokens/s with its recomputation taken off, and base size at 233 tokens/s ("the encoder")."""


def planned_parameters(rule: FlopRule, hidden_size: int) -> int:
    """Weights of the model that ``rule`` is of: layers, word table, NSP head; nothing has a bias."""
    return (rule.per_token + rule.per_prediction) // 6 + 4 * hidden_size  # two segments, two answers of the NSP head


def rule_of(config: TrainSections) -> FlopRule:
    """The rule of operations, with the word table as large as ``tokenizer.vocab_size`` makes it."""
    vocab_size = -(-config.tokenizer.vocab_size // _WORD_TABLE_MULTIPLE) * _WORD_TABLE_MULTIPLE
    return flop_rule(config.model, vocab_size)


def flops_per_token(config: TrainSections) -> float:
    """Useful operations of a token, forward and backward, in rows that one sequence fills."""
    predicted = config.train.objective.masking.total
    return rule_of(config).per_token_of(mean_length=config.row_lengths[0], predicted_share=predicted)


def count_slots(config: TrainSections) -> int:
    """Token slots of all steps; hardly one is padding."""
    phases = config.train.phase_settings
    return sum(p.steps * p.global_batch_size * (p.seq_len or config.row_lengths[0]) for p in phases)


def plan_pretraining(config: TrainSections, outlook: Outlook) -> StagePlan:
    """Return the plan of the stage ``train``."""
    train = config.train
    parameters, measured = outlook.parameters, outlook.tokens_per_second
    checkpoint = int(parameters * _checkpoint_bytes(config) + _CHECKPOINT_EXTRA_BYTES)
    kept_for_ever = train.steps // train.checkpoints.keep_every if train.checkpoints.keep_every else 0
    on_gpu = train.device == "cuda"
    worker_bytes = int(parameters * state_bytes(config) + activation_bytes(config))
    rate = measured or (None if on_gpu else cpu_tokens_per_second(config, outlook.flops_per_second))
    return StagePlan(
        tasks=train.num_workers,
        disk_bytes=(train.checkpoints.keep + 1 + kept_for_ever) * checkpoint,  # and the best
        scratch_bytes=checkpoint,  # the new one, before an old one goes
        memory_bytes=int(train.num_workers * (_WORKER_BYTES + (0 if on_gpu else worker_bytes))),
        device_bytes=worker_bytes if on_gpu else None,
        seconds=None if rate is None else (count_slots(config) + _validated_slots(config, outlook) / 3) / rate,
        basis=_basis(config, parameters, rate, measured=measured is not None),
    )


def _validated_slots(config: TrainSections, outlook: Outlook) -> float:
    """Token slots of all validations: forward passes alone, each a third of a training pass."""
    train = config.train
    return math.ceil(train.steps / train.logging.validate_every) * outlook.heldout_slots


def plan_communication(config: TrainSections, parameters: int) -> list[Communication]:
    """Return what a step of the last phase sends and waits on ``GPU_COUNTS`` GPUs; nothing of a training on CPUs.

    The global batch stays as it is where it has a row for every GPU; micro-batches have at most the rows that the
    configuration gives them, or ``_USUAL_ROWS``.
    """
    if config.train.device != "cuda":
        return []
    phase = config.train.phase_settings[-1]
    most = _USUAL_ROWS if phase.micro_batch_size == "auto" else phase.micro_batch_size
    row = (phase.seq_len or config.row_lengths[0]) * flops_per_token(config) / (_USUAL_SHARE * _USUAL_PEAK)
    found = []
    for gpus in GPU_COUNTS:
        rows = max(1, phase.global_batch_size // gpus)
        micro_steps = math.ceil(rows / most)
        transfers = transfers_of_step(
            parameters=parameters,
            tensors=_TENSORS_OF_LAYER[config.model.attention] * config.model.num_hidden_layers + _TENSORS_BESIDE,
            zero_stage=config.train.compute.zero_stage,
            hidden=config.optimizer.accumulate == "momentum",
            micro_steps=micro_steps,
        )
        found += [
            communication_of_step(transfers, gpus, network, micro_steps=micro_steps, step_seconds=rows * row)
            for network in (NETWORKS if gpus > GPUS_PER_MACHINE else NETWORKS[:1])
        ]
    return found


def cpu_tokens_per_second(config: TrainSections, flops_per_second: float) -> float:
    """Return the pace of all workers of a machine without a GPU, in fp32."""
    return flops_per_second / (flops_per_token(config) * _of_recompute(config, _RECOMPUTE_SLOWDOWN))


def gpu_tokens_per_second(config: TrainSections) -> float:
    """Return the pace that A100s would have, one for each worker, at the share of their peak that is usual."""
    return config.train.num_workers * _USUAL_SHARE * _USUAL_PEAK / flops_per_token(config)


def cpu_flops_per_second(hidden_size: int) -> float:
    """Return the useful operations of one CPU in training, on a line through log(width) of the model, flat outside."""
    (low, slow), (high, fast) = _NARROW, _WIDE
    share = math.log(hidden_size / low) / math.log(high / low)
    return slow + (fast - slow) * min(1.0, max(0.0, share))


def state_bytes(config: TrainSections) -> float:
    """Per weight and worker: weight, momentum, master copy, gradient (docs/training.md, "DeepSpeed")."""
    train, optimizer = config.train, config.optimizer
    moments = 8 if optimizer.name in ("adamw", "lamb") else 4
    if train.compute.zero_stage == 3:
        return (8 + moments) / train.num_workers
    if train.compute.zero_stage:
        return 4 + (4 + moments) / train.num_workers
    gradient = 4 if optimizer.accumulate == "gradient" else 0
    return 4.0 if optimizer.states == "bf16" else 4 + moments + gradient


def activation_bytes(config: TrainSections) -> float:
    """At the peak of one worker's micro-batch, in the phase that takes most; ``auto`` counts as one row."""
    layers, width = config.model.num_hidden_layers, config.model.hidden_size
    kept = _KEPT_BYTES_BF16 if _is_bf16_on_gpu(config) else _KEPT_BYTES
    tokens = max(
        (1 if phase.micro_batch_size == "auto" else phase.micro_batch_size) * (phase.seq_len or config.row_lengths[0])
        for phase in config.train.phase_settings
    )
    return tokens * width * (layers * _of_recompute(config, kept) + _LAYERS_BESIDE * kept["none"])


def _is_bf16_on_gpu(config: TrainSections) -> bool:
    return config.train.precision != "fp32" and config.train.device == "cuda"


def _of_recompute(config: TrainSections, values: Mapping[str, float]) -> float:
    """The value for ``train.compute.recompute``; the mean of the layers where only some are computed again."""
    recompute = config.train.compute.recompute
    if isinstance(recompute, RecomputeEvery):
        return values["none"] + (values["full"] - values["none"]) / recompute.every
    return values[recompute]


def _checkpoint_bytes(config: TrainSections) -> int:
    """Per weight: the weight, the moments, and fp32 copies beside bf16 weights."""
    if config.optimizer.states == "bf16":
        return 4
    return 4 + (8 if config.optimizer.name in ("adamw", "lamb") else 4)


def _basis(config: TrainSections, parameters: int, rate: float | None, *, measured: bool) -> str:
    slots = count_slots(config)
    amount = f"{parameters:,} weights, {slots:.3g} tokens, {slots * flops_per_token(config):.2g} operations"
    if rate is None:
        usual = gpu_tokens_per_second(config)
        pace = (
            "no GPU was measured: give --tokens-per-second, from metrics.jsonl of a short run; A100s at 45 % of their "
            f"peak would read {usual:,.0f} tokens/s and take {format_seconds(slots / usual)}"
        )
    else:
        pace = f"{rate:,.0f} tokens/s " + ("as given" if measured else "by the rates of 2 CPU cores")
    auto = any(phase.micro_batch_size == "auto" for phase in config.train.phase_settings)
    kept = "bf16" if _is_bf16_on_gpu(config) else "fp32"
    memory = (
        f"memory of micro-batches of one row in {kept}; auto takes up to 90 % of a GPU" if auto else f"memory in {kept}"
    )
    checkpoint = format_size(parameters * _checkpoint_bytes(config))
    return f"{amount}; {pace}; {memory}; checkpoints of {checkpoint}"
