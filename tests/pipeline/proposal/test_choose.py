"""Proposals load, fit the machine and the hours, and follow the rules that they state."""

from __future__ import annotations

import itertools

import pytest

from kexue_train.foundation.errors import ConfigError
from kexue_train.foundation.stage import SLOTS_PER_TEXT_BYTE
from kexue_train.pipeline.proposal import choose
from kexue_train.pipeline.proposal.choose import LADDER, MOST_EPOCHS, TOKENS_PER_WEIGHT, Request, find_warnings, propose
from kexue_train.pipeline.proposal.survey import Data, Hardware
from kexue_train.pipeline.run_config import RunConfig

GB = 10**9
LAPTOP = Hardware(cpus=2, memory_bytes=16 * GB, disk_bytes=100 * GB)
SERVER = Hardware(cpus=64, memory_bytes=400 * GB, disk_bytes=4000 * GB, gpus=("A100, 81920 MiB",) * 8)


def data(text_bytes: int, **more: float) -> Data:
    shares = {"mean_bytes": 3000.0, "chinese_share": 0.0, "repeated_share": 0.0, "pair_share": 1.0}
    shares |= {"num_words": 20_000} | more
    return Data(("corpus",), 1, text_bytes, 100, **shares)


def tokens(proposal) -> int:
    train = proposal.values["train"]
    return train["steps"] * train["global_batch_size"] * proposal.values["samples"]["seq_len"]


CASES = [
    Request(data(text_bytes), hardware, "run", hours)
    for text_bytes, hardware, hours in itertools.product(
        (2 * 10**6, 10**8, 5 * 10**10), (LAPTOP, SERVER, Hardware(3, 8 * GB, GB)), (0.05, 2.0, 500.0)
    )
]


@pytest.mark.parametrize("request_", CASES, ids=lambda r: f"{r.data.text_bytes:.0e}-{r.hardware.cpus}-{r.hours:g}")
def test_it_loads_and_fits(request_: Request) -> None:
    proposal = propose(request_)
    config = RunConfig.parse(proposal.values, where="here")
    assert proposal.plan.memory_bytes <= request_.hardware.memory_bytes
    assert config.train.num_workers <= max(len(request_.hardware.gpus), request_.hardware.cpus)
    slots = request_.data.text_bytes * SLOTS_PER_TEXT_BYTE
    fewest = 200 * 16 * config.samples.seq_len  # so many are read however little time or text there is
    assert tokens(proposal) <= max(MOST_EPOCHS * slots, fewest)
    assert proposal.plan.seconds is not None
    if tokens(proposal) > fewest:
        assert proposal.plan.stages["train"].seconds <= 0.86 * 3600 * request_.hours


@pytest.mark.parametrize("hardware", [LAPTOP, SERVER], ids=["laptop", "server"])
def test_more_hours_and_more_text_never_mean_less(hardware: Hardware) -> None:
    by_hours = [propose(Request(data(10**10), hardware, "run", hours)) for hours in (0.1, 1.0, 10.0, 100.0, 1000.0)]
    by_text = [propose(Request(data(10**size), hardware, "run", 100.0)) for size in (7, 8, 9, 10)]
    for proposals in (by_hours, by_text):
        widths = [proposal.values["model"]["hidden_size"] for proposal in proposals]
        assert widths == sorted(widths)
        assert widths[0] < widths[-1]


def test_the_model_is_the_largest_that_sees_enough() -> None:
    request = Request(data(10**10), LAPTOP, "run", 40.0)
    proposal = propose(request)
    model, seen = proposal.values["model"], tokens(proposal)
    chosen = (model["num_hidden_layers"], model["hidden_size"])
    place = LADDER.index(chosen)
    assert 0 < place < len(LADDER) - 1
    assert seen / (12 * chosen[0] * chosen[1] ** 2) >= TOKENS_PER_WEIGHT
    assert choose._of_size(LADDER[place + 1], request).tokens_per_weight < TOKENS_PER_WEIGHT


@pytest.mark.parametrize("request_", CASES, ids=lambda r: f"{r.data.text_bytes:.0e}-{r.hardware.cpus}-{r.hours:g}")
def test_the_momentum_is_renewed_often_enough(request_: Request) -> None:
    """Few steps take a shorter memory: it is renewed at least as often as in 200 steps with β 0.945."""
    proposal = propose(request_)
    steps, optimizer = proposal.values["train"]["steps"], RunConfig.parse(proposal.values, where="here").optimizer
    assert steps * (1 - (optimizer.beta or 0.965)) >= 11
    assert ("beta" in proposal.values["optimizer"]) == ("optimizer.beta" in proposal.reasons) == (steps <= 2500)


def test_the_vocabulary_is_no_larger_than_the_text_can_fill() -> None:
    def size(text_bytes: int, num_words: int) -> int:  # 0.3 MB were looked at
        request = Request(data(text_bytes, num_words=num_words, chinese_share=1.0), LAPTOP, "run", 1.0)
        return propose(request).values["tokenizer"]["vocab_size"]

    assert size(10**6, 1062) == 1200
    assert 1200 < size(5 * 10**6, 1062) < 2076  # of so much of these laws, 2,076 characters and words occur twice
    assert size(10**8, 20_000) == 8192
    assert size(10**6, 20) == 300


def test_documents_of_one_sentence_make_no_pairs() -> None:
    proposal = propose(Request(data(10**8, pair_share=0.0), LAPTOP, "run", 1.0))
    config = RunConfig.parse(proposal.values, where="here")
    assert not config.samples.nsp
    assert "too few pairs" in proposal.reasons["samples.nsp"]


def test_what_cannot_become_an_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"about 10 kB of text is too little.*100 MB"):
        propose(Request(data(10_000), LAPTOP, "run", 1.0))
    with pytest.raises(ConfigError, match=r"50 MB of memory is free.*smallest model needs"):
        propose(Request(data(10**8), Hardware(2, 50 * 10**6, GB), "run", 1.0))


def test_it_warns_of_a_small_disk_of_copies_and_of_many_passes() -> None:
    request = Request(data(2 * 10**6, repeated_share=0.5), Hardware(2, 16 * GB, 10**6), "run", 1.0)
    said = list(find_warnings(request, propose(request)))
    assert len(said) == 2
    assert "disk" in said[0]
    assert "50% of the documents" in said[1]
    request = Request(data(10**6, mean_bytes=100.0, repeated_share=0.9), LAPTOP, "run", 1.0)
    assert any("times, which teaches little" in line for line in find_warnings(request, propose(request)))
