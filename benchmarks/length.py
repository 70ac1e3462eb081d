"""Train an encoder on short texts and let it read longer ones: plain, with the log-n scale, with a window.

The published pair is kexue.fm/archives/8823: accuracies of a model that learned rows of 64 tokens, on rows of 64 to
1,024. Here tokens are bytes, so that minutes on one core show something, and every model sees the same rows. Losses and
accuracies only; nothing is timed.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.machine import describe_machine
from kexue_train.model import RoFormerV2Config, RoFormerV2ForMaskedLM
from kexue_train.optim.build import build_optimizer, set_learning_rate
from kexue_train.optim.config import OptimizerConfig
from kexue_train.optim.schedule import WarmupCosine

_Bytes = npt.NDArray[np.uint8]
_MASK, _VOCAB, _IGNORED = 256, 257, -100
_MASKED_SHARE = 0.15
_LOG_N = 512
"""Length at which the scale is 1, as published."""


@dataclass(frozen=True)
class Task:
    """What is trained, and where it is tried."""

    train_length: int = 64
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    rows: int = 32
    steps: int = 1500
    lr: float = 3e-3
    layers: int = 2
    hidden: int = 128
    heldout_bytes: int = 32_768
    """Of each length."""


@dataclass(frozen=True)
class Reading:
    """How a trained model reads: options of its configuration."""

    name: str
    trained_with_log_n: bool
    log_n: bool
    window: bool

    def set_up(self, model: RoFormerV2ForMaskedLM, task: Task) -> None:
        """Change the options of ``model``; the weights stay."""
        model.config.log_n_scale = _LOG_N if self.log_n else None
        model.config.attention_window = task.train_length if self.window else None


READINGS = (
    Reading("plain", False, False, False),
    Reading("plain, read with a window", False, False, True),
    Reading("plain, read with log n", False, True, False),
    Reading("trained with log n", True, True, False),
    Reading("trained with log n, read with a window", True, True, True),
)


def read_bytes(path: Path) -> _Bytes:
    """All texts of a .jsonl.gz one after the other, a line feed between them."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return np.frombuffer("\n".join(json.loads(line)["text"] for line in lines).encode(), np.uint8)


def masked(ids: npt.NDArray[np.int64], generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and labels of [rows, length]; 15 % of the bytes are hidden."""
    chosen = generator.random(ids.shape) < _MASKED_SHARE
    return torch.from_numpy(np.where(chosen, _MASK, ids)), torch.from_numpy(np.where(chosen, ids, _IGNORED))


def training_rows(text: _Bytes, task: Task, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """A micro-batch for every step, from random places."""
    generator = np.random.default_rng([seed, 1])
    for _ in range(task.steps):
        starts = generator.integers(0, len(text) - task.train_length, task.rows)
        yield masked(text[starts[:, None] + np.arange(task.train_length)].astype(np.int64), generator)


def train(text: _Bytes, task: Task, seed: int, *, log_n: bool) -> RoFormerV2ForMaskedLM:
    """Return a model that has learned ``text`` in rows of ``task.train_length``."""
    torch.manual_seed(seed)
    config = RoFormerV2Config(
        vocab_size=_VOCAB, hidden_size=task.hidden, num_hidden_layers=task.layers,
        num_attention_heads=task.hidden // 32, intermediate_size=4 * task.hidden, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=max(task.lengths),
        log_n_scale=_LOG_N if log_n else None,
    )  # fmt: skip
    model = RoFormerV2ForMaskedLM(config).train()
    schedule = WarmupCosine(warmup=task.steps // 10, cosine=task.steps - task.steps // 10)
    settings = OptimizerConfig(name="adamw", lr=task.lr, schedule=schedule, accumulate="gradient")
    optimizer = build_optimizer(settings, model, accumulation_steps=1, seed=seed)
    for step, (inputs, labels) in enumerate(training_rows(text, task, seed), 1):
        set_learning_rate(optimizer, schedule.multiplier(step))
        loss = model(inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"seed {seed}, {log_n=}, step {step}: loss {loss.item():.3f}", file=sys.stderr, flush=True)
    return model.eval()


@torch.no_grad()
def score(model: RoFormerV2ForMaskedLM, text: _Bytes, length: int, task: Task) -> dict[str, float]:
    """Loss in nats and accuracy over hidden bytes of rows of ``length``."""
    rows = text[: task.heldout_bytes].reshape(-1, length).astype(np.int64)
    loss = correct = count = 0.0
    generator = np.random.default_rng(0)
    for some in np.array_split(rows, max(1, rows.size // 8192)):
        inputs, labels = masked(some, generator)
        logits, wanted = model(inputs).logits[labels >= 0], labels[labels >= 0]
        loss += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").item()
        correct += (logits.argmax(-1) == wanted).sum().item()
        count += len(wanted)
    return {"loss": loss / count, "accuracy": correct / count}


def main(
    text: Annotated[Path, typer.Argument(help=".jsonl.gz to learn from.")],
    heldout: Annotated[Path, typer.Argument(help=".jsonl.gz to read.")],
    steps: Annotated[int, typer.Option(min=10)] = Task.steps,
    seeds: Annotated[int, typer.Option(min=1)] = 2,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """Train both models with every seed and read the held-out text at every length."""
    torch.set_num_threads(1)
    task = Task(steps=steps)
    learned, read = read_bytes(text), read_bytes(heldout)
    results = []
    for seed in range(seeds):
        for log_n in (False, True):
            model = train(learned, task, seed, log_n=log_n)
            for reading in READINGS:
                if reading.trained_with_log_n == log_n:
                    reading.set_up(model, task)
                    scores = {length: score(model, read, length, task) for length in task.lengths}
                    results.append({"seed": seed, "reading": reading.name, "scores": scores})
            _write(json_path, task, results)
    Console().print(_table(task, results))


def _write(path: Path | None, task: Task, results: list[dict[str, object]]) -> None:
    if path:
        path.write_text(
            json.dumps(
                {"machine": describe_machine(path.resolve().parent), "task": asdict(task), "results": results}, indent=1
            )
        )


def _table(task: Task, results: list[dict[str, object]]) -> Table:
    table = Table("model", *(f"n={length}" for length in task.lengths), title="Accuracy % / loss, mean over seeds")
    for reading in READINGS:
        found = [result["scores"] for result in results if result["reading"] == reading.name]
        cells = []
        for length in task.lengths:
            accuracy, loss = (np.mean([scores[length][key] for scores in found]) for key in ("accuracy", "loss"))
            cells.append(f"{100 * accuracy:.2f} / {loss:.3f}")
        table.add_row(reading.name, *cells)
    return table


if __name__ == "__main__":
    typer.run(main)
