"""Rows of rare tokens under sign steps: how they run off to ±1/λ, and what keeps them (https://kexue.fm/archives/9736).

First the effect itself in NumPy float64, then that the library's optimizers move the same rows in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # the name everybody reads
from torch import Tensor, nn

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.optim import Tiger, build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.embedding_rows import embedding_sizes
from kexue_train.optim.options import Options
from kexue_train.optim.rules import AdamWRule
from tests.reference.two_tokens import (
    FREQUENT,
    RARE,
    WIDTH,
    NumpyAdamW,
    NumpyTiger,
    Optimizer,
    Tying,
    gradient,
    tables,
    train,
    windows,
)

LR, DECAY, BETA = 4e-3, 0.01, 0.965
STEPS = 4000
DEAD_ZONE = 1e-8

REMEDIES: dict[str, tuple[Callable[[], Optimizer], Tying]] = {
    "lazy rows": (partial(NumpyTiger, LR, lazy=True), "untied"),
    "tied": (partial(NumpyTiger, LR), "tied"),
    "half-swapped": (partial(NumpyTiger, LR), "half_swapped"),
    "adamw": (partial(NumpyAdamW, 1e-3), "untied"),
    "dead zone": (partial(NumpyTiger, LR, dead_zone=DEAD_ZONE), "untied"),
}


def largest(row: np.ndarray) -> float:
    return float(np.abs(row).max())


# --- the effect ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_one_occurrence_drives_every_element_of_a_row_to_the_inverse_decay(seed):
    # In all Σα = 16: logistic growth from 0.02 is then within 0.1 % of its limit, later where signs must turn first.
    history = train(NumpyTiger(LR), seed=seed, steps=STEPS)
    only = gradient(*tables(seed), next(windows(1, seed)), "untied")[RARE]
    np.testing.assert_allclose(history[-1, RARE], -np.sign(only) / DECAY, rtol=0.01)
    assert largest(history[-1, FREQUENT]) < 1
    monitor = embedding_sizes(torch.from_numpy(history[-1]), DECAY)
    assert (monitor["embedding_drifted_rows"], monitor["embedding_max"]) == (0.5, largest(history[-1]))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", REMEDIES)
def test_each_remedy_keeps_the_row_near_its_start(name, seed):
    """Within ten times its start, where the row runs off to thousands of times.

    Chance alone makes rows grow: signs last for 1/(1-β) = 29 steps, so a row's size by about e^(29 α² STEPS / 2) = 2.5.
    """
    make, tying = REMEDIES[name]
    history = train(make(), seed=seed, steps=STEPS, tying=tying)
    assert largest(history[:, RARE]) < 10 * largest(history[0])
    assert embedding_sizes(torch.from_numpy(history[-1]), DECAY)["embedding_drifted_rows"] == 0


@pytest.mark.parametrize("tying", ["tied", "half_swapped"])
def test_tying_is_no_cure_where_a_feature_never_changes_its_sign(tying):
    """The push of the softmax, p · h, is tiny but always of one sign then, and its size does not count."""
    history = train(NumpyTiger(LR), seed=0, steps=STEPS, tying=tying, contexts_vary=False)
    assert largest(history[-1, RARE]) > 0.99 / DECAY


def test_a_dead_zone_ends_the_drift_when_the_momentum_falls_below_it():
    history = train(NumpyTiger(LR, dead_zone=DEAD_ZONE), seed=0, steps=STEPS)
    momenta = (1 - BETA) * gradient(*tables(0), next(windows(1, 0)), "untied")[RARE]
    last = 1 + math.floor(math.log(np.abs(momenta).max() / DEAD_ZONE) / -math.log(BETA))
    moves = np.abs(np.diff(history[:, RARE], axis=0)).max(1) / np.sqrt((history[:-1, RARE] ** 2).mean(1))
    assert moves[:last] == pytest.approx(LR, rel=2e-3)  # a whole step, but for λθ below 0.1 %
    assert moves[last:].max() < 1e-3 * LR  # decay alone


def logistic(start: float, total: float) -> float:
    limit = 1 / DECAY
    return limit / (1 + (limit / start - 1) * math.exp(-total))


def tolerance(rates: list[float]) -> float:
    """A step takes log(θ/(limit - θ)) forward by α + α²(x - 1/2) + O(α³), x = λθ from 0 to 1: by α but for α²/2."""
    return 1.01 * sum(rate**2 for rate in rates) / 2


@pytest.mark.parametrize(
    "rates",
    [[1e-3] * 2000, [1e-3] * 9210, [2e-2, 1e-3] * 438, [2e-3] * 7000],
    ids=lambda rates: f"sum {sum(rates):.2f}",
)
def test_growth_is_logistic_in_the_sum_of_learning_rates(rates):
    # For a row whose elements all grow alike; 9.21 takes it from 0.01 to 50, half of the limit.
    optimizer, table, seen = NumpyTiger(0.0), np.full((1, 4), 0.01), np.array([True])
    for step, rate in enumerate(rates):
        optimizer.lr = rate
        table = optimizer.step(table, np.full((1, 4), -1.0 if step == 0 else 0.0), seen)
    np.testing.assert_allclose(table, logistic(0.01, sum(rates)), rtol=tolerance(rates))


# --- a momentum that is forgotten ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "smallest", "published_updates"),
    [(torch.float32, 2.0**-149, 2560), (torch.bfloat16, 2.0**-133, 2240), (torch.float16, 2.0**-24, 131)],
    ids=["fp32", "bf16", "fp16"],
)
def test_a_rounded_momentum_gets_stuck_above_zero(dtype, smallest, published_updates):
    """β n rounds to n once (1-β) n < 1/2: at 14 of the smallest numbers there are, 2e-44 in fp32, for ever."""
    momentum, updates = torch.full((), 1e-4, dtype=dtype), 0
    while not torch.equal(after := momentum * BETA, momentum):
        momentum, updates = after, updates + 1
    assert momentum.item() == math.floor(0.5 / (1 - BETA)) * smallest
    assert updates == pytest.approx(published_updates, rel=0.05)


def row_of_one_gradient(**options: Any) -> tuple[nn.Embedding, Tiger]:
    """A row of 0.02 in fp32 with a momentum of 1e-4 and no gradient ever after."""
    module = nn.Embedding(1, 4, _weight=torch.full((1, 4), 0.02))
    optimizer = Tiger(build_param_groups(module), lr=1e-3, beta=BETA, weight_decay=0.0, **options)
    optimizer.momentum(module.weight).fill_(-1e-4)
    return module, optimizer


def rest(module: nn.Embedding, optimizer: Tiger, steps: int) -> Tensor:
    """The weight after ``steps`` windows without a gradient."""
    for _ in range(steps):
        optimizer.step()
    return module.weight.detach().clone()


def test_the_stuck_tail_moves_a_row_at_full_size_and_a_dead_zone_ends_it():
    module, optimizer = row_of_one_gradient()
    before, after = rest(module, optimizer, 3000), rest(module, optimizer, 1)
    assert optimizer.momentum(module.weight).abs().max().item() == 14 * 2.0**-149
    torch.testing.assert_close(after / before, torch.full((1, 4), 1.001))
    module, optimizer = row_of_one_gradient(dead_zone=1e-30)
    alive = math.floor(math.log(1e-4 / 1e-30) / -math.log(BETA))
    before, after = rest(module, optimizer, alive), rest(module, optimizer, 3000 - alive)
    torch.testing.assert_close(before, torch.full((1, 4), 0.02 * 1.001**alive), rtol=1e-4, atol=0)  # 1680 roundings
    assert torch.equal(after, before)


# --- the library's optimizers ----------------------------------------------------------------------------------------


class TwoTokens(nn.Module):
    """The toy of ``tests/reference/two_tokens.py``, differentiated by torch."""

    def __init__(self, seed: int, tying: Tying) -> None:
        super().__init__()
        table, head = map(torch.from_numpy, tables(seed))
        self.embedding, self.tying = nn.Embedding(2, WIDTH, _weight=table), tying
        self.register_buffer("head", head)

    def forward(self, tokens: Tensor, signs: Tensor) -> Tensor:
        """The loss of examples [n] with contexts [n, width]."""
        features = signs * self.embedding(tokens)
        if self.tying == "half_swapped":
            features = features.roll(WIDTH // 2, -1)
        logits = features @ (self.head if self.tying == "untied" else self.embedding.weight).T
        return F.cross_entropy(logits, tokens)


def build(module: nn.Module, name: str, accumulation_steps: int) -> HiddenAccumulation:
    """The library's optimizer for a remedy, or for none."""
    groups, common = build_param_groups(module), {"accumulation_steps": accumulation_steps}
    if name == "adamw":
        defaults = {"lr": 1e-3, "beta": 0.9, "weight_decay": DECAY}
        return HiddenAccumulation(groups, AdamWRule(), defaults, **common)
    options = Options(lazy_rows=name == "lazy rows")
    dead_zone = DEAD_ZONE if name == "dead zone" else 0.0
    return Tiger(groups, LR, BETA, DECAY, **common, dead_zone=dead_zone, options=options)


@pytest.mark.parametrize(
    ("name", "parts"),
    [(name, parts) for name in ["none", *REMEDIES] for parts in (1, 4) if (name, parts) != ("adamw", 4)],
)
def test_the_library_moves_rows_as_the_reference(name, parts):
    """Windows of 1 and of 4 micro-batches; AdamW averages other squares in the latter (https://kexue.fm/archives/8634)."""
    make, tying = REMEDIES.get(name, (partial(NumpyTiger, LR), "untied"))
    expected, module = train(make(), seed=0, steps=400, tying=tying), TwoTokens(0, tying)
    optimizer = build(module, name, parts)
    for window, after in zip(windows(400, 0), expected[1:], strict=True):
        for signs in torch.from_numpy(window.signs).chunk(parts):
            tokens = torch.full((len(signs),), window.token)
            optimizer.observe_tokens(tokens)
            module(tokens, signs).backward()
            optimizer.step()
        # fp64; no momentum is so near to zero that rounding could change its sign.
        np.testing.assert_allclose(module.embedding.weight.detach().numpy(), after, atol=1e-12, rtol=0)


def test_the_library_grows_a_row_by_the_logistic_formula():
    module, rates = nn.Embedding(1, 4, _weight=torch.full((1, 4), 0.01, dtype=torch.float64)), [4e-3, 1e-3] * 1842
    optimizer = Tiger(build_param_groups(module), weight_decay=DECAY)
    module.weight.sum().neg().backward()
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    np.testing.assert_allclose(module.weight.detach().numpy(), logistic(0.01, sum(rates)), rtol=tolerance(rates))


def test_a_lazy_row_rests_while_its_momentum_decays():
    module = TwoTokens(0, "tied")
    optimizer = build(module, "lazy rows", 3)
    rows, momenta = [], []
    for window in ([FREQUENT, RARE, FREQUENT], [FREQUENT] * 3, [RARE, FREQUENT, FREQUENT]):
        for number, token in enumerate(window):
            signs = torch.from_numpy(next(windows(1, number)).signs)
            optimizer.observe_tokens(torch.full((len(signs),), token), torch.tensor([-100]))
            module(torch.full((len(signs),), token), signs).backward()
            optimizer.step()
        rows.append(module.embedding.weight[RARE].detach().clone())
        momenta.append(optimizer.momentum(module.embedding.weight)[RARE].clone())
    assert not torch.equal(rows[0], torch.from_numpy(tables(0)[0][RARE]))
    assert torch.equal(rows[1], rows[0])  # tied, so it has a gradient; neither that nor decay moves it
    assert not torch.equal(rows[2], rows[1])
    assert not torch.equal(momenta[1], momenta[0])


def test_a_model_moves_the_rows_of_its_inputs_and_labels_alone():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = RoFormerV2ForPreTraining(RoFormerV2Config(vocab_size=20, **sizes, tied_output="half_swapped"))
    table = model.get_input_embeddings().weight
    optimizer = Tiger(build_param_groups(model), options=Options(lazy_rows=True))
    before = table.detach().clone()
    input_ids, labels = torch.tensor([[2, 4, 9, 3]]), torch.tensor([[-100, 7, 9, -100]])
    optimizer.observe_tokens(input_ids, labels)
    model(input_ids, labels=labels).loss.backward()
    optimizer.step()
    moved = (table.detach() != before).any(1)
    assert moved.nonzero().flatten().tolist() == [2, 3, 4, 7, 9]
