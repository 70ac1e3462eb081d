"""What the whole run will take and reach, from what a trial measured; pure functions.

The plans of the stages (``kexue plan``) say how time and disk grow with the run. The trial says how far they are off
on this machine: each stage's plan for the trial is compared with what the trial took, and its plan for the run is
corrected by that. A forecast is three such plans: at least, likely, at most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from kexue_train.foundation.stage import StagePlan
from kexue_train.pipeline.plan import Machine, RunPlan, plan_run, text_source
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.trial.loss import LossForecast, forecast_loss
from kexue_train.pipeline.trial.measure import Measures, StageMeasure, TrainingMeasure
from kexue_train.train.plan import count_slots, flops_per_token

MODEL_ERROR = 1.25
"""The factor by which time may differ beyond the spread of the trial on a machine without other work."""
PLAN_ERROR = 3.0
"""The factor by which the rate of a stage may differ from that of its plan; a trial that is too short to tell is
trusted within it."""
DISK_ERROR = 1.1
START_ERROR, _SHORTEST_START_SECONDS = 2.0, 1.0
"""The factor by which the start and the end of a stage may differ."""
_SMALL_BATCH_GAIN = 1.5
"""How much faster tokens may be in the batches of the run where those of the trial are smaller."""
_TINY = 1e-9

Bound = Literal["least", "likely", "most"]
BOUNDS: tuple[Bound, ...] = ("least", "likely", "most")


class Text(NamedTuple):
    """Bytes of text of the whole corpus."""

    least: int
    likely: int
    most: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """The whole run: plans with the least, the likely and the most that it takes, and its loss."""

    least: RunPlan
    likely: RunPlan
    most: RunPlan
    loss: LossForecast | None
    tokens: int
    """That training reads."""
    passes: float
    """Over the text."""

    def of(self, take: Callable[[RunPlan], float | None]) -> tuple[float, float, float] | None:
        """Return a figure of the plans: at least, likely, at most; None if it is not known."""
        found = [take(plan) for plan in (self.least, self.likely, self.most)]
        return (found[0], found[1], found[2]) if None not in found else None  # type: ignore[return-value]  # just seen


def forecast_run(
    config: RunConfig, trial: RunConfig, text: Text, machine: Machine, measures: Measures, *, is_reduced: bool
) -> Forecast:
    """Return what the run of ``config`` will take.

    Args:
        config: The run.
        trial: What the trial ran.
        text: The corpus of the run.
        machine: This machine.
        measures: What the trial measured.
        is_reduced: Whether the trial had smaller batches than the run.
    """
    pace = measures.training.pace
    smaller = flops_per_token(_with_vocabulary(config, measures.vocab_size)) / flops_per_token(config)
    error = time_error(measures.other_load)
    rates = {
        "least": pace.fastest * error * (_SMALL_BATCH_GAIN if is_reduced else 1.0),
        "likely": pace.likely,
        "most": pace.slowest / error,
    }
    rows = measures.slots_per_text_byte
    tried = plan_run(
        trial, [text_source(measures.text_bytes)], machine, tokens_per_second=pace.likely, slots_per_text_byte=rows
    )

    def plan(bound: Bound) -> RunPlan:
        size = getattr(text, bound)
        whole = plan_run(
            config, [text_source(size)], machine, tokens_per_second=rates[bound] * smaller, slots_per_text_byte=rows
        )
        stages = {
            name: _corrected(name, stage, tried.stages[name], config, measures, bound, is_reduced)
            for name, stage in whole.stages.items()
        }
        return replace(whole, stages=stages)

    least, likely, most = map(plan, BOUNDS)
    tokens = count_slots(config)
    in_text = likely.text_bytes * rows * (1 - config.samples.heldout_fraction)
    loss = forecast_loss(measures.entropy, tokens, measures.heldout_loss)
    return Forecast(least, likely, most, loss, tokens, tokens / max(in_text, 1.0))


def time_error(other_load: float) -> float:
    """Return the factor by which time may differ, with so many processes of others for each CPU.

    They come and go. With 8 of them for each CPU, stages of half a minute differed by a factor of two and more.
    """
    busy: float = max(1.0, other_load) ** (1 / 3)
    return MODEL_ERROR * busy


def _with_vocabulary(config: RunConfig, size: int) -> RunConfig:
    """Return the run with the vocabulary of the trial, if its text gave a smaller one than was asked for."""
    if config.tokenizer.source or size >= config.tokenizer.vocab_size:
        return config
    return config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"vocab_size": size})})


def _corrected(
    name: str,
    whole: StagePlan,
    tried: StagePlan,
    config: RunConfig,
    measures: Measures,
    bound: Bound,
    is_reduced: bool,
) -> StagePlan:
    measured = measures.stages[name]
    if name == "train":
        return _corrected_training(whole, tried, config, measures.training, bound, is_reduced)
    error = time_error(measures.other_load)
    corrected = replace(whole, seconds=stage_seconds(whole, tried, measured.seconds, bound, error))
    if name == "supervise" and measures.supervised and config.supervised:
        seconds = _supervised_seconds(measures.supervised, config.supervised.steps, bound, error)
        corrected = replace(corrected, seconds=seconds)
    return _with_disk(corrected, tried, measured, bound)


def stage_seconds(
    whole: StagePlan, tried: StagePlan, measured: float, bound: Bound, error: float = MODEL_ERROR
) -> float | None:
    """Return what a stage of the run takes, if it took ``measured`` seconds in the trial.

    What the trial took is its start and its work, and how much of it is which is not measured. Likely they share it as
    their plans do; at least the start takes twice that share, at most nothing. The work grows as the plan says. Where
    the share of the work is too small to tell its pace, that is taken from the plan, which is believed within
    ``PLAN_ERROR`` and no faster than the trial on the whole.
    """
    if whole.seconds is None or tried.seconds is None:
        return None
    work, start = max(tried.seconds - tried.start_seconds, _TINY), tried.start_seconds
    share = start / (start + work)
    begun = max(START_ERROR * share * measured, _SHORTEST_START_SECONDS)
    slower = measured / (start + work)
    low = max(max(measured - begun, 0.0) / work, min(slower, 1.0) / PLAN_ERROR)
    high = min(measured / work, max(slower, 1.0) * PLAN_ERROR)
    trusted: float = slower ** min(1.0, 2 * (1 - share))  # all of it, if half or more of the trial was work
    likely = min(max(trusted, low), high)
    factors: dict[Bound, float] = {
        "least": min(low, likely) / error,
        "likely": likely,
        "most": max(high, likely) * error,
    }
    started = max(measured - factors[bound] * work, 0.0) * _of_start(bound)
    return started + factors[bound] * max(whole.seconds - whole.start_seconds, 0.0)


def _of_start(bound: Bound) -> float:
    return {"least": 1 / START_ERROR, "likely": 1.0, "most": START_ERROR}[bound]


def _supervised_seconds(measured: TrainingMeasure, steps: int, bound: Bound, error: float) -> float:
    factor = {"least": 1 / error, "likely": 1.0, "most": error}[bound]
    return measured.beside_seconds * _of_start(bound) + steps * measured.step_seconds * factor


def _corrected_training(
    whole: StagePlan, tried: StagePlan, config: RunConfig, measured: TrainingMeasure, bound: Bound, is_reduced: bool
) -> StagePlan:
    saving = measured.stall_seconds * (config.train.steps // config.train.checkpoints.every)
    seconds = (whole.seconds or 0.0) + (measured.beside_seconds + saving) * _of_start(bound)
    corrected = replace(whole, seconds=seconds)
    if bound == "least":  # the best checkpoint is one of the newest
        corrected = replace(corrected, disk_bytes=max(whole.disk_bytes - whole.scratch_bytes, whole.scratch_bytes))
    if measured.memory_bytes and not is_reduced:
        corrected = _with_memory(corrected, int(measured.memory_bytes), config.train.num_workers)
    one = StageMeasure(0.0, measured.checkpoint_bytes)
    return _with_disk(corrected, replace(tried, disk_bytes=tried.scratch_bytes), one, bound)


def _with_memory(stage: StagePlan, measured: int, workers: int) -> StagePlan:
    if stage.device_bytes is not None:
        return replace(stage, device_bytes=measured)
    return replace(stage, memory_bytes=workers * measured)


def _with_disk(whole: StagePlan, tried: StagePlan, measured: StageMeasure, bound: Bound) -> StagePlan:
    """Return ``whole`` with disk as many times as much as planned as in the trial."""
    if not tried.disk_bytes or not measured.disk_bytes:
        return whole
    ratio = measured.disk_bytes / tried.disk_bytes * {"least": 1 / DISK_ERROR, "likely": 1.0, "most": DISK_ERROR}[bound]
    return replace(whole, disk_bytes=int(whole.disk_bytes * ratio), scratch_bytes=int(whole.scratch_bytes * ratio))
