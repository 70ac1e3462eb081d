"""Fine-tuning results for people: the encoder beside a random one and beside baselines."""

from __future__ import annotations

from kexue_train.downstream.finetune.tasks.results import TaskResult, TaskResults

HEADER = [
    "task",
    "learnt\nfrom",
    "scored",
    "metric",
    "chance",
    "majority",
    "bag of\nwords",
    "random\nencoder",
    "encoder",
]
"""Titles of the columns of ``rows_of``."""
_BASELINES = ("chance", "majority", "bag_of_words")
_ENCODERS = ("random", "pretrained")
_UNREADABLE = 0.2  # a larger share of unknown tokens is worth a remark


def rows_of(results: TaskResults) -> list[list[str]]:
    """A row per task: percents, over seeds as mean ± standard deviation, "" where there is none."""
    return [_row(result) for result in results.tasks]


def _row(result: TaskResult) -> list[str]:
    metric, split = result.metric or "", result.split
    baselines = {baseline.name: f"{baseline.scores[split][metric]:.1%}" for baseline in result.baselines}
    encoders: dict[str, str] = {}
    for encoder in result.encoders:
        spread = encoder.scores[split][metric]
        deviation = "" if spread.std is None else f" ± {100 * spread.std:.1f}"
        encoders[encoder.encoder] = f"{100 * spread.mean:.1f}{deviation}"
    return [
        result.task,
        f"{result.records['train']:,}" if result.records else "",
        f"{result.records[split]:,} {split}" if result.records else "",
        metric.replace("_", " "),
        *(baselines.get(name, "").removesuffix("%") for name in _BASELINES),
        *(encoders.get(name, "") for name in _ENCODERS),
    ]


def remarks_on(results: TaskResults) -> list[str]:
    """What failed, what was scored on the records that chose the epoch, which texts were cut or cannot be read."""
    remarks = []
    for result in results.tasks:
        for failure in result.failures:
            what = "the task" if failure.encoder is None else f"the {failure.encoder} encoder, seed {failure.seed}"
            remarks.append(f"{result.task}: {what} failed: {failure.error}")
    on_dev = [result.task for result in results.tasks if result.records and result.split == "dev"]
    if on_dev:
        remarks.append(f"scored on the records that chose the epoch, so a little too well: {', '.join(on_dev)}")
    cut = [f"{result.task} {result.cut:,} of {result.max_length}" for result in results.tasks if result.cut]
    if cut:
        remarks.append(f"sequences cut, or texts read in pieces, of so many tokens: {', '.join(cut)}")
    unreadable = [f"{r.task} {r.unknown_rate:.0%}" for r in results.tasks if r.unknown_rate > _UNREADABLE]
    if unreadable:
        remarks.append(f"unknown tokens, so the model cannot read these texts: {', '.join(unreadable)}")
    return remarks
