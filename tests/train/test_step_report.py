"""What ranks tell each other: every step once, in order, two steps late, the same on all of them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from kexue_train.train.config import ObjectiveConfig
from kexue_train.train.distributed import join_process_group
from kexue_train.train.faults.step_report import StepReports
from kexue_train.train.heads import pretraining_heads
from tests.free_port import free_port
from tests.train.tiny_training import SECONDS, rank_environment
from tests.train.warm_worker import WarmProcess


@pytest.fixture
def reports(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # the group sets them for its process
    join_process_group("gloo", hang_timeout=1.0, alone=True)
    yield StepReports(pretraining_heads(ObjectiveConfig(nsp_weight=0.5)), timedelta(seconds=10))
    dist.destroy_process_group()


def _terms(mlm: float, nsp: float) -> torch.Tensor:
    return torch.tensor([[4 * mlm, 1.0, 4.0], [2 * nsp, 1.0, 2.0]])


def _add(reports: StepReports, step: int, *, asked: bool = False):
    return reports.add(step, _terms(step, 10 * step), asked=asked, drained=False)


def test_every_step_is_reported_once_in_order_two_steps_later(reports):
    heard = [_add(reports, step) for step in range(1, 8)]
    assert [[report.step for report in each] for each in heard] == [[], [0], [1], [2], [3], [4], [5]]
    assert [report.step for report in reports.drain(asked=False, drained=False)] == [6, 7]
    assert _add(reports, 8) == []


def test_the_loss_is_the_mean_per_prediction_and_the_weighed_mean_per_pair(reports):
    _add(reports, 3)
    losses = {report.step: report.loss for report in reports.drain(asked=False, drained=False)}
    assert losses[3] == pytest.approx(3 + 0.5 * 30)


def test_a_request_is_heard_one_step_later(reports):
    _add(reports, 1)
    assert not any(report.asked for report in _add(reports, 2, asked=True))
    assert any(report.asked for report in _add(reports, 3))


def test_a_step_without_a_pair_counts_its_words(reports):
    reports.add(1, torch.tensor([[8.0, 0.0, 4.0], [0.0, 0.0, 0.0]]), asked=False, drained=False)
    assert [r.loss for r in reports.drain(asked=False, drained=False) if r.step] == [2.0]


@pytest.mark.slow
def test_all_ranks_hear_the_same_sums_and_any_of_them_can_ask(tmp_path):
    script, port = Path(__file__).with_name("tell_each_other.py"), free_port()
    ranks = [WarmProcess([script, tmp_path / f"{rank}.json"], rank_environment(rank, 3, port)) for rank in range(3)]
    outputs = [rank.communicate(SECONDS)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], outputs
    heard = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert heard[0] == heard[1] == heard[2]
    steps = [report for each in heard[0] for report in each if report[0]]
    assert [report[0] for report in steps] == list(range(1, 7))
    assert [report[1] for report in steps] == pytest.approx([step + 1.0 for step in range(1, 7)])  # ranks: s, s+1, s+2
    assert [any(report[2] for report in each) for each in heard[0]] == [False, False, False, False, True, True, True]
