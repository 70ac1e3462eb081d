"""What training will take: by the sizes of the model, the batches and the kept checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from kexue_train.foundation.runtime import format_size
from kexue_train.pipeline.plan import rates
from kexue_train.pipeline.plan.stage_plan import StagePlan
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.train.config import RecomputeEvery
from kexue_train.train.monitor.flops import FlopRule, flop_rule

_WORD_TABLE_MULTIPLE = 128


def count_parameters(rule: FlopRule, hidden_size: int) -> int:
    """Weights of the model that ``rule`` is of: layers, word table, NSP head; nothing has a bias."""
    return (rule.per_token + rule.per_prediction) // 6 + 4 * hidden_size  # two segments, two answers of the NSP head


def rule_of(config: RunConfig) -> FlopRule:
    """The rule of operations, with the word table as large as ``tokenizer.vocab_size`` makes it."""
    vocab_size = -(-config.tokenizer.vocab_size // _WORD_TABLE_MULTIPLE) * _WORD_TABLE_MULTIPLE
    return flop_rule(config.model, vocab_size)


def flops_per_token(config: RunConfig) -> float:
    """Useful operations of a token, forward and backward, in rows that one sequence fills."""
    predicted = config.train.objective.masking.total
    return rule_of(config).per_token_of(mean_length=config.samples.seq_len, predicted_share=predicted)


def count_slots(config: RunConfig) -> int:
    """Token slots of all steps; hardly one is padding."""
    phases = config.train.phase_settings
    return sum(p.steps * p.global_batch_size * (p.seq_len or config.samples.seq_len) for p in phases)


def plan_training(config: RunConfig, cpus: int, tokens_per_second: float | None) -> StagePlan:
    """The plan of the stage.

    Args:
        config: The run.
        cpus: CPUs that the workers share.
        tokens_per_second: Of all workers, if it was measured; without it a GPU's time is not known.
    """
    train = config.train
    parameters = count_parameters(rule_of(config), config.model.hidden_size)
    checkpoint = int(parameters * _checkpoint_bytes(config) + rates.CHECKPOINT_EXTRA_BYTES)
    kept_for_ever = train.steps // train.checkpoints.keep_every if train.checkpoints.keep_every else 0
    on_gpu = train.device == "cuda"
    worker_bytes = int(parameters * state_bytes(config) + activation_bytes(config))
    rate = tokens_per_second or (None if on_gpu else cpu_tokens_per_second(config, cpus))
    return StagePlan(
        stage="train",
        tasks=train.num_workers,
        disk_bytes=(train.checkpoints.keep + 1 + kept_for_ever) * checkpoint,  # and the best
        scratch_bytes=checkpoint,  # the new one, before an old one goes
        memory_bytes=int(train.num_workers * (rates.WORKER_BYTES + (0 if on_gpu else worker_bytes))),
        device_bytes=worker_bytes if on_gpu else None,
        seconds=None if rate is None else count_slots(config) / rate,
        basis=_basis(config, parameters, rate, measured=tokens_per_second is not None),
    )


def cpu_tokens_per_second(config: RunConfig, cpus: int) -> float:
    """Of all workers of a machine with ``cpus``, in fp32."""
    work = flops_per_token(config) * _of_recompute(config, rates.RECOMPUTE_SLOWDOWN)
    return cpus * rates.cpu_flops_per_second(config.model.hidden_size) / work


def state_bytes(config: RunConfig) -> float:
    """Per weight and worker: weight, momentum, master copy, gradient (docs/training.md, "DeepSpeed")."""
    train, optimizer = config.train, config.optimizer
    moments = 8 if optimizer.name in ("adamw", "lamb") else 4
    if train.compute.zero_stage == 3:
        return (8 + moments) / train.num_workers
    if train.compute.zero_stage:
        return 4 + (4 + moments) / train.num_workers
    gradient = 4 if optimizer.accumulate == "gradient" else 0
    return 4.0 if optimizer.states == "bf16" else 4 + moments + gradient


def activation_bytes(config: RunConfig) -> float:
    """At the peak of one worker's micro-batch, in the phase that takes most; ``auto`` counts as one row."""
    layers, width = config.model.num_hidden_layers, config.model.hidden_size
    per_layer = _of_recompute(config, rates.KEPT_BYTES)
    tokens = max(
        (1 if phase.micro_batch_size == "auto" else phase.micro_batch_size) * (phase.seq_len or config.samples.seq_len)
        for phase in config.train.phase_settings
    )
    return tokens * width * (layers * per_layer + rates.KEPT_BESIDE_LAYERS)


def _of_recompute(config: RunConfig, values: Mapping[str, float]) -> float:
    """The value for ``train.compute.recompute``; the mean of the layers where only some are computed again."""
    recompute = config.train.compute.recompute
    if isinstance(recompute, RecomputeEvery):
        return values["none"] + (values["full"] - values["none"]) / recompute.every
    return values[recompute]


def _checkpoint_bytes(config: RunConfig) -> int:
    """Per weight: the weight, the moments, and fp32 copies beside bf16 weights."""
    if config.optimizer.states == "bf16":
        return 4
    return 4 + (8 if config.optimizer.name in ("adamw", "lamb") else 4)


def _basis(config: RunConfig, parameters: int, rate: float | None, *, measured: bool) -> str:
    slots = count_slots(config)
    amount = f"{parameters:,} weights, {slots:.3g} tokens, {slots * flops_per_token(config):.2g} operations"
    if rate is None:
        pace = "no GPU was measured: give --tokens-per-second, from metrics.jsonl of a short run"
    else:
        pace = f"{rate:,.0f} tokens/s " + ("as given" if measured else "by the rates of 2 CPU cores")
    auto = any(phase.micro_batch_size == "auto" for phase in config.train.phase_settings)
    memory = "memory of micro-batches of one row; auto takes up to 90 % of a GPU" if auto else "memory as under fp32"
    checkpoint = format_size(parameters * _checkpoint_bytes(config))
    return f"{amount}; {pace}; {memory}; checkpoints of {checkpoint}"
