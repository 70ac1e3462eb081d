"""The speed of evaluation beside a bare forward loop over the same tokens; ``--help`` tells the options.

One process, random order of the contestants in turn: in every round each answers the same questions, another one first
each time; a round before the first warms up. Figures are medians over rounds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import torch
import typer
from rich.table import Table

if not __package__:  # run as a script: the repository's root takes the place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.encoder import facts, report
from benchmarks.encoder_cost import seconds
from kexue_train.downstream.evaluate.sentence_vectors.whitening import Moments, Whitening
from kexue_train.downstream.evaluate.zero_shot.evaluate_tasks import TaskData
from kexue_train.downstream.evaluate.zero_shot.prompt_scores import score_next_sentences
from kexue_train.downstream.evaluate.zero_shot.questions import Questions, next_sentence_questions
from kexue_train.downstream.evaluate.zero_shot.task import ZeroShotTask, load_zero_shot_tasks
from kexue_train.downstream.load_model import LoadedHead, load_next_sentence_model
from kexue_train.foundation.errors import KexueError
from kexue_train.foundation.runtime import format_size

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
_PIECE = 8192
OURS, BARE, USUAL = "ours", "bare forward, the same batches", "32 pairs in the file's order, padded"


class Recorder:
    """A model that keeps what it is given."""

    def __init__(self, model: Any) -> None:
        self.model, self.batches = model, []

    def __call__(self, **inputs: torch.Tensor) -> Any:
        """The model's answer."""
        self.batches.append(inputs)
        return self.model(**inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


@app.callback()
def _evaluate() -> None:
    """Commands, of which there may be more."""


@app.command("zero-shot")
def zero_shot(
    model: Annotated[Path, typer.Argument(help="Exported model folder.")],
    data: Annotated[Path, typer.Argument(help="Folder with the tasks' data.")],
    task: Annotated[str, typer.Option(help="A FewCLUE task, or a YAML file with one of your own.")] = "tnews",
    records: Annotated[int, typer.Option(min=1, help="At most so many records.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")] = None,
) -> None:
    """Next-sentence scores of one task, tokenization and sorting included."""
    loaded, [(name, chosen)] = load_next_sentence_model(model), load_zero_shot_tasks([task]).items()
    test = TaskData.read(chosen, data)
    questions = next_sentence_questions(chosen, test.records[:records], test.labels)
    contestants, tokens = make_contestants(loaded, chosen, questions)
    times = in_turn(contestants, rounds, loaded.device)
    table = Table("what", "seconds", "real tokens/s", "share of bare forward")
    for title, taken in times.items():
        shares = [bare / own for bare, own in zip(times[BARE], taken, strict=True)]
        median = statistics.median(taken)
        table.add_row(title, f"{median:.2f}", f"{tokens / median:,.0f}", f"{statistics.median(shares):.2f}")
    raw = facts(loaded.device) | {"task": name, "pairs": int((questions.prompt_of >= 0).sum()), "tokens": tokens}
    report(f"{name}, {len(questions.texts):,} records", table, raw | {"seconds": times}, json_path)


@app.command()
def whitening(
    vectors: Annotated[int, typer.Option(min=2, help="How many.")] = 1_000_000,
    size: Annotated[int, typer.Option(min=1, help="Numbers of each.")] = 768,
    json_path: Annotated[Path | None, typer.Option("--json", help="File for all raw figures.")] = None,
) -> None:
    """Mean, covariance and whitening of fp32 vectors that come in pieces of 8,192, without the time of making them."""
    random = np.random.default_rng(0)
    scales = np.geomspace(0.01, 10, size, dtype=np.float32)
    taken, most, moments, process = 0.0, 0, None, psutil.Process()
    before = process.memory_info().rss
    for start in range(0, vectors, _PIECE):
        rows = random.standard_normal((min(_PIECE, vectors - start), size), np.float32) * scales + 1
        begin = time.perf_counter()
        piece = Moments.of(rows)
        moments = piece if moments is None else moments.merge(piece)
        taken += time.perf_counter() - begin
        most = max(most, process.memory_info().rss - before)
    begin = time.perf_counter()
    transform = Whitening.fit(moments).transform
    solved = time.perf_counter() - begin
    error = float(np.abs(transform.T @ moments.covariance @ transform - np.eye(transform.shape[1])).max())
    table = Table("vectors", "size", "seconds", "vectors/s", "memory", "seconds of the map", "covariance - I")
    figures = (f"{taken:.1f}", f"{vectors / taken:,.0f}", format_size(most), f"{solved:.2f}", f"{error:.0e}")
    table.add_row(f"{vectors:,}", str(size), *figures)
    raw = {"vectors": vectors, "size": size, "seconds": taken, "bytes": most, "seconds_of_map": solved, "error": error}
    report("whitening", table, facts(torch.device("cpu")) | raw, json_path)


def make_contestants(
    loaded: LoadedHead, task: ZeroShotTask, questions: Questions
) -> tuple[dict[str, Callable[[], Any]], int]:
    """What is measured, and how many tokens each computes."""
    options: dict[str, Any] = {"order": task.order, "has_blank": task.blank is not None, "max_length": 128}
    recorder = Recorder(loaded.model)
    score_next_sentences(replace(loaded, model=recorder), questions, **options)
    pairs = _in_order(task, questions)

    @torch.inference_mode()
    def bare() -> None:
        for batch in recorder.batches:
            loaded.model(**batch)

    @torch.inference_mode()
    def usual() -> None:
        for start in range(0, len(pairs), 32):
            first, second = zip(*pairs[start : start + 32], strict=True)
            batch = loaded.tokenizer(
                list(first), list(second), padding=True, truncation=True, max_length=128, return_tensors="pt"
            )
            loaded.model(**batch.to(loaded.device))

    contestants: dict[str, Callable[[], Any]] = {
        OURS: lambda: score_next_sentences(loaded, questions, **options),
        BARE: bare,
    }
    if task.blank is None:
        contestants[USUAL] = usual
    return contestants, sum(int(batch["attention_mask"].sum()) for batch in recorder.batches)


def _in_order(task: ZeroShotTask, questions: Questions) -> list[tuple[str, str]]:
    pairs = [
        ("".join(text), questions.prompts[place])
        for text, places in zip(questions.texts, questions.prompt_of, strict=True)
        for place in places
        if place >= 0
    ]
    return pairs if task.order == "suffix" else [(prompt, text) for text, prompt in pairs]


def in_turn(contestants: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of every contestant in every round; each round begins with another."""
    names, times = list(contestants), {name: [] for name in contestants}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken = seconds(contestants[name], device)
            if number:
                times[name].append(taken)
    return times


if __name__ == "__main__":
    try:
        app()
    except KexueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
