"""What a run will take, before anything runs: tasks, disk, memory, GPU memory, time.

A pure function of the configuration, the sizes of the inputs and the machine. Each stage plans for itself, from rates
that were measured; benchmarks/RESULTS.md explains them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kexue_train.corpus.formats import FORMATS
from kexue_train.corpus.inputs import Source, find_inputs
from kexue_train.corpus.mixture import find_mixture
from kexue_train.corpus.readers import read_records
from kexue_train.corpus.records import ReadOptions
from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.runtime import format_seconds, format_size, parse_size
from kexue_train.foundation.stage import SLOTS_PER_TEXT_BYTE, Outlook, StagePlan
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.stages import stages_of
from kexue_train.samples.missing_pairs import describe_missing_pairs
from kexue_train.shuffle.by_source import order_sources
from kexue_train.shuffle.plan import estimate_text_bytes
from kexue_train.shuffle.shuffle_corpus import planned_shards
from kexue_train.train.communication import Communication
from kexue_train.train.plan import (
    cpu_flops_per_second,
    flops_per_token,
    plan_communication,
    planned_parameters,
    rule_of,
)

_JSON_PER_TEXT_BYTE = 1.034
_UNKNOWN = "?"
_LOOKED_AT_BYTES, _LOOKED_AT_FILES = 1 << 16, 8


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the run will be."""

    cpus: int
    memory_bytes: int
    """Free."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The plan of each stage by its name, in data order, and their sums."""

    text_bytes: int
    stages: Mapping[str, StagePlan]
    communication: Sequence[Communication] = ()
    """Of a step of training on GPUs, by their number and network."""

    @property
    def disk_bytes(self) -> int:
        """What the run leaves, all stages together."""
        return sum(stage.disk_bytes for stage in self.stages.values())

    @property
    def peak_disk_bytes(self) -> int:
        """The most that lies on disk at once, inputs not counted."""
        left = peak = 0
        for stage in self.stages.values():
            left += stage.disk_bytes
            peak = max(peak, left + stage.scratch_bytes)
        return peak

    @property
    def memory_bytes(self) -> int:
        """The memory of the stage that takes most."""
        return max(stage.memory_bytes or 0 for stage in self.stages.values())

    @property
    def seconds(self) -> float | None:
        """The time of all stages; None if that of one is not known."""
        known = [stage.seconds for stage in self.stages.values() if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None


def plan_run(
    config: RunConfig,
    sources: Sequence[Source],
    machine: Machine,
    *,
    tokens_per_second: float | None = None,
    slots_per_text_byte: float = SLOTS_PER_TEXT_BYTE,
) -> RunPlan:
    """Return what ``config`` will take.

    Args:
        config: The run.
        sources: Its inputs (``find_sources``); not looked at where the corpus is made.
        machine: Where it will run.
        tokens_per_second: Of training, all workers together, if it was measured.
        slots_per_text_byte: Token slots of the sample rows for a byte of text, if they were measured.
    """
    if config.corpus.source == "installed_docs":
        sources = [text_source(int(parse_size(config.corpus.max_size) / _JSON_PER_TEXT_BYTE))]
    width = config.model.hidden_size
    outlook = Outlook(
        sources=sources,
        text_bytes=estimate_text_bytes(sources),
        cpus=machine.cpus,
        memory_bytes=machine.memory_bytes,
        parameters=planned_parameters(rule_of(config), width),
        flops_per_token=flops_per_token(config),
        flops_per_second=machine.cpus * cpu_flops_per_second(width),
        tokens_per_second=tokens_per_second,
        slots_per_text_byte=slots_per_text_byte,
        # The first shard holds them all.
        heldout_fraction=min(config.samples.heldout_fraction, 1 / planned_shards(config.shuffle, sources)),
    )
    return RunPlan(
        outlook.text_bytes,
        {stage.name: stage.plan(config, outlook) for stage in stages_of(config)},
        plan_communication(config, outlook.parameters),
    )


def find_sources(config: RunConfig, text_size: str | None = None) -> list[Source]:
    """Return the inputs of a run as they are now, or so much text in their place; none where it makes its corpus.

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
    if sources := order_sources(shuffle, config.corpus.sources):
        return find_mixture(sources, format=shuffle.format, document=shuffle.document)
    return find_inputs(config.corpus.inputs, format=shuffle.format, document=shuffle.document, weights=shuffle.weights)


def foresee_missing_pairs(config: RunConfig, sources: Sequence[Source]) -> str | None:
    """Return a warning if the first documents of some inputs have one sentence each, though the samples need pairs.

    Raises:
        CorpusError: If an input cannot be read.
    """
    if not config.samples.nsp:
        return None
    shuffle = config.shuffle
    options = ReadOptions(text_keys=shuffle.text_keys, document=shuffle.document, block_bytes=_LOOKED_AT_BYTES)
    # A first block of another format may be a whole row group.
    local = [source for source in sources if FORMATS[source.format].is_cut_by_bytes and Path(source.path).is_file()]
    chosen = local[:: math.ceil(len(local) / _LOOKED_AT_FILES) or 1]
    blocks = (block for source in chosen for block in islice(read_records(source, options), 1))
    return describe_missing_pairs(text for block in blocks for text in block.texts.to_pylist())


def text_source(text_bytes: int) -> Source:
    """Return a source that stands for so much text that is not there: JSON Lines, which can be cut anywhere."""
    return Source("text", "jsonl", None, text_bytes, 0, text_bytes)


def print_plan(plan: RunPlan, console: Console) -> None:
    """Print one line per stage, a line of sums, where the estimates come from, and what GPUs would tell each other."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("stage")
    for title in ("tasks", "disk", "peak scratch", "memory", "each GPU", "time"):
        table.add_column(title, justify="right")
    for name, stage in plan.stages.items():
        table.add_row(
            name,
            f"{stage.tasks:,}",
            _or(format_size, stage.disk_bytes or None, ""),
            _or(format_size, stage.scratch_bytes or None, ""),
            _or(format_size, stage.memory_bytes, ""),
            _or(format_size, stage.device_bytes, ""),
            _or(format_seconds, stage.seconds, _UNKNOWN),
        )
    totals = (format_size(plan.disk_bytes), "", format_size(plan.memory_bytes), "", _or(format_seconds, plan.seconds))
    table.add_row("all", "", *totals, style="bold")
    console.print(table)
    console.print(
        f"\nAt the peak {format_size(plan.peak_disk_bytes)} of disk, for {format_size(plan.text_bytes)} of text."
    )
    console.print("Estimates, from what benchmarks/RESULTS.md measured:")
    for name, stage in plan.stages.items():
        console.print(f"  {name}: {escape(stage.basis)}", highlight=False)
    if plan.communication:
        _print_communication(plan.communication, console)


def _print_communication(planned: Sequence[Communication], console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("GPUs", justify="right")
    table.add_column("between machines of 8")
    for title in ("computes", "each sends", "takes", "waits", "share of the step"):
        table.add_column(title, justify="right")
    for entry in planned:
        table.add_row(
            str(entry.gpus),
            entry.network,
            *(f"{1000 * entry.step_seconds:,.1f} ms", format_size(round(entry.sent_bytes))),
            *(f"{1000 * seconds:,.1f} ms" for seconds in (entry.seconds, entry.waited_seconds)),
            f"{entry.waited_seconds / (entry.waited_seconds + entry.step_seconds):.0%}",
        )
    console.print("\nWhat the GPUs tell each other in a step, by A100s at 45 % of their peak; no network was measured:")
    console.print(table)


def plan_values(plan: RunPlan) -> dict[str, Any]:
    """Return bytes and seconds as plain values; null for what is not known."""
    sums = {name: getattr(plan, name) for name in ("disk_bytes", "peak_disk_bytes", "memory_bytes", "seconds")}
    stages = [{"stage": name} | asdict(stage) for name, stage in plan.stages.items()]
    communication = [asdict(entry) for entry in plan.communication]
    return {"text_bytes": plan.text_bytes, "stages": stages, "communication": communication} | sums


def _or(show: Callable[[float], str], value: float | None, missing: str = _UNKNOWN) -> str:
    return missing if value is None else show(value)
