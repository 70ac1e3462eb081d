"""The plan of a whole run: a pure function of its configuration, the sizes of its inputs and the machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.runtime import parse_size
from kexue_train.pipeline.plan import rates
from kexue_train.pipeline.plan.stage_plan import StagePlan
from kexue_train.pipeline.plan.training import count_parameters, flops_per_token, plan_training, rule_of
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.shuffle import plan as shuffle_plan

_JSON_PER_TEXT_BYTE = 1.034
_UINT16_IDS = 65_536


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run will be."""

    cpus: int
    memory_bytes: int
    """Free."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The stages in data order."""

    text_bytes: int
    stages: tuple[StagePlan, ...]

    @property
    def disk_bytes(self) -> int:
        """What the run leaves, all stages together."""
        return sum(stage.disk_bytes for stage in self.stages)

    @property
    def peak_disk_bytes(self) -> int:
        """The most that lies on disk at once, inputs not counted."""
        left = peak = 0
        for stage in self.stages:
            left += stage.disk_bytes
            peak = max(peak, left + stage.scratch_bytes)
        return peak

    @property
    def memory_bytes(self) -> int:
        """Of the stage that takes most."""
        return max(stage.memory_bytes or 0 for stage in self.stages)

    @property
    def seconds(self) -> float | None:
        """Of all stages; None if one is not known."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None


def plan_run(
    config: RunConfig, sources: Sequence[Source], machine: Machine, *, tokens_per_second: float | None = None
) -> RunPlan:
    """What ``config`` will take.

    Args:
        config: The run.
        sources: Its inputs (``corpus.inputs.find_inputs``); not looked at where the corpus is made.
        machine: Where it will run.
        tokens_per_second: Of training, all workers together, if it was measured.
    """
    corpus, sources = _plan_corpus(config, sources)
    text_bytes = shuffle_plan.estimate_text_bytes(sources)
    return RunPlan(
        text_bytes,
        (
            corpus,
            _plan_shuffle(config, sources, machine),
            _plan_tokenizer(config, text_bytes),
            _plan_samples(config, text_bytes, sources, machine),
            plan_training(config, machine.cpus, tokens_per_second),
            _plan_export(config),
            _plan_evaluate(config, text_bytes, machine, tokens_per_second),
            StagePlan(stage="report", seconds=rates.REPORT_SECONDS, disk_bytes=5 * 10**6, basis="demo run"),
        ),
    )


def find_sources(config: RunConfig, text_size: str | None = None) -> list[Source]:
    """The inputs of a run as they are now, or so much text in their place; none where the run makes its corpus.

    Raises:
        ConfigError: If ``text_size`` cannot be read, or is given for a corpus that the run makes.
        CorpusError: If an input is missing or unusable.
    """
    if config.corpus.source == "installed_docs":
        if text_size:
            raise ConfigError("--text-size: this configuration makes its corpus; set corpus.max_size=SIZE instead")
        return []
    if text_size:
        return [text_source(parse_size(text_size))]
    shuffle = config.shuffle
    return find_inputs(config.corpus.inputs, format=shuffle.format, document=shuffle.document, weights=shuffle.weights)


def text_source(text_bytes: int) -> Source:
    """Stands for so much text that is not there: JSON Lines, which can be cut anywhere."""
    return Source("text", "jsonl", None, text_bytes, 0, text_bytes)


def _plan_corpus(config: RunConfig, sources: Sequence[Source]) -> tuple[StagePlan, Sequence[Source]]:
    if config.corpus.source == "files":
        return StagePlan(stage="corpus", tasks=0, seconds=0.0, basis="files as given"), sources
    size = parse_size(config.corpus.max_size)
    seconds = size / rates.CORPUS_BYTES_PER_SECOND
    made = StagePlan(stage="corpus", disk_bytes=size, seconds=seconds, basis="demo run: 0.41 MB/s, in one process")
    return made, [text_source(int(size / _JSON_PER_TEXT_BYTE))]


def _num_shards(config: RunConfig, sources: Sequence[Source]) -> int:
    return config.shuffle.shards or shuffle_plan.count_shards(sources, parse_size(config.shuffle.shard_size))


def _plan_shuffle(config: RunConfig, sources: Sequence[Source], machine: Machine) -> StagePlan:
    text_bytes = shuffle_plan.estimate_text_bytes(sources)
    memory = parse_size(config.shuffle.memory) if config.shuffle.memory else machine.memory_bytes // 2
    budget = shuffle_plan.split_memory(memory, machine.cpus)
    plan = shuffle_plan.plan_shuffle(sources, _num_shards(config, sources), budget.bucket_bytes)
    compress = text_bytes > machine.memory_bytes // 2
    by_cpus = rates.SHUFFLE_BYTES_PER_CPU_SECOND * budget.workers
    rate = min(by_cpus, rates.SHUFFLE_BYTES_PER_DISK_SECOND)
    limit = "CPUs" if by_cpus < rates.SHUFFLE_BYTES_PER_DISK_SECOND else "the disk of that machine"
    return StagePlan(
        stage="shuffle",
        tasks=len(plan.tasks) + plan.num_shards,
        disk_bytes=text_bytes,
        scratch_bytes=shuffle_plan.estimate_disk_bytes(sources, compress=compress) - text_bytes,
        memory_bytes=memory,
        seconds=rates.START_SECONDS + text_bytes / rate,
        basis=f"the shuffle beside its peers: {rate / 1e6:.0f} MB/s, by {limit}; {plan.num_shards} shards",
    )


def _plan_tokenizer(config: RunConfig, text_bytes: int) -> StagePlan:
    if config.tokenizer.source:
        return StagePlan(stage="tokenizer", seconds=1.0, basis="taken as it is")
    read = min(text_bytes, parse_size(config.tokenizer.max_size))
    seconds = read / rates.TOKENIZER_BYTES_PER_SECOND
    basis = "demo run: 2.3 MB/s; less time per byte of a large corpus, whose words come again"
    return StagePlan(stage="tokenizer", disk_bytes=250_000, seconds=seconds, basis=basis)


def _plan_samples(config: RunConfig, text_bytes: int, sources: Sequence[Source], machine: Machine) -> StagePlan:
    lengths = sorted({config.samples.seq_len, *config.train.seq_lens})
    shards = _num_shards(config, sources)
    at_once = min(shards, machine.cpus)
    disk = sum(rows_of(text_bytes, seq_len) * _row_bytes(config, seq_len) for seq_len in lengths)
    task_bytes = rates.SAMPLE_MEMORY_PER_TEXT_BYTE * text_bytes / shards + 105e6
    rate = rates.SAMPLE_BYTES_PER_CPU_SECOND * at_once
    return StagePlan(
        stage="samples",
        tasks=shards * len(lengths) * (2 if config.samples.shuffle == "global" else 1),
        disk_bytes=disk,
        scratch_bytes=disk // len(lengths) if config.samples.shuffle == "global" else 0,
        memory_bytes=int(at_once * task_bytes),
        seconds=len(lengths) * text_bytes / rate,
        basis=f"the sample stage: 3.0 MB/s per CPU; {rates.SLOTS_PER_TEXT_BYTE} slots per byte, as of English",
    )


def rows_of(text_bytes: int, seq_len: int) -> int:
    """About how many sample rows so much text makes."""
    return math.ceil(text_bytes * rates.SLOTS_PER_TEXT_BYTE / seq_len)


def _row_bytes(config: RunConfig, seq_len: int) -> int:
    id_bytes = 2 if config.tokenizer.vocab_size <= _UINT16_IDS else 4
    return seq_len * id_bytes + seq_len // 8 + rates.ROW_BYTES_PER_ROW


def _plan_export(config: RunConfig) -> StagePlan:
    weights = count_parameters(rule_of(config), config.model.hidden_size) * rates.FLOAT_BYTES
    size = int(weights + rates.CHECKPOINT_EXTRA_BYTES)
    seconds = size / rates.EXPORT_BYTES_PER_SECOND
    return StagePlan(stage="export", disk_bytes=size, seconds=seconds, basis="demo run: 27 MB/s")


def _plan_evaluate(config: RunConfig, text_bytes: int, machine: Machine, tokens_per_second: float | None) -> StagePlan:
    tokens = text_bytes * rates.SLOTS_PER_TEXT_BYTE * config.samples.heldout_fraction
    operations = tokens * flops_per_token(config) / 3  # forward alone
    if tokens_per_second:
        seconds = tokens / (3 * tokens_per_second)
    else:
        seconds = operations / (machine.cpus * rates.cpu_flops_per_second(config.model.hidden_size))
    return StagePlan(
        stage="evaluate",
        disk_bytes=10_000,
        seconds=rates.START_SECONDS + seconds if tokens_per_second or config.train.device != "cuda" else None,
        basis=f"forward passes on {tokens:.3g} held-out tokens, at the pace of training",
    )
