"""The arithmetic of a forecast, on measurements that are made up: from the plan itself, so that the answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexue_train.foundation.stage import StagePlan
from kexue_train.metrics.fields import Kind
from kexue_train.pipeline.plan import Machine, RunPlan, plan_run, text_source
from kexue_train.pipeline.run_config import RunConfig
from kexue_train.pipeline.trial.forecast import (
    BOUNDS,
    MODEL_ERROR,
    START_ERROR,
    Forecast,
    Text,
    forecast_run,
    stage_seconds,
)
from kexue_train.pipeline.trial.loss import forecast_loss
from kexue_train.pipeline.trial.measure import Measures, Pace, StageMeasure, TrainingMeasure, pace_of
from kexue_train.pipeline.trial.shrink import choose_batches, choose_size, trial_config

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
GB = 10**9
MACHINE = Machine(2, 16 * GB)
TRIAL_BYTES, RATE = 20_000_000, 8000.0


def config(name: str, *overrides: str) -> RunConfig:
    return RunConfig.load(ROOT / "configs" / f"{name}.yaml", overrides)


def shrunk(run: RunConfig, text_bytes: int, minutes: float = 2.0) -> RunConfig:
    sources = [text_source(text_bytes)]
    size = choose_size(run, sources, MACHINE, 60 * minutes)
    return trial_config(run, sources, Path("sample.jsonl"), size, choose_batches(run, MACHINE, 60 * minutes), 1)


def measured(
    planned: RunPlan, run: RunConfig, *, slower: float = 1.0, larger: float = 1.0, other_load: float = 0.0
) -> Measures:
    """What a machine would measure that needs ``slower`` times the planned time, and ``larger`` times the disk."""
    stages = {
        name: StageMeasure(slower * (stage.seconds or 0.0), int(larger * stage.disk_bytes))
        for name, stage in planned.stages.items()
    }
    checkpoint = int(larger * planned.stages["train"].scratch_bytes)
    rate = RATE / slower
    training = TrainingMeasure(100, 10**6, 10.0, 6.0, Pace(rate, rate, rate), 0.0, checkpoint, 0.0, (9.0, 8.0, 7.0))
    return Measures(
        text_bytes=TRIAL_BYTES, slots_per_text_byte=0.3, vocab_size=run.tokenizer.vocab_size, stages=stages,
        training=training, entropy=6.3, heldout_loss=8.0, other_load=other_load,
    )  # fmt: skip


def planned(run: RunConfig, size: int) -> RunPlan:
    return plan_run(run, [text_source(size)], MACHINE, tokens_per_second=RATE, slots_per_text_byte=0.3)


def forecast(run: RunConfig, whole: int = 10 * GB, **more: Any) -> tuple[RunPlan, Forecast]:
    trial = shrunk(run, whole)
    measures = measured(planned(trial, TRIAL_BYTES), run, **more)
    found = forecast_run(run, trial, Text(whole, whole, whole), MACHINE, measures, is_reduced=False)
    return planned(run, whole), found


FILES = ["corpus.source=files", "corpus.inputs=[x.jsonl]"]


@pytest.mark.parametrize("name", ["chinese", "base-128-512"])
def test_a_machine_like_that_of_the_plan_gets_the_plan(name: str) -> None:
    plan, found = forecast(config(name))
    seconds = {stage: entry.seconds for stage, entry in found.likely.stages.items()}
    expected = {stage: entry.seconds for stage, entry in plan.stages.items()}
    expected["train"] += 6.0  # what the trial took beside its steps
    assert seconds == pytest.approx(expected, rel=1e-6)
    assert found.likely.disk_bytes == pytest.approx(plan.disk_bytes, rel=0.001)
    assert found.likely.peak_disk_bytes == pytest.approx(plan.peak_disk_bytes, rel=0.001)


def test_a_machine_twice_as_slow_takes_twice_as_long_where_it_works() -> None:
    plan, found = forecast(config("chinese"), slower=2.0)
    for name in ("tokenizer", "samples", "shuffle"):
        work = plan.stages[name].seconds - plan.stages[name].start_seconds
        assert found.least.stages[name].seconds < 2 * work < found.most.stages[name].seconds
    assert found.likely.stages["samples"].seconds == pytest.approx(2 * plan.stages["samples"].seconds)
    assert found.likely.stages["train"].seconds == pytest.approx(2 * plan.stages["train"].seconds + 6.0)


def test_disk_grows_as_measured() -> None:
    plan, found = forecast(config("chinese"), larger=1.3)
    assert found.likely.disk_bytes == pytest.approx(1.3 * plan.disk_bytes, rel=0.001)
    assert found.least.disk_bytes < 1.3 * plan.disk_bytes < found.most.disk_bytes


def test_weights_of_a_smaller_vocabulary_do_not_make_the_run_look_fast() -> None:
    run = config("chinese", "tokenizer.vocab_size=30000")
    trial = shrunk(run, 10 * GB)
    small = measured(planned(trial, TRIAL_BYTES), config("chinese", "tokenizer.vocab_size=6000"))
    whole = measured(planned(trial, TRIAL_BYTES), run)
    text = Text(GB, GB, GB)
    slow, fast = (
        forecast_run(run, trial, text, MACHINE, measures, is_reduced=False).likely.stages["train"].seconds
        for measures in (small, whole)
    )
    assert 1.2 < slow / fast < 5


seconds_of_stage = st.floats(0.0, 1000.0)


@settings(max_examples=40)
@given(seconds_of_stage, st.floats(0.01, 1000.0), seconds_of_stage, st.floats(0.0, 1000.0), st.floats(1.0, 10_000.0))
def test_intervals_hold_the_likely_value_and_a_trial_of_the_whole(
    start: float, work: float, extra: float, took: float, growth: float
) -> None:
    tried = StagePlan(seconds=start + work, start_seconds=start)
    whole = StagePlan(seconds=start + work * growth + extra, start_seconds=start)
    least, likely, most = (stage_seconds(whole, tried, took, bound) for bound in BOUNDS)
    assert least is not None and likely is not None and most is not None  # noqa: PT018
    assert 0 <= least <= likely * (1 + 1e-9) <= most * (1 + 1e-9)
    again = [stage_seconds(tried, tried, took, bound) for bound in BOUNDS]
    assert again[1] == pytest.approx(took)
    assert took / START_ERROR * (1 - 1e-9) <= again[0] <= took * (1 + 1e-9)
    assert took * (1 - 1e-9) <= again[2] <= START_ERROR * took * (1 + 1e-9)


def test_a_trial_too_short_to_tell_leaves_the_plan_a_factor_of_three() -> None:
    tried, whole = StagePlan(seconds=4.01, start_seconds=4.0), StagePlan(seconds=1004.0, start_seconds=4.0)
    least, likely, most = (stage_seconds(whole, tried, 4.01, bound) for bound in BOUNDS)
    assert least == pytest.approx(1000 / 3 / MODEL_ERROR, rel=0.02)
    assert likely == pytest.approx(1004, rel=0.02)
    assert most == pytest.approx(3000 * MODEL_ERROR, rel=0.02)


def test_a_slow_start_is_not_taken_for_slow_work() -> None:
    tried, whole = StagePlan(seconds=4.04, start_seconds=4.0), StagePlan(seconds=4.6, start_seconds=4.0)
    least, likely, most = (stage_seconds(whole, tried, 50.0, bound) for bound in BOUNDS)
    assert 25 < least < 50 < likely < 52
    assert likely < most < 100 + 30


def test_other_work_on_the_machine_widens_the_intervals() -> None:
    quiet, busy = (forecast(config("chinese"), other_load=load)[1] for load in (0.5, 8.0))
    assert busy.likely == quiet.likely
    for name in ("tokenizer", "train"):
        assert busy.most.stages[name].seconds > 1.5 * quiet.most.stages[name].seconds
        assert busy.least.stages[name].seconds < quiet.least.stages[name].seconds / 1.5


def test_what_is_not_known_stays_unknown() -> None:
    assert stage_seconds(StagePlan(), StagePlan(), 5.0, "likely") is None


# benchmarks/RESULTS.md: entropy of the hidden tokens, tokens read, the loss that the run ended with.
FINISHED = {
    "demo, 2026-12-01": (6.21, 3_686_400, 4.70),
    "demo, 2026-11-29": (6.20, 3_276_800, 4.76),
    "demo, 2026-11-24": (6.19, 3_276_800, 4.78),
    "docs/examples/english.html": (6.66, 10_240_000, 5.09),
    "docs/examples/chinese.html": (6.67, 10_240_000, 5.07),
}


@pytest.mark.parametrize(("entropy", "tokens", "ended"), FINISHED.values(), ids=FINISHED)
def test_finished_runs_end_inside(entropy: float, tokens: int, ended: float) -> None:
    found = forecast_loss(entropy, tokens)
    assert found is not None
    assert found.least < ended < found.most
    assert found.likely == pytest.approx(ended, abs=0.5)
    assert found.is_compared


@settings(max_examples=40)
@given(st.floats(3.0, 10.0), st.integers(10**4, 10**12), st.one_of(st.none(), st.floats(0.5, 12.0)))
def test_more_tokens_never_raise_the_loss(entropy: float, tokens: int, tried: float | None) -> None:
    now, later = forecast_loss(entropy, tokens, tried), forecast_loss(entropy, 2 * tokens, tried)
    assert now is not None and later is not None  # noqa: PT018
    for found in (now, later):
        assert 0 < found.least <= found.likely <= found.most <= 1.5 * entropy
    assert (later.least, later.likely, later.most) <= (now.least, now.likely, now.most)
    assert now.least == pytest.approx(forecast_loss(entropy, tokens).least)


def test_without_an_entropy_nothing_is_said_of_the_loss() -> None:
    assert forecast_loss(None, 10**9) is None


def test_the_pace_leaves_the_warm_up_out_and_shows_the_spread() -> None:
    seconds = [10.0, 11.0, 12.0, 13.0, 14.0, 16.0, 18.0, 19.0]
    lines = [{"kind": Kind.TRAIN, "step": i, "tokens": 100 * i, "seconds": s} for i, s in enumerate(seconds, 1)]
    pace = pace_of(lines)
    assert pace.likely == pytest.approx(600 / 8.0)
    assert (pace.slowest, pace.fastest) == (50.0, 100.0)
    assert pace_of(lines[:1]) == Pace(10.0, 10.0, 10.0)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_trial_is_its_run_but_for_corpus_batches_and_what_it_would_write_elsewhere(path: Path) -> None:
    run = RunConfig.load(path, ["train.checkpoints.mirror=s3://bucket/run"])
    trial = shrunk(run, 100 * GB)
    kept = {"model", "optimizer", "tokenizer", "samples", "evaluate", "execution", "seed"}
    assert {name: getattr(trial, name) for name in kept} == {name: getattr(run, name) for name in kept}
    assert trial.train.steps == run.train.steps
    assert trial.name == f"{run.name}.try"
    assert trial.train.checkpoints.mirror is None
    assert trial.train.logging.loggers == ()
    assert trial.train.settings_of_result() == run.train.settings_of_result()  # none of these batches is too large


def test_batches_too_large_to_try_become_smaller() -> None:
    run = config("base", "train.device=cpu", "train.precision=fp32", "train.compute.compile=false")
    trial = shrunk(run, GB)
    batches = trial.train.phase_settings[0]
    assert batches.global_batch_size < run.train.global_batch_size
    assert batches.global_batch_size % (batches.micro_batch_size * run.train.num_workers) == 0
    assert trial.train.steps == run.train.steps


@pytest.mark.parametrize(
    ("whole", "expected", "said"),
    [
        (10**6, 10**6, "all of it"),
        (10**8, 4 * 10**6, "more than 1 %"),
        (10**9, 10**7, ""),
        (100 * GB, None, "as much as fits into 2 min 00 s"),
    ],
)
def test_about_one_per_cent_is_taken(whole: int, expected: int | None, said: str) -> None:
    size = choose_size(config("base"), [text_source(whole)], MACHINE, 120.0)
    assert size.text_bytes == expected if expected else size.text_bytes < 0.001 * whole
    assert said in size.reason
    assert bool(said) == bool(size.reason)
    more = choose_size(config("base"), [text_source(whole)], MACHINE, 1200.0)
    assert more.text_bytes >= size.text_bytes


def test_a_corpus_that_the_run_makes_is_made_smaller() -> None:
    trial = shrunk(config("demo"), 0)
    assert trial.corpus.source == "installed_docs"
    assert trial.corpus.max_size == "4000000B"


def test_a_mixture_becomes_one_corpus() -> None:
    sources = "corpus.sources=[{name: a, inputs: [a.jsonl], weight: 2.5, text_key: body}, {name: b, inputs: [b.txt]}]"
    trial = shrunk(config("chinese", "corpus.inputs=[]", sources), GB)
    assert trial.corpus.sources == ()
    assert trial.corpus.inputs == (str(Path("sample.jsonl")),)
