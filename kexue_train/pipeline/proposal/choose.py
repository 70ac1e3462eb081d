"""Model, vocabulary, rows and steps for some data, a machine and a number of hours, by rules stated with each choice.

The largest model of the ladder is taken whose training within the hours shows it ``TOKENS_PER_WEIGHT`` tokens for each
weight of its layers, the proportion at which Hoffmann et al. (https://arxiv.org/abs/2203.15556) found compute best
spent. Text is read at most ``MOST_EPOCHS`` times, up to which repeated text was found to be worth almost as much as new
text (Muennighoff et al., https://arxiv.org/abs/2305.16264). Both were found on decoders: they are where to begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.runtime import format_size
from kexue_train.foundation.stage import SLOTS_PER_TEXT_BYTE
from kexue_train.pipeline.plan import Machine, RunPlan, plan_run, text_source
from kexue_train.pipeline.proposal.survey import INSTALLED_DOCS_SIZE, Data, Hardware
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.train.plan import cpu_flops_per_second, cpu_tokens_per_second, gpu_tokens_per_second

TOKENS_PER_WEIGHT, MOST_EPOCHS = 20, 4
_FEWEST_TEXT_BYTES = 1_000_000
_TRAINING_SHARE, _VALIDATION_SHARE = 0.82, 0.04
"""Of the hours; the rest is for the other stages and checkpoints."""
_USUAL_STEPS, _FEWEST_STEPS = 5_000, 200
_FEWEST_ROWS, _MOST_ROWS = 16, 512
_MANY_STEPS = 50_000
_FEW_STEPS = 2_500
"""With so many the momentum of β 0.965 would be renewed less than 90 times, which costs loss (docs/tiger.md)."""
_SHORT, _LONG = 128, 512
_MOST_CPU_WORKERS = 8
_HELDOUT_BYTES, _FEWEST_HELDOUT_BYTES, _MOST_VALIDATIONS = 1_000_000, 300_000, 10
_FEW_PAIRS, _MANY_COPIES = 0.05, 0.1
_SMALLEST_VOCABULARY, _WORDS_GROWTH = 300, 0.15
"""As a power of the text; 0.17 to 0.5 were found in Chinese laws and a Chinese Wikipedia, from 0.25 to 20 MB."""


class Size(NamedTuple):
    """An encoder: heads are 64 wide, the inner layer four times as wide as the outer."""

    layers: int
    width: int

    @property
    def body(self) -> int:
        """Weights of the layers, without the word table."""
        return 12 * self.layers * self.width**2


LADDER = (Size(3, 192), Size(3, 256), Size(4, 320), Size(6, 384), Size(8, 512), Size(12, 768), Size(24, 1024))


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for."""

    data: Data
    hardware: Hardware
    name: str
    """Of the run."""
    hours: float
    """For the whole run."""
    text_key: str = "text"
    """Key or column of the text."""

    @property
    def num_workers(self) -> int:
        """One for each GPU or CPU, a power of two."""
        return _power_of_two(len(self.hardware.gpus) or min(self.hardware.cpus, _MOST_CPU_WORKERS))

    @property
    def seq_len(self) -> int:
        """Slots of a row."""
        is_long = self.hardware.gpus and self.data.mean_bytes * SLOTS_PER_TEXT_BYTE > _SHORT
        return _LONG if is_long else _SHORT

    @property
    def tokens_there(self) -> float:
        """In one pass over the text, copies counted once."""
        return self.data.text_bytes * (1 - self.data.repeated_share) * SLOTS_PER_TEXT_BYTE


@dataclass(frozen=True, slots=True)
class Proposal:
    """A configuration as plain values by section, why they were chosen, and what the run will take."""

    values: dict[str, Any]
    reasons: dict[str, str]
    """Dotted key -> one line."""
    plan: RunPlan
    tokens_per_weight: float
    passes: float
    """Over the text."""


def propose(request: Request) -> Proposal:
    """Return the configuration to begin with.

    Raises:
        ConfigError: If there is too little text to learn from, or too little memory for any model.
    """
    if request.data.text_bytes < _FEWEST_TEXT_BYTES:
        raise ConfigError(
            f"about {format_size(request.data.text_bytes)} of text is too little to pretrain on: at least "
            f"{format_size(_FEWEST_TEXT_BYTES)} is needed, and some 100 MB for an encoder that learns more than words"
        )
    proposals = [_of_size(size, request) for size in LADDER]
    free = request.hardware.memory_bytes
    fitting = [proposal for proposal in proposals if proposal.plan.memory_bytes <= free]
    if not fitting:
        raise ConfigError(
            f"{format_size(free)} of memory is free, and the smallest model needs "
            f"{format_size(proposals[0].plan.memory_bytes)}: end other programs, or take a larger machine"
        )
    return next((p for p in reversed(fitting) if p.tokens_per_weight >= TOKENS_PER_WEIGHT), fitting[0])


def find_warnings(request: Request, proposal: Proposal) -> Iterator[str]:
    """Yield what the user should know before the run starts."""
    needed, free = proposal.plan.peak_disk_bytes, request.hardware.disk_bytes
    if needed > free:
        yield (
            f"the run needs {format_size(needed)} of disk at its peak, and {format_size(free)} are free: take a folder "
            "on a larger disk (--run-dir)"
        )
    if proposal.passes > MOST_EPOCHS:
        yield f"the text is read {proposal.passes:.0f} times, which teaches little after {MOST_EPOCHS}: add text"
    if request.data.repeated_share > _MANY_COPIES:
        yield f"{request.data.repeated_share:.0%} of the documents looked at are copies, which shuffle.dedup leaves out"


def _of_size(size: Size, request: Request) -> Proposal:
    values, reasons = _text_values(request)
    values["model"], reasons["model.hidden_dropout_prob"] = _model_values(size, request)
    # The pace does not depend on the steps, so it is asked of a configuration with some.
    pace = _pace(RunConfig.parse(values | _training_values(request, 1000, _FEWEST_ROWS), where="the proposal"))
    tokens = min(pace * request.hours * 3600 * _TRAINING_SHARE, MOST_EPOCHS * request.tokens_there)
    in_rows = tokens / request.seq_len
    rows = min(max(_power_of_two(in_rows / _USUAL_STEPS), _FEWEST_ROWS, request.num_workers), _MOST_ROWS)
    steps = max(_two_digits(in_rows / rows), _FEWEST_STEPS)
    heldout, validations = _validation(tokens)
    values["samples"]["heldout_fraction"] = float(f"{min(heldout / request.data.text_bytes, 0.02):.1g}")
    tokens, values = float(steps * rows * request.seq_len), values | _training_values(request, steps, rows)
    values["train"]["logging"]["validate_every"] = -(-steps // validations)
    passes, per_weight = tokens / request.tokens_there, tokens / size.body
    reasons |= _training_reasons(request, steps, pace)
    reasons["train.steps"] = f"{tokens / 1e6:,.1f} M tokens, {passes:.2g} times the text; {reasons['train.steps']}"
    reasons["model.num_hidden_layers"] = (
        f"{size.body / 1e6:,.1f} M weights in the layers, {per_weight:,.0f} tokens for each ("
        + ("the largest" if size == LADDER[-1] else f"a larger one needs {TOKENS_PER_WEIGHT}")
        + ")"
    )
    sources = [text_source(request.data.text_bytes)] if request.data.inputs else []
    machine = Machine(request.hardware.cpus, request.hardware.memory_bytes)
    config = RunConfig.parse(values, where="the proposal")
    return Proposal(values, reasons, plan_run(config, sources, machine, tokens_per_second=pace), per_weight, passes)


def _text_values(request: Request) -> tuple[dict[str, Any], dict[str, str]]:
    """The sections before the model, and the reasons."""
    data, reasons = request.data, {}
    values: dict[str, Any] = {
        "name": request.name,
        "seed": 0,
        "corpus": {"source": "installed_docs", "max_size": INSTALLED_DOCS_SIZE},
        "shuffle": {"dedup": "exact", "on_bad_record": "skip"},
        "tokenizer": {"vocab_size": _vocabulary(data)},
        "samples": {"seq_len": request.seq_len},
    }
    if data.inputs:
        values["corpus"] = {"source": "files", "inputs": list(data.inputs)}
        reasons["shuffle.dedup"] = f"{data.repeated_share:.1%} of the documents looked at are copies"
        reasons["corpus.inputs"] = "relative to this file"
    if request.text_key != "text":
        values["shuffle"]["text_key"] = request.text_key
    if data.pair_share < _FEW_PAIRS:
        values["samples"]["nsp"] = False
        reasons["samples.nsp"] = f"{data.pair_share:.0%} of the documents have two sentences: too few pairs"
    reasons["shuffle.on_bad_record"] = "bad records are counted by reason and kept in shards/rejected"
    reasons["tokenizer.vocab_size"] = f"for {format_size(data.text_bytes)}, {data.chinese_share:.0%} of letters Chinese"
    reasons["samples.seq_len"] = f"documents of {data.mean_bytes:,.0f} bytes on average" + (
        "" if request.hardware.gpus else "; on a CPU short rows cost less"
    )
    reasons["samples.heldout_fraction"] = "at most 1 MB and 2 % of the text, scored as often as takes little time"
    return values, reasons


def _validation(tokens: float) -> tuple[float, int]:
    """Return how much text to hold out, and how often to score it, in about ``_VALIDATION_SHARE`` of the hours.

    Scoring is a forward pass, a third of training. Less held-out text than 300 kB says little.
    """
    text = tokens / _TRAINING_SHARE * _VALIDATION_SHARE * 3 / SLOTS_PER_TEXT_BYTE
    validations = min(max(int(text / _HELDOUT_BYTES), 1), _MOST_VALIDATIONS)
    return min(max(text, _FEWEST_HELDOUT_BYTES), _HELDOUT_BYTES), validations


def _vocabulary(data: Data) -> int:
    """The demo's up to 200 MB of text, then the released one; for much text of other scripts BERT's.

    A vocabulary has no more pieces than its text yields, and Chinese text yields little more than its characters.
    """
    if data.text_bytes < 200e6:
        return max(min(8192, _expected_words(data) // 100 * 100), _SMALLEST_VOCABULARY)
    return 12_032 if data.chinese_share > 0.3 or data.text_bytes < 2e9 else 30_592


def _expected_words(data: Data) -> int:
    """How many different words the whole text has at least, from those of its beginnings."""
    looked_at = data.num_looked_at * data.mean_bytes
    growth: float = max(data.text_bytes / max(looked_at, 1), 1) ** _WORDS_GROWTH
    return round(data.num_words * growth)


def _model_values(size: Size, request: Request) -> tuple[dict[str, Any], str]:
    """The section, and why it has dropout or none."""
    dropout, reason = (0.1, "the released value") if request.hardware.gpus else (0.0, "on a CPU it costs time")
    values = {
        "num_hidden_layers": size.layers,
        "hidden_size": size.width,
        "num_attention_heads": size.width // 64,
        "intermediate_size": 4 * size.width,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": request.seq_len,
    }
    return values, reason


def _training_values(request: Request, steps: int, rows: int) -> dict[str, Any]:
    every, on_gpu = max(steps // 10, 50), bool(request.hardware.gpus)
    train: dict[str, Any] = {
        "steps": steps,
        "global_batch_size": rows,
        "micro_batch_size": "auto" if on_gpu else min(8, rows // request.num_workers),
        "num_workers": request.num_workers,
        "objective": {"nsp_weight": 0.5},
        "workers": {"launcher": "torchrun"},
        "compute": {"recompute": "none"} | ({"compile": True} if on_gpu else {}),
        "logging": {"log_every": 20, "validate_every": every},
        "checkpoints": {"every": every},
    }
    if request.data.pair_share < _FEW_PAIRS:
        del train["objective"]
    if on_gpu:
        train |= {"precision": "bf16", "device": "cuda"}
    else:
        train["precision"] = "auto"
    optimizer: dict[str, Any] = {"lr": 1.76e-3 if steps > _MANY_STEPS else 5.0e-3}
    if steps <= _FEW_STEPS:
        optimizer = {"lr": 8.0e-3, "beta": 0.945}
    optimizer["schedule"] = {max(steps // 25, 1): 1.0, steps: 0.05}
    return {"optimizer": optimizer, "train": train}


def _training_reasons(request: Request, steps: int, pace: float) -> dict[str, str]:
    is_short = pace * request.hours * 3600 * _TRAINING_SHARE < MOST_EPOCHS * request.tokens_there
    time = f"{request.hours:g} h at {pace:,.0f} tokens/s" + (" of A100s, not measured" if request.hardware.gpus else "")
    reasons = {
        "train.steps": time if is_short else f"{MOST_EPOCHS} passes are as many as pay",
        "train.global_batch_size": f"rows; for about {_USUAL_STEPS:,} steps, but {_FEWEST_ROWS} to {_MOST_ROWS}",
        "train.precision": "GPUs multiply it fastest" if request.hardware.gpus else "bf16 where it is faster here",
        "optimizer.lr": "the released value" if steps > _MANY_STEPS else "several times the usual, as steps are few",
        "optimizer.schedule": "warm-up in 4 % of the steps, then down to 5 %",
    }
    if steps <= _FEW_STEPS:
        reasons["optimizer.beta"] = "a shorter memory than usual, as steps are few"
    if request.hardware.gpus:
        reasons["train.micro_batch_size"] = "the most rows that fit the GPU and make it faster"
    return reasons


def _pace(config: RunConfig) -> float:
    """Tokens per second of all workers."""
    if config.train.device == "cuda":
        return gpu_tokens_per_second(config)
    return cpu_tokens_per_second(config, config.train.num_workers * cpu_flops_per_second(config.model.hidden_size))


def _power_of_two(number: float) -> int:
    """Return the largest one that is at most ``number``, at least 1."""
    return 1 << (int(max(number, 1)).bit_length() - 1)


def _two_digits(number: float) -> int:
    """Return the first two digits of it and zeros, so that the file is easy to read."""
    unit: int = 10 ** max(len(str(int(number))) - 2, 0)
    return int(number) // unit * unit
