"""What is counted between two lines of metrics, and the rates that follow from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from kexue_train.batches.collate import make_batch
from kexue_train.batches.dataset import SampleDataset
from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.data import to_tensors
from kexue_train.train.distributed import join_process_group
from kexue_train.train.heads import pretraining_heads
from kexue_train.train.monitor import meter as meter_module
from kexue_train.train.monitor.flops import FlopRule, PeakRates
from kexue_train.train.monitor.meter import Meter, Speedometer, Totals

HEADS = pretraining_heads(ObjectiveConfig())


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(meter_module.time, "perf_counter", clock)
    return clock


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    join_process_group("gloo", hang_timeout=60, alone=True)
    yield
    dist.destroy_process_group()


def test_tokens_and_the_tokens_they_see_are_counted_without_padding(samples, group):
    dataset = SampleDataset(samples)
    rows = np.arange(12)
    lengths = dataset.take(rows)["sequence_lengths"]
    meter = Meter(HEADS, torch.device("cpu"))
    for part in np.array_split(rows, 3):
        meter.add(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), to_tensors(make_batch(dataset, part, 0, seed=1)))
    totals = meter.total()
    assert (totals.tokens, totals.seen_tokens) == (lengths.sum(), (lengths**2).sum())
    assert totals.tokens < 12 * dataset.seq_len  # there was padding to leave out
    assert totals.scores == {
        "mlm_loss": 3 / 9, "mlm_accuracy": 6 / 9, "predictions": 9, "nsp_loss": 12 / 18, "nsp_accuracy": 15 / 18,
        "pairs": 18
    }  # fmt: skip
    assert 0 < totals.memory_share < 1


def test_waiting_counts_and_pauses_do_not(clock, group):
    meter = Meter(HEADS, torch.device("cpu"))
    clock.now += 3
    with meter.waiting():
        clock.now += 1
    with meter.paused():
        clock.now += 1000
    totals = meter.total()
    assert (totals.seconds, totals.data_wait) == (4, 0.25)


def test_rates_follow_from_the_totals_and_the_time_left_from_all_that_passes():
    clock = Clock()
    speed = Speedometer(FlopRule(10, 2, 100), PeakRates(1000, None), 40, clock)
    clock.now += 60  # of which 50 were training
    totals = Totals({"predictions": 5}, 100, 600, 50.0, 0, 0, 0)
    flops = (10 * 100 + 2 * 600 + 100 * 5) / 50
    assert speed.read(50, 100, totals) == {
        "tokens_per_second": 2.0, "flops_per_second": flops, "mfu": flops / 1000, "eta_seconds": 50 * 60 / 10
    }  # fmt: skip
    again = Speedometer(FlopRule(10, 2, 100), PeakRates(1000, 4000), 40, clock)
    clock.now += 1
    assert again.read(41, 100, totals)["mfu_datasheet"] == flops / 4000


def test_the_time_left_forgets_the_pace_of_long_ago():
    clock = Clock()
    speed = Speedometer(FlopRule(1, 1, 1), PeakRates(1, None), 0, clock)
    for step in range(1, 200):
        clock.now += 100 if step < 100 else 1
        left = speed.read(step, 300, Totals({}, 1, 1, 1.0, 0, 0, 0))["eta_seconds"]
    assert left == pytest.approx(300 - 199)
