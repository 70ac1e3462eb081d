"""Communication on paper: its laws, and the constants that it shares with what communicates.

``test_zero.py`` compares its bytes with those that real ranks send.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim import ranks
from kexue_train.train import communication, engine
from kexue_train.train.communication import (
    NETWORKS,
    Collective,
    Network,
    Transfer,
    communication_of_step,
    transfers_of_step,
)

BASE, TENSORS = 94_000_000, 76
SLOW = NETWORKS[-1]


def waits(gpus: int = 64, network: Network = SLOW, step: float = 0.02, micro_steps: int = 2, **more: object) -> float:
    settings = {"parameters": BASE, "tensors": TENSORS, "zero_stage": 0, "hidden": True, **more}
    transfers = transfers_of_step(micro_steps=micro_steps, **settings)
    planned = communication_of_step(transfers, gpus, network, micro_steps=micro_steps, step_seconds=step)
    assert 0 < planned.waited_seconds <= planned.seconds
    return planned.waited_seconds


def test_buckets_are_those_that_are_sent() -> None:
    assert communication.BUCKET_BYTES == ranks.BUCKET_BYTES
    assert communication.ZERO_BUCKET_BYTES == 4 * engine._BUCKET_SIZE


@pytest.mark.parametrize(
    ("gpus", "collective", "sent"),
    [(1, Collective.ALL_REDUCE, 0), (2, Collective.ALL_REDUCE, 400), (8, Collective.ALL_REDUCE, 700),
     (8, Collective.ALL_GATHER, 350), (512, Collective.ALL_REDUCE, 2 * 400 * 511 / 512)],
)  # fmt: skip
def test_a_ring_sends_each_byte_once_or_twice(gpus: int, collective: Collective, sent: float) -> None:
    assert Transfer(collective, 400, 1, 1, 0).sent_bytes(gpus) == sent
    assert Transfer(collective, 400, 3, 1, 0).sent_bytes(gpus) == 3 * sent


def test_time_is_bytes_over_pace_plus_the_way_of_each_call() -> None:
    network = Network("slow", 1e9, 1e-3)
    transfer = Transfer(Collective.ALL_REDUCE, 10**9, 1, 4, 0)
    way = 7 * communication._NVLINK_SECONDS + 3 * network.seconds  # 64 GPUs are 8 machines
    expected = 2 * 63 / 64 + 4 * (communication._CALL_SECONDS + 2 * way)
    assert transfer.seconds(64, network) == pytest.approx(expected)
    inside = 2 * 7 / 8 * 1e9 / communication._NVLINK_BYTES
    assert inside < transfer.seconds(8, network) < inside + 1e-3  # the network between machines is not used


def test_hidden_accumulation_hides_behind_the_backward_and_gradients_do_not() -> None:
    assert waits(hidden=True, step=10.0) < waits(hidden=False, step=10.0) / 10
    long, short = waits(step=10.0), waits(step=1e-6)
    whole = Transfer(Collective.ALL_REDUCE, 4 * BASE, 1, math.ceil(4 * BASE / ranks.BUCKET_BYTES), 0).seconds(64, SLOW)
    assert short == pytest.approx(whole, rel=1e-3)
    assert long == pytest.approx(whole / 15)  # its last bucket


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_with_hidden_accumulation_reduces_in_every_micro_step(stage: int) -> None:
    one, four = waits(zero_stage=stage, micro_steps=1), waits(zero_stage=stage, micro_steps=4)
    assert 2.9 < four / one < 3.1  # 4 reductions and a gather to 1 and a gather
    assert waits(zero_stage=1, hidden=False, micro_steps=4) == one


@given(st.sampled_from([0, 1, 2, 3]), st.booleans(), st.sampled_from(NETWORKS), st.floats(1e-4, 10.0))
def test_more_gpus_and_slower_networks_never_wait_less(stage: int, hidden: bool, network: Network, step: float) -> None:
    settings = {"zero_stage": stage, "hidden": hidden, "step": step}
    by_gpus = [waits(gpus, network, **settings) for gpus in (8, 16, 64, 512)]
    by_network = [waits(64, each, **settings) for each in NETWORKS]
    for fewer, more in [*pairwise(by_gpus), *pairwise(by_network)]:
        assert fewer <= more
