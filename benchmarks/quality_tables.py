"""The tables of time to quality, and the arithmetic behind them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from rich.table import Table

from benchmarks.optimizer_quality import mean_and_deviation
from benchmarks.quality_contenders import ABLATIONS, EVERYBODY, OURS, PEERS
from benchmarks.quality_walk import Findings
from benchmarks.run_store import Outcome
from kexue_train.batches.dataset import SampleDataset
from kexue_train.train.data import Tensors

_COUNTED_ROWS = 4096
_OFF_PLATEAU = 0.1
STEP, TOKENS, SECONDS, LOSS, PAIRS = range(5)


def unigram_loss(dataset: SampleDataset, heldout: Iterable[Tensors]) -> float:
    """Return the mean loss in nats of the hidden tokens of ``heldout`` guessed by their frequency in training alone."""
    first = len(dataset.heldout_rows)
    rows = first + np.arange(min(_COUNTED_ROWS, dataset.num_training_rows))
    counts = np.bincount(dataset.take(rows)["input_ids"].ravel(), minlength=dataset.vocab_size) + 1.0
    counts[list(dataset.special_token_ids.values())] = 0
    with np.errstate(divide="ignore"):
        losses = np.log(counts.sum()) - np.log(counts)
    labels = np.concatenate([batch["prediction_labels"].numpy() for batch in heldout])
    return float(losses[labels].mean())


def reaches(outcome: Outcome, loss: float) -> float:
    """Return the step at which the held-out loss comes down to ``loss``, between points in a straight line; or NaN."""
    previous = None
    for point in outcome["curve"]:
        if point[LOSS] <= loss:
            if previous is None:
                return float(point[STEP])
            share = (previous[LOSS] - loss) / (previous[LOSS] - point[LOSS])
            return float(previous[STEP] + share * (point[STEP] - previous[STEP]))
        previous = point
    return math.nan


def contender_table(found: Findings, plateau: float) -> Table:
    """Make the table of everybody's loss, NSP accuracy, speed, and the step at which the plateau is left."""
    table = Table(
        "", "lr", "seeds", "loss, nats", "NSP %", "weights", "ms per step", "tokens/s", "leaves plateau at step",
        title=f"After the last step; plateau of frequencies alone: {plateau:.3f} nats",
    )  # fmt: skip
    for name, outcomes in found.outcomes.items():
        ends = [outcome["curve"][-1] for outcome in outcomes]
        seconds = found.seconds_per_step(name)
        table.add_row(
            EVERYBODY[name].title, _rate(name, found.lrs[name]), str(len(ends)),
            mean_and_deviation([end[LOSS] for end in ends]),
            "–" if math.isnan(ends[0][PAIRS]) else _percent([end[PAIRS] for end in ends]),
            f"{outcomes[0]['parameters'] / 1e6:.2f} M", f"{1000 * seconds:.0f}",
            f"{ends[0][TOKENS] / ends[0][STEP] / seconds:.0f}",
            _steps([reaches(outcome, plateau - _OFF_PLATEAU) for outcome in outcomes]),
        )  # fmt: skip
    return table


def race_table(found: Findings) -> Table:
    """Make the table of when ours reach the final loss of each peer, by seed: share of its tokens and of its time."""
    table = Table(
        "", "reaches the loss of", "at step", "of its tokens", "of its processor time", title="Time to quality"
    )
    for ours in (contender.name for contender in OURS if contender.name in found.outcomes):
        for peer in (contender.name for contender in PEERS if contender.name in found.outcomes):
            pairs = list(zip(found.outcomes[ours], found.outcomes[peer], strict=False))
            steps = [reaches(mine, its["curve"][-1][LOSS]) for mine, its in pairs]
            shares = [step / its["curve"][-1][STEP] for step, (_, its) in zip(steps, pairs, strict=True)]
            cost = found.seconds_per_step(ours) / found.seconds_per_step(peer)
            table.add_row(
                EVERYBODY[ours].title, EVERYBODY[peer].title, _steps(steps), _share(shares),
                _share([share * cost for share in shares]),
            )  # fmt: skip
    return table


def ablation_table(found: Findings, plateau: float) -> Table:
    """Make the table of what each exchanged part changes, by seed, beside ours with everything."""
    table = Table("ours, but", "seeds", "loss beyond ours", "NSP %", "ms per step", "leaves plateau at step")
    for name in ("ours", "ours-adamw", *(contender.name for contender in ABLATIONS)):
        outcomes = found.outcomes.get(name, [])
        pairs = list(zip(outcomes, found.outcomes.get("ours", []), strict=False))
        if not pairs:
            continue
        table.add_row(
            EVERYBODY[name].title, str(len(pairs)),
            mean_and_deviation([mine["curve"][-1][LOSS] - base["curve"][-1][LOSS] for mine, base in pairs], "+"),
            _percent([outcome["curve"][-1][PAIRS] for outcome in outcomes]),
            f"{1000 * found.seconds_per_step(name):.0f}",
            _steps([reaches(outcome, plateau - _OFF_PLATEAU) for outcome in outcomes]),
        )  # fmt: skip
    table.title = "One part exchanged"
    return table


def trainer_table(found: Findings) -> Table:
    """Make the table of the first peer in both loops: the same loss, and the time of each."""
    table = Table("BERT in", "loss, nats", "processor s", title="What the loop costs")
    runs = {"the plain loop": found.outcomes.get(PEERS[0].name, [None])[0], "Trainer": found.trainer}
    for title, outcome in runs.items():
        if outcome is not None:
            end = outcome["curve"][-1]
            table.add_row(title, f"{end[LOSS]:.4f}", f"{end[SECONDS]:.1f}")
    return table


def curve_table(found: Findings) -> Table:
    """Make the table of the way: mean loss, NSP accuracy and processor seconds by step and tokens; ours and peers."""
    names = [name for name in found.outcomes if EVERYBODY[name] in (*OURS, *PEERS)]
    table = Table("step", "tokens", *(EVERYBODY[name].title for name in names))
    table.title = "On the way: held-out loss in nats / NSP % / processor s, means over seeds"
    curves = {name: [outcome["curve"] for outcome in found.outcomes[name]] for name in names}
    marks = sorted({(point[STEP], point[TOKENS]) for some in curves.values() for point in some[0]})
    for step, tokens in marks:
        cells = (_way([p for curve in curves[name] for p in curve if p[STEP] == step], found, name) for name in names)
        table.add_row(str(step), f"{tokens:,}", *cells)
    return table


def _way(points: Sequence[Sequence[float]], found: Findings, name: str) -> str:
    if not points:
        return ""
    loss, pairs = (statistics.fmean(point[column] for point in points) for column in (LOSS, PAIRS))
    seconds = points[0][STEP] * found.seconds_per_step(name)
    return f"{loss:.3f} / {'–' if math.isnan(pairs) else f'{100 * pairs:.0f}'} / {seconds:.0f}"


def _rate(name: str, lr: float) -> str:
    """Format a learning rate; says if it is the lowest or highest of those tried: a better one may lie beyond."""
    lrs = EVERYBODY[name].lrs
    beyond = {min(lrs): " (lowest tried)", max(lrs): " (highest tried)"} if lrs else {}
    return f"{lr:g}{beyond.get(lr, '')}"


def _percent(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(shares):.0f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.0f}" if len(shares) > 1 else mean


def _steps(steps: Sequence[float]) -> str:
    """Format a step for each seed; "never" where it is not reached."""
    return ", ".join("never" if math.isnan(step) else f"{step:.0f}" for step in steps)


def _share(shares: Sequence[float]) -> str:
    return ", ".join("never" if math.isnan(share) else f"{share:.2f}" for share in shares)
