"""The encoder beside transformers' BERT and RoFormer, and what recomputation saves; ``--help`` tells the options.

One process; forward, losses and backward, no optimizer. All encoders get the same documents in the same order: ours
as packed rows, the others one document per row, padded to the longest. Only real tokens count. In every round each
takes one micro-batch, another one first each time; a round before the first warms up. Figures are medians over rounds.
"""

from __future__ import annotations

import datetime
import json
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.encoder_cost import Allocated, allocated, seconds
from benchmarks.encoder_data import MicroBatch, made_up_rows, micro_batches, rows_of_samples
from benchmarks.encoder_models import ENCODERS, OURS, SIZES, Encoder, Size, make
from benchmarks.machine import describe_machine
from kexue_train.batches.dataset import SampleDataset
from kexue_train.foundation.errors import ConfigError, KexueError
from kexue_train.model.config import ModelConfig
from kexue_train.model.recompute import compile_layers, enable_recompute
from kexue_train.train.monitor.flops import flop_rule, measured_rate

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
_MODES = ("none", "selective", "full")

SizeName = Annotated[str, typer.Option("--size", help="tiny, small, base or large.")]
Samples = Annotated[Path | None, typer.Option(help="A folder of sample shards; by default made-up tokens.")]
SeqLen = Annotated[int, typer.Option(min=16, help="Slots of a made-up row.")]
Vocab = Annotated[int, typer.Option(min=10, help="Words of made-up rows.")]
Rows = Annotated[int, typer.Option(min=1, help="Rows of a micro-batch.")]
Rounds = Annotated[int, typer.Option(min=1, help="Measured rounds.")]
Precision = Annotated[str, typer.Option(help="fp32 or bf16 (autocast), or both with a comma.")]
Dropout = Annotated[float, typer.Option(min=0, max=0.9, help="Of states and attention probabilities.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile our layers.")]
JsonPath = Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")]


@app.command()
def compare(
    size: SizeName = "base", samples: Samples = None, seq_len: SeqLen = 512, vocab: Vocab = 12000, rows: Rows = 4,
    rounds: Rounds = 5, precision: Precision = "fp32,bf16", dropout: Dropout = 0.1, device: Device = "auto",
    compile_ours: Compile = False, json_path: JsonPath = None,
    encoders: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(e.name for e in ENCODERS),
) -> None:  # fmt: skip
    """Tokens per second and memory of a training step, beside others of the same size."""
    chosen, where = choose(encoders, {encoder.name: encoder for encoder in ENCODERS}), find_device(device)
    shape, data = choose(size, SIZES)[0], load(samples, rows * (rounds + 1), seq_len, vocab)
    batches = list(micro_batches(data.rows, rows, data.seq_len, where))
    results = []
    for name in (item.strip() for item in precision.split(",")):
        dtype = choose(name, _PRECISIONS)[0]
        models = {e: make(e, shape, data.vocab, data.seq_len, dropout, where) for e in chosen}
        if compile_ours and OURS in models:
            compile_layers(models[OURS].roformer)
        steps = {encoder: step_of(encoder, model, dtype, where) for encoder, model in models.items()}
        times = interleaved(steps, batches, where)
        rate = measured_rate(dtype or torch.float32, where)
        for encoder, step in steps.items():
            memory = allocated(lambda step=step: step(batches[0]), where)
            results.append(_result(encoder, name, shape, data.vocab, batches[1:], times[encoder], memory, rate))
    report("Training steps", _compare_table(results), facts(where) | {"results": results}, json_path)


@app.command()
def recompute(
    size: SizeName = "base", samples: Samples = None, seq_len: SeqLen = 512, vocab: Vocab = 12000, rows: Rows = 2,
    rounds: Rounds = 5, precision: Precision = "fp32", dropout: Dropout = 0.1, device: Device = "auto",
    compile_ours: Compile = False, json_path: JsonPath = None,
    layers: Annotated[str, typer.Option(help="Numbers of layers.")] = "6,12,24",
) -> None:  # fmt: skip
    """Activation memory and time without, with selective and with full recomputation."""
    where, dtype = find_device(device), choose(precision, _PRECISIONS)[0]
    width, data = choose(size, SIZES)[0].hidden, load(samples, rows * (rounds + 1), seq_len, vocab)
    batches = list(micro_batches(data.rows, rows, data.seq_len, where))
    results: list[dict[str, Any]] = []
    for depth in map(int, layers.split(",")):
        model = make(OURS, Size(depth, width), data.vocab, data.seq_len, dropout, where)
        plain = step_of(OURS, model, dtype, where)
        steps = {mode: _with_mode(model, mode, plain, compile_ours) for mode in _MODES}
        times = interleaved(steps, batches, where)
        for mode, step in steps.items():
            memory = allocated(lambda step=step: step(batches[0]), where)
            forward = _forward_of(model, mode, dtype, where)
            kept = allocated(lambda forward=forward: forward(batches[0]), where).left
            results.append({"layers": depth, "mode": mode, "peak": memory.peak, "kept": kept, "seconds": times[mode]})
    report("Recomputation", _recompute_table(results), facts(where) | {"results": results}, json_path)


@dataclass(frozen=True, slots=True)
class Data:
    """Rows of documents and what they are made of."""

    rows: list[Any]
    seq_len: int
    vocab: int


Step = Callable[[MicroBatch], Any]


def load(samples: Path | None, num_rows: int, seq_len: int, vocab: int) -> Data:
    """Rows of the folder, or made-up ones."""
    if samples is None:
        return Data(made_up_rows(num_rows, seq_len=seq_len, vocab_size=vocab), seq_len, vocab)
    dataset = SampleDataset(samples)
    return Data(rows_of_samples(samples, num_rows), dataset.seq_len, dataset.vocab_size)


def step_of(encoder: Encoder, model: nn.Module, dtype: torch.dtype | None, device: torch.device) -> Step:
    """Forward, loss and backward; gradients add up in what is allocated for them."""

    def step(batch: MicroBatch) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = encoder.loss(model, batch)
        loss.backward()

    return step


def _set_mode(model: nn.Module, mode: str) -> None:
    for layer in model.roformer.encoder.layer:
        layer.gradient_checkpointing = False
    if mode != "none":
        enable_recompute(model.roformer, mode)


def _with_mode(model: nn.Module, mode: str, step: Step, compiled: bool) -> Step:
    """``step`` after setting the mode; the compiler keeps a program for each."""

    def run(batch: MicroBatch) -> Any:
        _set_mode(model, mode)
        if compiled:
            compile_layers(model.roformer)
        return step(batch)

    return run


def _forward_of(model: nn.Module, mode: str, dtype: torch.dtype | None, device: torch.device) -> Step:
    def forward(batch: MicroBatch) -> torch.Tensor:
        _set_mode(model, mode)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            return OURS.loss(model, batch)

    return forward


def interleaved(steps: dict[Any, Step], batches: Sequence[MicroBatch], device: torch.device) -> dict[Any, list[float]]:
    """Seconds of every step on every micro-batch but the first, which warms up; each round begins with another."""
    names, times = list(steps), {name: [] for name in steps}
    console = Console(stderr=True, highlight=False)
    for number, batch in enumerate(batches):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = seconds(lambda step=steps[name], batch=batch: step(batch), device)
            if number:
                times[name].append(taken)
            console.print(f"round {number} {getattr(name, 'name', name)}: {taken:.2f} s")
    return times


def _result(
    encoder: Encoder, precision: str, size: Size, vocab: int, batches: Sequence[MicroBatch], times: list[float],
    memory: Allocated, product_rate: float,
) -> dict[str, Any]:  # fmt: skip
    rates = [batch.real_tokens / taken for batch, taken in zip(batches, times, strict=True)]
    lengths = [length for batch in batches for length in batch.lengths]
    shape = ModelConfig(
        num_hidden_layers=size.layers, hidden_size=size.hidden, num_attention_heads=size.hidden // 64,
        intermediate_size=size.intermediate,
    )  # fmt: skip
    flops = flop_rule(shape, vocab).per_token_of(
        mean_length=sum(length**2 for length in lengths) / sum(lengths),
        predicted_share=sum(batch.num_predictions for batch in batches) / sum(lengths),
    )
    slots = batches[0].packed["input_ids"] if encoder is OURS else batches[0].padded["input_ids"]
    return {
        "precision": precision, "encoder": encoder.title, "tokens_per_second": rates, "peak_bytes": memory.peak,
        "slots_of_a_step": slots.numel(), "real_tokens_of_a_step": batches[0].real_tokens, "flops_per_token": flops,
        "flops_per_second": flops * statistics.median(rates), "product_flops_per_second": product_rate,
    }  # fmt: skip


def _compare_table(results: list[dict[str, Any]]) -> Table:
    table = Table("precision", "encoder", "real tokens/s", "ours / it", "peak memory", "TFLOP/s", "of a large product")
    ours = {r["precision"]: r["tokens_per_second"] for r in results if r["encoder"] == OURS.title}
    for r in results:
        base = ours.get(r["precision"])
        ratios = [a / b for a, b in zip(base, r["tokens_per_second"], strict=True)] if base else []
        table.add_row(
            r["precision"], r["encoder"], f"{statistics.median(r['tokens_per_second']):,.0f}",
            f"{statistics.median(ratios):.2f}" if ratios else "", f"{r['peak_bytes'] / 1e6:,.0f} MB",
            f"{r['flops_per_second'] / 1e12:.3f}", f"{r['flops_per_second'] / r['product_flops_per_second']:.0%}",
        )  # fmt: skip
    return table


def _recompute_table(results: list[dict[str, Any]]) -> Table:
    table = Table("layers", "recompute", "kept after forward", "peak", "peak, times less", "seconds", "time ratio")
    for r in results:
        plain = next(p for p in results if p["layers"] == r["layers"] and p["mode"] == "none")
        ratio = statistics.median(a / b for a, b in zip(r["seconds"], plain["seconds"], strict=True))
        table.add_row(
            str(r["layers"]), r["mode"], f"{r['kept'] / 1e6:,.0f} MB", f"{r['peak'] / 1e6:,.0f} MB",
            f"{plain['peak'] / r['peak']:.2f}", f"{statistics.median(r['seconds']):.2f}", f"{ratio:.2f}",
        )  # fmt: skip
    return table


def facts(device: torch.device) -> dict[str, Any]:
    """What the figures depend on: date, command line, machine, versions."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "benchmarks/encoder.py", *sys.argv[1:]]),
        "machine": describe_machine(Path()),
        "device": f"{device.type}, {name}",
        "torch": torch.__version__,
    }


def report(title: str, table: Table, raw: dict[str, Any], json_path: Path | None) -> None:
    """The table on standard output, everything in the file."""
    table.title = f"{title} on {raw['device']}, torch {raw['torch']}, {raw['date']}"
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def find_device(name: str) -> torch.device:
    """``auto``: CUDA if it is there."""
    kinds = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "cpu": "cpu", "cuda": "cuda"}
    return torch.device(choose(name, kinds)[0])


def choose(names: str, known: dict[str, Any]) -> list[Any]:
    """The values of ``known`` that ``names`` lists, separated by commas.

    Raises:
        ConfigError: If a name is not known.
    """
    chosen = [name.strip() for name in names.split(",")]
    if unknown := [name for name in chosen if name not in known]:
        raise ConfigError(f"{unknown[0]!r} is not known; choose from {', '.join(known)}")
    return [known[name] for name in chosen]


if __name__ == "__main__":
    try:
        app()
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
