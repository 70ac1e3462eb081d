import pytest

from kexue_train.metrics.fields import SEQ_LEN
from kexue_train.report.run_data import load_run
from kexue_train.report.tables import phase_table
from kexue_train.report.training import phase_speeds, training_shares
from tests.report.example_run import write_metrics

TWO_PHASES = [
    {"kind": "start", "step": 0, "time": 100.0, "phase": 1, "seq_len": 128, "global_batch_size": 8},
    {"kind": "train", "step": 1, "tokens": 1000, "seconds": 1.0, "mfu": 0.1, "data_wait": 0.5, "memory_bytes": 7},
    {"kind": "train", "step": 2, "tokens": 4000, "seconds": 4.0, "mfu": 0.3, "data_wait": 0.0, "memory_bytes": 9},
    {"kind": "checkpoint", "step": 2, "time": 105.0, "stall_seconds": 0.25},
    {"kind": "phase", "step": 2, "time": 105.0, "phase": 2, "seq_len": 512, "global_batch_size": 2},
    {"kind": "train", "step": 3, "tokens": 5000, "seconds": 6.0, "mfu": 0.4, "data_wait": 0.25, "memory_bytes": 8},
]


def test_each_phase_has_its_own_speed(young_run):
    write_metrics(young_run, TWO_PHASES)
    first, second = phase_speeds(load_run(young_run))
    assert (first.first_step, first.last_step, first.tokens, first.seconds) == (0, 2, 4000, 4.0)
    assert first.mfu == pytest.approx((0.1 * 1 + 0.3 * 3) / 4)
    assert (first.tokens_per_second, first.memory_bytes, SEQ_LEN.of(first.facts)) == (1000, 9, 128)
    assert (second.first_step, second.tokens, second.seconds, second.mfu) == (2, 1000, 2.0, 0.4)


@pytest.mark.parametrize(("mfu", "notes"), [(0.9, 1), (2.5, 2)])
def test_a_share_above_one_is_called_meaningless(young_run, mfu, notes):
    write_metrics(young_run, [{"kind": "train", "step": 5, "tokens": 50, "seconds": 2.0, "mfu": mfu}])
    table = phase_table(load_run(young_run))
    assert len(table.notes) == notes
    assert ("says nothing" in table.notes[-1]) == (mfu > 1)


def test_metrics_of_an_older_version_make_one_phase(young_run):
    write_metrics(young_run, [{"kind": "train", "step": 5, "tokens": 50, "seconds": 2.0}])
    (only,) = phase_speeds(load_run(young_run))
    assert (only.number, only.tokens_per_second, only.mfu, SEQ_LEN.of(only.facts)) == (1, 25, None, None)


def test_a_resume_within_a_phase_starts_no_other(young_run):
    resume = {"kind": "resume", "step": 2, "phase": 1, "seq_len": 128}
    write_metrics(young_run, [*TWO_PHASES[:4], resume, *TWO_PHASES[4:]])
    assert [speed.number for speed in phase_speeds(load_run(young_run))] == [1, 2]


def test_time_within_training_is_told_apart(young_run):
    write_metrics(young_run, TWO_PHASES)
    shares = dict(training_shares(load_run(young_run)))
    waited = 1.0 * 0.5 + 2.0 * 0.25
    assert shares == pytest.approx({"steps": 6 - waited, "waiting for data": waited, "writing checkpoints": 0.25})


def test_the_rest_of_the_stage_is_told_if_it_was_done_in_one_go(young_run):
    write_metrics(young_run, TWO_PHASES)
    (young_run / "stages.jsonl").write_text('{"stage": "train", "started": 99.0, "seconds": 10.0}\n')
    assert sum(seconds for _, seconds in training_shares(load_run(young_run))) == pytest.approx(10)


def test_the_rest_is_not_told_of_a_stage_that_continued_an_earlier_one(young_run):
    write_metrics(young_run, TWO_PHASES)
    (young_run / "stages.jsonl").write_text('{"stage": "train", "started": 101.0, "seconds": 10.0}\n')
    assert len(training_shares(load_run(young_run))) == 3
