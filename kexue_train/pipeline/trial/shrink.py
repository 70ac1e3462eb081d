"""The configuration of a trial: the run's own, with a sample for its corpus and batches that fit the time.

Model, tokenizer, samples, optimizer, schedule, launcher and engine stay. Training begins as that of the run would, and
is stopped when the time is up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kexue_train.corpus.inputs import Source
from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.pipeline.plan import Machine, plan_run, text_source
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.shuffle.kept_keys import with_all_kept
from kexue_train.train.plan import cpu_flops_per_second, cpu_tokens_per_second, gpu_tokens_per_second

_DATA_STAGES = ("corpus", "shuffle", "tokenizer", "samples")
_SHARE, _FEWEST_BYTES = 0.01, 4_000_000
_DATA_SHARE, _TRAINING_SHARE = 0.2, 0.4
"""Of the time of the trial: of the data stages beyond their starts, and of training."""
_STEPS, _MOST_STEPS_PER_LINE, _LINES_PER_SECOND = 12, 10, 1.0
"""Steps that have to fit into the time, and how often a line of metrics shows the spread; of few steps on a machine
slower than its plan too."""
_SUPERVISED_STEPS = 8


@dataclass(frozen=True, slots=True)
class TrialSize:
    """How much of the corpus, and why not 1 %."""

    text_bytes: int
    share: float
    reason: str
    """Empty where it is 1 %."""


@dataclass(frozen=True, slots=True)
class TrialBatches:
    """Rows of a step in the trial."""

    rows: int
    micro_rows: int | None
    """Of one worker; None: as the run has them."""
    steps_per_line: int
    is_reduced: bool


def choose_size(config: RunConfig, sources: Sequence[Source], machine: Machine, seconds: float) -> TrialSize:
    """Return 1 % of the text, but 4 MB or more, and no more than the data stages read in their part of ``seconds``."""
    whole = plan_run(config, sources, machine).text_bytes
    most = _largest_in_time(config, machine, _DATA_SHARE * seconds, whole)
    wanted = int(_SHARE * whole)
    size = min(max(wanted, _FEWEST_BYTES), most, whole) or most
    if size == whole:
        reason = f"all of it, as {format_size(whole)} are little"
    elif size < wanted:
        reason = f"as much as fits into {format_seconds(seconds)}"
    elif size > wanted:
        reason = f"more than 1 %, since less than {format_size(_FEWEST_BYTES)} says little"
    else:
        reason = ""
    return TrialSize(size, size / whole if whole else 0.0, reason)


def _largest_in_time(config: RunConfig, machine: Machine, seconds: float, whole: int) -> int:
    """Return the most bytes of text of which the data stages take ``seconds`` by their plans, beyond their starts."""

    def takes(size: int) -> float:
        plan = plan_run(_with_corpus(config, size), [text_source(size)], machine)
        found = [plan.stages[name] for name in _DATA_STAGES]
        return sum((stage.seconds or 0.0) - stage.start_seconds for stage in found)

    size = max(whole, _FEWEST_BYTES)
    while takes(size) > seconds and size > _FEWEST_BYTES:
        size = max(size // 2 if takes(size // 2) > seconds else int(size * 0.9), _FEWEST_BYTES)
    return size


def _with_corpus(config: RunConfig, size: int) -> RunConfig:
    if config.corpus.source == "files":
        return config
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"max_size": f"{size}B"})})


def choose_batches(config: RunConfig, machine: Machine, seconds: float) -> TrialBatches:
    """Return the run's batches, or smaller ones if too few steps of the run would fit into the time of training."""
    train, workers = config.train, config.train.num_workers
    rate = (
        gpu_tokens_per_second(config)
        if train.device == "cuda"
        else cpu_tokens_per_second(config, machine.cpus * cpu_flops_per_second(config.model.hidden_size))
    )
    first = train.phase_settings[0]
    length = first.seq_len or config.samples.seq_len
    fitting = int(_TRAINING_SHARE * seconds * rate / (_STEPS * length))
    if first.global_batch_size <= fitting:
        rows, micro = first.global_batch_size, None
    else:
        most = first.global_batch_size if first.micro_batch_size == "auto" else first.micro_batch_size
        micro = min(most, 1 << max(fitting // workers, 1).bit_length() - 1)
        rows = workers * micro * max(fitting // (workers * micro), 1)
    per_second = rate / (rows * length)
    return TrialBatches(
        rows, micro, min(max(1, math.ceil(per_second / _LINES_PER_SECOND)), _MOST_STEPS_PER_LINE), micro is not None
    )


def trial_config(
    config: RunConfig, sources: Sequence[Source], sample: Path, size: TrialSize, batches: TrialBatches, shards: int
) -> RunConfig:
    """Return the configuration that the stages of the trial are given; ``sample`` is the file of documents drawn."""
    values = config.model_dump(mode="json")
    values["name"] = trial_name(config)
    _set_corpus(values, config, sources, sample, size, shards)
    _set_training(values["train"], config, batches)
    if supervised := values["supervised"]:
        supervised |= {"steps": min(supervised["steps"], _SUPERVISED_STEPS), "schedule": None}
        for key, rows in (("global_batch_size", batches.rows), ("micro_batch_size", batches.micro_rows)):
            if batches.is_reduced:
                supervised[key] = rows
    return RunConfig.parse(values, where="the trial")


def trial_name(config: RunConfig) -> str:
    """Return the name of the trial, which is that of no run."""
    return f"{config.name}.try"


def _set_corpus(
    values: dict[str, Any], config: RunConfig, sources: Sequence[Source], sample: Path, size: TrialSize, shards: int
) -> None:
    shuffle = values["shuffle"]
    if config.corpus.source == "installed_docs":
        values["corpus"]["max_size"] = f"{size.text_bytes}B"
    else:
        kept = with_all_kept(config.shuffle, sources).keep
        values["corpus"] |= {"inputs": [str(sample)], "sources": []}
        shuffle |= {"format": "auto", "document": "line", "text_key": "text", "weights": {}}
        shuffle |= {"keep": list(kept), "keep_all": False}
    shuffle |= {"shards": shards, "shard_size": "256MB"}


def _set_training(train: dict[str, Any], config: RunConfig, batches: TrialBatches) -> None:
    if batches.is_reduced:
        train |= {"global_batch_size": batches.rows, "micro_batch_size": batches.micro_rows}
        for phase in train["phases"]:
            phase |= {"global_batch_size": batches.rows, "micro_batch_size": batches.micro_rows}
    train["logging"] |= {
        "log_every": batches.steps_per_line,
        "validate_every": config.train.steps,
        "loggers": [],
        "profile": None,
    }
    train["checkpoints"] |= {"mirror": None}
