"""What a trial found doubtful, in words: the input, the rows, the machine, training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kexue_train.foundation.artifacts import read_manifest
from kexue_train.foundation.run_dir import RunDir
from kexue_train.foundation.runtime import format_size
from kexue_train.pipeline.proposal.choose import MOST_EPOCHS
from kexue_train.pipeline.trial.draw import Drawn
from kexue_train.pipeline.trial.forecast import Forecast
from kexue_train.pipeline.trial.run import Trial

_MANY, _FEW_TOKENS_FILLED = 0.01, 0.95
_UNEVEN_PACE, _MUCH_OTHER_WORK = 1.5, 1.0
_FEW_PREDICTIONS = 1000


def find_doubts(trial: Trial, forecast: Forecast, free_disk: int) -> Iterator[str]:
    """Yield a line for everything that may make the run fail, or the forecast wrong.

    Args:
        trial: What was tried.
        forecast: Of the run.
        free_disk: Bytes where the run would write.
    """
    if trial.drawn:
        yield from _about_input(trial.drawn, trial.plan.config.shuffle.on_bad_record)
    yield from _about_rows(trial.plan.folder)
    yield from _warnings(trial.notes)
    yield from _about_machine(trial, forecast, free_disk)
    yield from _about_training(trial, forecast)


def _about_input(drawn: Drawn, on_bad_record: str) -> Iterator[str]:
    if drawn.rejected:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in drawn.rejected.most_common())
        fails = "; the run ends at the first of them: set shuffle.on_bad_record: skip" * (on_bad_record == "fail")
        yield f"{drawn.rejected.total():,} of {drawn.records:,} records cannot be used ({reasons}){fails}"
    if drawn.repeated > _MANY * drawn.documents:
        share = drawn.repeated / drawn.documents
        yield f"at least {share:.1%} of the documents are copies of others; shuffle.dedup: exact leaves them out"
    if drawn.blank > _MANY * drawn.records:
        yield f"{drawn.blank / drawn.records:.1%} of the records are blank"
    if drawn.begun_sources:
        yield (
            f"{drawn.begun_sources:,} of the {drawn.num_sources:,} inputs read cannot be cut (compressed, or a large "
            "row group): only their beginnings were taken, and their text is estimated by usual rates"
        )


def _warnings(notes: Sequence[str]) -> Iterator[str]:
    """Yield what stages warned of; of what several say, the last one, which has seen more."""
    warnings = [note.partition(": warning: ")[2] for note in notes if ": warning: " in note]
    yield from {warning.partition(",")[0]: warning for warning in warnings}.values()


def _about_rows(folder: RunDir) -> Iterator[str]:
    unknown = read_manifest(folder.tokenizer).statistics
    rate = max(unknown["unknown_rate"], unknown.get("unknown_character_rate") or 0.0)
    if rate > _MANY:
        yield f"{rate:.1%} of the text is unknown to the vocabulary: raise tokenizer.vocab_size"
    fill = float(read_manifest(folder.samples).statistics["fill"])
    if fill < _FEW_TOKENS_FILLED:
        yield f"the rows are only {fill:.0%} full: documents are short for samples.seq_len, or there are few"


def _about_machine(trial: Trial, forecast: Forecast, free_disk: int) -> Iterator[str]:
    plan, likely = trial.plan, forecast.likely
    if likely.peak_disk_bytes > free_disk:
        yield (
            f"the run needs {format_size(likely.peak_disk_bytes)} of disk at its peak, and {format_size(free_disk)} "
            "are free: take a folder on a larger disk (--run-dir)"
        )
    if likely.memory_bytes > plan.machine.memory_bytes:
        yield (
            f"the run needs {format_size(likely.memory_bytes)} of memory, and {format_size(plan.machine.memory_bytes)} "
            "are free"
        )
    pace = trial.measures.training.pace
    if pace.fastest > _UNEVEN_PACE * pace.slowest:
        yield (
            f"the pace of training varied between {pace.slowest:,.0f} and {pace.fastest:,.0f} tokens/s: is there other "
            "work on the machine?"
        )
    if plan.other_load > _MUCH_OTHER_WORK:
        yield (
            f"{plan.other_load:.1f} other processes wanted each CPU when the trial began, which may come and go: "
            "the intervals are wider for it"
        )
    if plan.batches.is_reduced:
        yield (
            f"a step of the run takes too long to try: training used steps of {plan.batches.rows:,} rows, not "
            f"{plan.config.train.phase_settings[0].global_batch_size:,}, and the time is scaled by tokens"
        )
    if plan.config.train.phases[1:]:
        yield "only the first phase of training was tried; the others are scaled by tokens"
    if plan.config.train.checkpoints.mirror:
        yield "the mirror of the checkpoints was not tried, since it is that of the run"


def _about_training(trial: Trial, forecast: Forecast) -> Iterator[str]:
    training = trial.measures.training
    if not training.is_falling:
        yield (
            f"the loss does not fall in the first {training.steps:,} steps: it may be the warm-up, else lower "
            "optimizer.lr"
        )
    if forecast.passes > MOST_EPOCHS:
        yield f"the text is read {forecast.passes:,.0f} times, which teaches little after {MOST_EPOCHS}: add text"
    if forecast.loss and not forecast.loss.is_compared:
        yield f"no finished run of so many tokens ({forecast.tokens:.2g}) was compared: the loss is extrapolated far"
