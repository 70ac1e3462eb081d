"""Every kind of line in ``metrics.jsonl`` and every value in it: key, label, unit and format, declared here only.

A new value of a training line is declared here and computed where training writes the line (``train/monitor``). The
terminal, Prefect's table and the report show it as its declaration says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, assert_never

from kexue_train.foundation.runtime import format_seconds, format_size
from kexue_train.metrics.heads import HEADS, Head

Record = dict[str, Any]
"""One line: its ``kind`` (a ``Kind``), its ``step`` (steps done) and its values by key."""
Form = Literal["plain", "count", "scaled", "share", "bytes", "seconds"]

EMPTY = "–"
"""What is shown where there is no value."""
_LARGEST = 2**100


class Kind(StrEnum):
    """What a line is about."""

    START = "start"
    RESUME = "resume"
    PHASE = "phase"
    TRAIN = "train"
    VALIDATION = "validation"
    TASK = "task"
    SOURCE = "source"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_SAVED = "checkpoint_saved"
    CHECKPOINT_FAILED = "checkpoint_failed"
    MIRRORED = "mirrored"
    MIRROR_FAILED = "mirror_failed"
    MIRROR_BACK = "mirror_back"
    NONFINITE = "nonfinite"
    ROLLBACK = "rollback"
    WARNING = "warning"
    PROFILE = "profile"
    STOP = "stop"
    END = "end"


class Symptom(StrEnum):
    """What a warning is about."""

    LOSS = "loss"
    LOADER = "loader"
    SLOW = "slow"
    MEMORY = "memory"
    CHECKPOINT = "checkpoint"
    LOGGER = "logger"
    METRICS = "metrics"


@dataclass(frozen=True)
class Chart:
    """One figure of the report; metrics that name the same chart are drawn into it together."""

    name: str
    """Identifier in the page."""
    section: Literal["learning", "speed", "monitor"]
    title: str
    from_zero: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Metric:
    """A number in a line."""

    key: str
    label: str
    form: Form = "plain"
    unit: str = ""
    chart: Chart | None = None
    """How the report draws it; None: not at all."""
    headline: bool = False
    """Whether it is shown while training runs: in the terminal and in Prefect's table."""

    def of(self, record: Mapping[str, Any]) -> float | None:
        """Return the number in ``record``, NaN and infinity included; None if it is missing or absurdly large."""
        value = record.get(self.key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return None if _LARGEST < abs(value) < math.inf else value

    def amount(self, record: Mapping[str, Any]) -> float:
        """Return the number in ``record``, 0 if it is missing or not finite."""
        value = self.of(record)
        return value if value is not None and math.isfinite(value) else 0

    def text(self, record: Mapping[str, Any]) -> str:
        """Return the number in ``record`` for a reader, a dash if it is missing."""
        value = self.of(record)
        return EMPTY if value is None else self.write(value)

    def write(self, value: float) -> str:
        """Format a value for a reader."""
        return write_value(value, self.form)


def write_value(value: float, form: Form) -> str:
    """Format a value for a reader, by default with four digits."""
    if not math.isfinite(value):
        return str(value)
    match form:
        case "plain":
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
        case "count":
            return f"{value:,.0f}"
        case "scaled":
            return short_number(value)
        case "share":
            return f"{value:.1%}"
        case "bytes":
            return format_size(value)
        case "seconds":
            return format_seconds(value)
        case _:
            assert_never(form)


def short_number(value: float) -> str:
    """Format a number with three digits and a unit, such as ``3.28 M``."""
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g} T"


@dataclass(frozen=True)
class TextField:
    """Something in a line other than a number: a name, a reason, a list."""

    key: str

    @property
    def label(self) -> str:
        """Its name for a reader."""
        return self.key.replace("_", " ")

    def of(self, record: Mapping[str, Any]) -> str:
        """Return it as text, empty if it is missing."""
        value = record.get(self.key)
        return "" if value is None else str(value)

    def text(self, record: Mapping[str, Any]) -> str:
        """Return it as text, a dash if it is missing."""
        return self.of(record) or EMPTY


# Every line has a step, and every event the time.
STEP = Metric("step", "step", "count")
TIME = Metric("time", "time", unit="s since 1970")

# A phase: consecutive steps with rows of one length.
PHASE = Metric("phase", "phase", "count")
SEQ_LEN = Metric("seq_len", "row length", "count", "tokens")
GLOBAL_BATCH_SIZE = Metric("global_batch_size", "rows a step", "count")
MICRO_BATCH_SIZE = Metric("micro_batch_size", "rows a micro-batch", "count")
ACCUMULATION_STEPS = Metric("accumulation_steps", "micro-batches a step", "count")
PHASE_FIELDS = (PHASE, SEQ_LEN, GLOBAL_BATCH_SIZE, MICRO_BATCH_SIZE, ACCUMULATION_STEPS)

# A start or resume.
PARAMETERS = Metric("parameters", "parameters", "count")
CHOICE = TextField("choice")
"""What was chosen by a measurement, and why."""
_START_FIELDS: tuple[Metric | TextField, ...] = (
    *(TextField(key) for key in ("engine", "device", "precision", "recompute")),
    CHOICE,
    Metric("world_size", "workers", "count"),
    Metric("zero_stage", "ZeRO stage", "count"),
    *PHASE_FIELDS,
    PARAMETERS,
    Metric("rows_per_epoch", "rows an epoch", "count"),
    Metric("peak_flops_per_second", "peak FLOP/s", "scaled"),
)

# Progress and speed of training.
EPOCH = Metric("epoch", "epochs")
TOKENS = Metric("tokens", "tokens read", "count")
LOSS = Metric("loss", "loss", unit="nat", headline=True)
LEARNING_RATE = Metric(
    "lr", "lr", chart=Chart("learning-rate", "learning", "Learning rate", from_zero=True), headline=True
)
TOKENS_PER_SECOND = Metric(
    "tokens_per_second",
    "tokens/s",
    "count",
    chart=Chart("throughput", "speed", "Real tokens per second", from_zero=True),
    headline=True,
)
MFU = Metric(
    "mfu",
    "MFU",
    "share",
    chart=Chart("mfu", "speed", "MFU against the measured rate of the devices", from_zero=True),
    headline=True,
)
MFU_DATASHEET = Metric("mfu_datasheet", "MFU, data sheet", "share")
SECONDS = Metric("seconds", "training time", "seconds", "s")
ETA_SECONDS = Metric("eta_seconds", "time left", "seconds", "s")
DATA_WAIT = Metric(
    "data_wait",
    "waiting for data",
    "share",
    chart=Chart("data-wait", "speed", "Share of the time spent waiting for data", from_zero=True),
)
MEMORY_BYTES = Metric("memory_bytes", "memory", "bytes", headline=True)
MEMORY_SHARE = Metric("memory_share", "memory in use", "share")

# The word table, where drift shows.
EMBEDDING_MAX = Metric(
    "embedding_max",
    "largest value",
    chart=Chart("embedding-max", "monitor", "Largest value in the word table", from_zero=True),
)
EMBEDDING_DRIFTED_ROWS = Metric("embedding_drifted_rows", "drifted rows", "share")
_ROWS_CHART = Chart("embedding-rms", "monitor", "Root mean square of the rows of the word table", from_zero=True)
_EMBEDDING_FIELDS = (
    Metric("embedding_rms_min", "smallest row"),
    Metric("embedding_rms_median", "median row", chart=_ROWS_CHART),
    Metric("embedding_rms_max", "largest row", chart=_ROWS_CHART),
    Metric("embedding_rms_rare", "rarer half", chart=_ROWS_CHART),
    Metric("embedding_rms_frequent", "more frequent half"),
    EMBEDDING_MAX,
    EMBEDDING_DRIFTED_ROWS,
)
_NORMS = tuple(
    Metric(f"{what}_norm_{role}", f"{what} norm ({role})")
    for what in ("parameter", "update", "momentum")
    for role in ("matrix", "embedding", "vector")
)

# Checkpoints and their mirror.
STALL_SECONDS = Metric("stall_seconds", "training held up", "seconds", "s")
REASON = TextField("reason")
_STORAGE = TextField("storage")

# What went wrong.
SPIKE_STEP = Metric("spike_step", "step of the spike", "count")
SPIKE_LOSS = TextField("loss")
"""A number, or the name of one that JSON does not have: ``nan``, ``inf``."""
USUAL_LOSS = Metric("usual", "usual loss", unit="nat")
SYMPTOM = TextField("symptom")
MESSAGE = TextField("message")
PATH = TextField("path")
TENSORS = TextField("tensors")
"""Number of steps by the name of the tensor whose gradient was not finite."""


# A labelled task: one line for each of them, of the steps since the last ones or of the held-out rows.
TASK = TextField("task")
TASK_SPLIT = TextField("split")
"""``train`` or ``heldout``."""
TASK_LOSS = Metric("task_loss", "loss", unit="nat")
TASK_ACCURACY = Metric("task_accuracy", "accuracy", "share")
"""Share of right labels: of texts, of tokens (tagging), of answers with both ends (reading), of choices."""
TASK_LABELS = Metric("task_labels", "labels", "count")
TASK_WEIGHT = Metric("task_weight", "weight")
"""What multiplies the losses of its micro-batches, if something does."""


# A source of a mixture: one line for each of them, of its held-out predictions.
SOURCE = TextField("source")
SOURCE_LOSS = Metric("source_loss", "loss", unit="nat")
SOURCE_ACCURACY = Metric("source_accuracy", "accuracy", "share")
SOURCE_PREDICTIONS = Metric("source_predictions", "predictions", "count")


def head_metrics(head: Head) -> tuple[Metric, Metric]:
    """Return loss and accuracy of a head; the losses of the first head come first on the page."""
    is_first = head == HEADS[0]
    loss = Chart(f"{head.name}-loss", "learning", f"Loss on {head.subject} ({head.unit}s)", wide=is_first)
    accuracy = Chart(f"{head.name}-accuracy", "learning", f"Accuracy on {head.subject}")
    return (
        Metric(head.loss_key, f"{head.title} loss", unit=head.unit, chart=loss),
        Metric(head.accuracy_key, f"{head.title} accuracy", "share", chart=accuracy, headline=True),
    )


_SCORES = tuple(metric for head in HEADS for metric in head_metrics(head))

LINES: dict[Kind, tuple[Metric | TextField, ...]] = {
    Kind.START: _START_FIELDS,
    Kind.RESUME: _START_FIELDS,
    Kind.PHASE: PHASE_FIELDS,
    Kind.TRAIN: (
        Metric("micro_step", "micro-steps", "count"),
        EPOCH,
        Metric("rows", "rows read", "count"),
        TOKENS,
        LOSS,
        *_SCORES,
        LEARNING_RATE,
        TOKENS_PER_SECOND,
        Metric("flops_per_second", "FLOP/s", "scaled"),
        MFU,
        MFU_DATASHEET,
        DATA_WAIT,
        MEMORY_BYTES,
        MEMORY_SHARE,
        SECONDS,
        ETA_SECONDS,
        *_EMBEDDING_FIELDS,
        *_NORMS,
    ),
    Kind.VALIDATION: (*_SCORES, *(Metric(head.counted, head.counted, "count") for head in HEADS)),
    Kind.TASK: (TASK, TASK_SPLIT, TASK_LOSS, TASK_ACCURACY, TASK_LABELS, TASK_WEIGHT),
    Kind.SOURCE: (SOURCE, SOURCE_LOSS, SOURCE_ACCURACY, SOURCE_PREDICTIONS),
    Kind.CHECKPOINT: (STALL_SECONDS,),
    Kind.CHECKPOINT_SAVED: (Metric("write_seconds", "time to write", "seconds", "s"),),
    Kind.CHECKPOINT_FAILED: (Metric("failures_in_a_row", "failures in a row", "count"), REASON),
    Kind.MIRRORED: (_STORAGE, SECONDS, Metric("bytes", "size", "bytes")),
    Kind.MIRROR_FAILED: (_STORAGE, REASON),
    Kind.MIRROR_BACK: (_STORAGE, SECONDS),
    Kind.NONFINITE: (TENSORS, Metric("in_a_row", "steps in a row", "count")),
    Kind.ROLLBACK: (SPIKE_STEP, SPIKE_LOSS, USUAL_LOSS, TextField("left_out")),
    Kind.WARNING: (SYMPTOM, MESSAGE),
    Kind.PROFILE: (PATH,),
    Kind.STOP: (),
    Kind.END: (),
}
"""The values of each kind of line, besides ``kind``, ``step`` and ``time``."""


def training_metrics() -> Iterator[Metric]:
    """Yield the numbers of a training line, in the order in which they are shown."""
    yield from (field for field in LINES[Kind.TRAIN] if isinstance(field, Metric))


def headline_metrics() -> list[Metric]:
    """Return the numbers that are shown while training runs."""
    return [metric for metric in training_metrics() if metric.headline]


def metric_of(key: str) -> Metric | None:
    """Return the declaration of ``key`` in a training line, None if it is unknown."""
    return next((metric for metric in training_metrics() if metric.key == key), None)
