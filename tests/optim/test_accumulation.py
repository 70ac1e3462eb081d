"""What every accumulating optimizer promises, against explicit accumulation, NumPy and torch's own optimizers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from kexue_train.foundation.errors import TrainingError
from kexue_train.optim import build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.gradients import keep_mask
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role
from kexue_train.optim.rules import AdamWRule, Rule, SgdmRule
from kexue_train.optim.tiger_update import TigerRule
from tests.reference.tiger_numpy import step_size, tiger_micro_steps
from tests.reference.toy_model import ROLES, Toy, draw_gradients, parameters_equal, stacked

SETTINGS = {"lr": 2e-3, "weight_decay": 0.01}
TOLERANCE = 1e-14


def optimizer_for(toy: Toy, rule: Rule, k: int = 1, **options: Any) -> HiddenAccumulation:
    defaults = {**SETTINGS, "beta": rule.moments[0].beta}
    return HiddenAccumulation(build_param_groups(toy), rule, defaults, accumulation_steps=k, options=Options(**options))


def train(toy: Toy, optimizer: HiddenAccumulation, gradients: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    for gradient in gradients:
        toy.backward(gradient)
        optimizer.step()
    return toy.numpy()


def assert_close(left: dict[str, np.ndarray], right: dict[str, np.ndarray], tolerance: float = TOLERANCE) -> None:
    for name in left:
        np.testing.assert_allclose(left[name], right[name], atol=tolerance, rtol=0, err_msg=name)


# --- the two ways to accumulate ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rule", [TigerRule(), SgdmRule()], ids=["tiger", "sgdm"])
def test_accumulating_in_the_momentum_or_in_the_gradient_is_the_same(rule, k):
    gradients, ends = draw_gradients(4 * k), []
    for accumulate in ("momentum", "gradient"):
        toy = Toy()
        ends.append(train(toy, optimizer_for(toy, rule, k, accumulate=accumulate), gradients))
    assert_close(*ends)


def test_gradients_add_up_over_a_window_and_are_freed_at_its_end():
    toy, gradients = Toy(), draw_gradients(3)
    optimizer = optimizer_for(toy, TigerRule(), 3, accumulate="gradient")
    train(toy, optimizer, gradients[:2])
    total = gradients[0]["matrix"] + gradients[1]["matrix"]
    np.testing.assert_allclose(toy.matrix.grad.numpy(), total, atol=TOLERANCE)
    train(toy, optimizer, gradients[2:])
    assert all(parameter.grad is None for parameter in toy.parameters())


def test_sgdm_equals_torch_with_the_learning_rate_that_a_moving_average_needs():
    # m = β m + (1-β) g moves as torch's b = β b + g with lr (1-β), started from b = g.
    ours, theirs, gradients = Toy(), Toy(), draw_gradients(12)
    defaults = {"lr": 0.1, "weight_decay": 0.0, "beta": 0.9}
    optimizer = HiddenAccumulation(build_param_groups(ours), SgdmRule(), defaults, accumulation_steps=2)
    end = train(ours, optimizer, gradients)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1 * 0.1, momentum=0.9)
    for first, second in zip(gradients[::2], gradients[1::2], strict=True):
        theirs.backward({name: (first[name] + second[name]) / 2 for name in first})
        reference.step()
        reference.zero_grad()
    assert_close(end, theirs.numpy())


@pytest.mark.parametrize("k", [1, 3])
def test_adamw_on_accumulated_gradients_equals_torch(k):
    ours, theirs, gradients = Toy(), Toy(), draw_gradients(5 * k)
    end = train(ours, optimizer_for(ours, AdamWRule(), k, accumulate="gradient"), gradients)
    groups = [{**g, "weight_decay": 0.0 if g["role"] is Role.VECTOR else 0.01} for g in build_param_groups(theirs)]
    reference = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.999), eps=1e-8)
    for start in range(0, len(gradients), k):
        window = gradients[start : start + k]
        theirs.backward({name: np.mean(stacked(window, name), axis=0) for name in ROLES})
        reference.step()
        reference.zero_grad()
    assert_close(end, theirs.numpy(), 1e-12)


def hidden_adamw(theta: np.ndarray, gradients: list[np.ndarray], k: int, decay: float) -> np.ndarray:
    """The published recursion over micro-batches, v with the mean of squares."""
    momentum, square = np.zeros_like(theta), np.zeros_like(theta)
    for t, gradient in enumerate(gradients, start=1):
        chi = float((t - 1) % k == 0)
        momentum = (1 + (0.9 - 1) * chi) * momentum + (1 - 0.9) / k * gradient
        square = (1 + (0.999 - 1) * chi) * square + (1 - 0.999) / k * gradient**2
        if t % k == 0:
            corrected = momentum / (1 - 0.9 ** (t / k)) / (np.sqrt(square / (1 - 0.999 ** (t / k))) + 1e-8)
            theta = theta - 2e-3 * (corrected + decay * theta)
    return theta


@pytest.mark.parametrize("k", [1, 2, 5])
def test_adamw_accumulating_in_its_moments_equals_the_published_recursion(k):
    toy, gradients = Toy(), draw_gradients(4 * k)
    start, end = toy.numpy(), train(toy, optimizer_for(toy, AdamWRule(), k), gradients)
    for name, role in ROLES.items():
        expected = hidden_adamw(start[name], stacked(gradients, name), k, 0.0 if role == "vector" else 0.01)
        np.testing.assert_allclose(end[name], expected, atol=1e-12, rtol=0, err_msg=name)


def test_embeddings_may_follow_another_rule():
    toy, gradients = Toy(), draw_gradients(8)
    start, groups = toy.numpy(), build_param_groups(toy)
    for group in groups:
        if group["role"] is Role.EMBEDDING:
            group |= {"rule": AdamWRule(), "beta": 0.9}
    optimizer = HiddenAccumulation(groups, TigerRule(), {**SETTINGS, "beta": 0.965}, accumulation_steps=2)
    end = train(toy, optimizer, gradients)
    np.testing.assert_allclose(
        end["table"], hidden_adamw(start["table"], stacked(gradients, "table"), 2, 0.01), atol=1e-12
    )
    matrix = tiger_micro_steps(start["matrix"], stacked(gradients, "matrix"), "matrix", **SETTINGS, beta=0.965, k=2)[-1]
    np.testing.assert_allclose(end["matrix"], matrix, atol=TOLERANCE)
    assert set(optimizer.named_moments()) == {
        "momentum.embedding.weight", "square.embedding.weight", "momentum.matrix", "momentum.vector"
    }  # fmt: skip


@pytest.mark.parametrize("weights", [[1.5, 0.5], [0.25, 1.75], [2.0, 0.0]])
def test_weighted_micro_batches_equal_the_weighted_mean(weights):
    toy, gradients = Toy(), draw_gradients(6)
    start, optimizer = toy.numpy(), optimizer_for(toy, TigerRule(), 2)
    for index, gradient in enumerate(gradients):
        optimizer.micro_batch_weight = weights[index % 2]
        toy.backward(gradient)
        optimizer.step()
    means = [
        (weights[0] * first["matrix"] + weights[1] * second["matrix"]) / 2
        for first, second in zip(gradients[::2], gradients[1::2], strict=True)
    ]
    expected = tiger_micro_steps(start["matrix"], means, "matrix", **SETTINGS, beta=0.965, k=1)[-1]
    np.testing.assert_allclose(toy.numpy()["matrix"], expected, atol=TOLERANCE)


def test_the_window_may_change_its_length_between_windows():
    toy, gradients = Toy(), draw_gradients(2 + 3 * 3)
    optimizer = optimizer_for(toy, TigerRule(), 2)
    train(toy, optimizer, gradients[:2])
    optimizer.accumulation_steps = 3
    moved = []
    for gradient in gradients[2:]:
        toy.backward(gradient)
        moved.append(optimizer.step())
    assert moved == [False, False, True] * 3
    assert optimizer.steps == 4


# --- gradients that are not finite ------------------------------------------------------------------------------------


def with_bad(gradients: list[dict[str, np.ndarray]], *places: int) -> list[dict[str, np.ndarray]]:
    for place in places:
        gradients[place]["matrix"].flat[3] = math.inf
    return gradients


@pytest.mark.parametrize("accumulate", ["momentum", "gradient"])
@pytest.mark.parametrize(("policy", "left"), [("shrink", 0.99), ("skip", 1.0)])
def test_a_bad_tensor_shrinks_or_stays(policy, left, accumulate):
    toy = Toy()
    before, optimizer = toy.numpy(), optimizer_for(toy, TigerRule(), 2, on_nonfinite=policy, accumulate=accumulate)
    after = train(toy, optimizer, with_bad(draw_gradients(2), 1))
    assert np.array_equal(after["matrix"], before["matrix"] - (1 - left) * before["matrix"])
    assert not np.array_equal(after["table"], before["table"])
    assert torch.isfinite(optimizer.momentum(toy.matrix)).all()


def test_a_bad_gradient_ends_training_if_asked_to_at_the_end_of_its_step():
    toy, optimizer = Toy(), None
    optimizer = optimizer_for(toy, TigerRule(), 2, on_nonfinite="raise")
    first, second = with_bad(draw_gradients(2), 0)
    train(toy, optimizer, [first])
    with pytest.raises(TrainingError, match="the gradient of matrix was NaN or infinite"):
        train(toy, optimizer, [second])


def test_bad_steps_are_counted_by_tensor_and_in_a_row():
    toy = Toy()
    optimizer = optimizer_for(toy, TigerRule(), 2)
    train(toy, optimizer, with_bad(draw_gradients(16), 2, 4, 5, 7, 14))  # steps 2, 3, 4 and 8
    assert optimizer.nonfinite_report() == ({"matrix": 4}, 3)
    train(toy, optimizer, draw_gradients(2))
    assert optimizer.nonfinite_report() == ({}, 0)


def test_a_run_of_bad_steps_is_counted_across_reports():
    toy = Toy()
    optimizer = optimizer_for(toy, TigerRule())
    longest = []
    for _ in range(3):
        train(toy, optimizer, with_bad(draw_gradients(2), 0, 1))
        longest.append(optimizer.nonfinite_report().in_a_row)
    assert longest == [2, 4, 6]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["hard", "soft"])
def test_clipping_accumulated_gradients_is_by_the_norm_of_the_whole_step(form):
    toy, gradients = Toy(), draw_gradients(2)
    optimizer = optimizer_for(toy, SgdmRule(), 2, accumulate="gradient", clip_norm=0.5, clip_form=form)
    train(toy, optimizer, gradients)
    mean = {name: np.mean(stacked(gradients, name), axis=0) for name in ROLES}
    norm = math.sqrt(sum((g**2).sum() for g in mean.values()))
    factor = min(1, 0.5 / norm) if form == "hard" else 0.5 / (norm + 0.5)
    np.testing.assert_allclose(optimizer.momentum(toy.matrix), 0.1 * factor * mean["matrix"], rtol=1e-12)


def test_clipping_in_the_momentum_is_by_tensor_and_micro_batch():
    toy, gradients = Toy(), draw_gradients(2)
    optimizer = optimizer_for(toy, SgdmRule(), 2, clip_norm=0.5)
    train(toy, optimizer, gradients)
    clipped = [g * min(1, 0.5 / np.linalg.norm(g)) for g in stacked(gradients, "matrix")]
    np.testing.assert_allclose(optimizer.momentum(toy.matrix), 0.1 * np.mean(clipped, axis=0), rtol=1e-12)


def test_gradient_dropout_is_one_mask_for_all_micro_batches_of_a_step():
    toy, gradients = Toy(), draw_gradients(4)
    optimizer = optimizer_for(toy, SgdmRule(), 2, gradient_keep=0.5, seed=3)
    train(toy, optimizer, gradients)
    index = [name for group in build_param_groups(toy) for name in group["names"]].index("matrix")
    masks = [keep_mask(24, keep=0.5, seed=3, step=step, tensor=index, device="cpu").numpy() for step in range(2)]
    expected = np.zeros((4, 6))
    for step, mask in enumerate(masks):
        mean = np.mean(stacked(gradients[2 * step : 2 * step + 2], "matrix"), axis=0)
        expected = 0.9 * expected + 0.1 * mean * mask.reshape(4, 6) / 0.5
    np.testing.assert_allclose(optimizer.momentum(toy.matrix), expected, atol=TOLERANCE)


def test_weissi_takes_its_share_of_matrices_only():
    gradients, ends = draw_gradients(1), []
    for weissi in (0.0, 0.3):
        toy = Toy()
        before = toy.numpy()
        ends.append(train(toy, optimizer_for(toy, TigerRule(), weissi=weissi), gradients))
    share = 2e-3 * 0.3 / (before["matrix"] ** 2).sum()
    np.testing.assert_allclose(ends[1]["matrix"], ends[0]["matrix"] - share * before["matrix"], atol=TOLERANCE)
    assert parameters_equal({n: ends[0][n] for n in ("table", "vector")}, ends[1])


def test_the_second_weissi_term_moves_matrices_only():
    gradients, ends = draw_gradients(1), []
    for sparsity in (0.0, 0.3):
        toy = Toy()
        before = toy.numpy()["matrix"]
        optimizer = optimizer_for(toy, TigerRule(), weissi_sparsity=sparsity)
        ends.append(train(toy, optimizer, gradients))
    norm, absolute = np.linalg.norm(before), np.abs(before).sum()
    shift = 2e-3 * 0.3 / norm
    moved = np.sign(before) * np.minimum(shift, np.abs(before)) - shift * absolute / norm**2 * before
    np.testing.assert_allclose(ends[1]["matrix"], ends[0]["matrix"] - moved, atol=TOLERANCE)
    assert np.abs(moved).max() > 1e-5
    assert parameters_equal({n: ends[0][n] for n in ("table", "vector")}, ends[1])


def test_lazy_rows_move_only_with_their_tokens_while_momentum_decays_everywhere():
    toy, gradients = Toy(), draw_gradients(4)
    before = toy.numpy()["table"]
    optimizer = optimizer_for(toy, TigerRule(), 2, lazy_rows=True)
    for gradient, ids in zip(gradients[:2], ([1, 1], [4, -100]), strict=True):
        toy.backward(gradient)
        optimizer.observe_tokens(torch.tensor(ids))
        optimizer.step()
    moved = (toy.numpy()["table"] != before).any(-1)
    assert moved.tolist() == [False, True, False, False, True, False, False]
    mean = np.mean(stacked(gradients[:2], "table"), axis=0)
    np.testing.assert_allclose(optimizer.momentum(toy.embedding.weight), 0.035 * mean, atol=TOLERANCE)
    expected = before - step_size(before, "embedding", 2e-3) * (np.sign(mean) + 0.01 * before)
    np.testing.assert_allclose(toy.numpy()["table"][[1, 4]], expected[[1, 4]], atol=TOLERANCE)
    train(toy, optimizer, gradients[2:])  # a window without any token
    assert np.array_equal(toy.numpy()["table"][[0, 2]], before[[0, 2]])


def test_a_dead_zone_ends_the_steps_of_a_small_momentum():
    toy = Toy()
    optimizer = optimizer_for(toy, TigerRule(dead_zone=1e-6))
    before = toy.numpy()["vector"]
    optimizer.momentum(toy.vector).copy_(torch.tensor([1e-3, 1e-7, -1e-7, -1e-3, 0.0], dtype=torch.float64))
    optimizer.step()
    assert np.sign(before - toy.numpy()["vector"]).tolist() == [1, 0, 0, -1, 0]


# --- bfloat16 states --------------------------------------------------------------------------------------------------


def test_half_precision_weights_are_refused_without_stochastic_rounding():
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(ValueError, match="rounding to the nearest would lose most steps"):
            optimizer_for(Toy(dtype), TigerRule())
    with pytest.raises(ValueError, match="which needs bfloat16 weights"):
        optimizer_for(Toy(torch.float32), TigerRule(), bf16_states=True)


def test_bf16_states_take_four_bytes_per_parameter():
    toy = Toy(torch.bfloat16)
    optimizer = optimizer_for(toy, TigerRule(), 4, bf16_states=True)
    kept = [*toy.parameters(), *optimizer.named_moments().values()]
    assert sum(t.numel() * t.element_size() for t in kept) == 4 * sum(p.numel() for p in toy.parameters())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    assert sum(storages.values()) == 4 * sum(p.numel() for p in toy.parameters())


def test_bf16_states_follow_fp32_on_average():
    # Steps of 1e-4 relative to weights are far below bf16's spacing of 4e-3 to 8e-3: nearest rounding would not move.
    gradients = [draw_gradients(1)[0]] * 8
    wide = Toy(torch.bfloat16).float()
    defaults = {"lr": 1e-4, "weight_decay": 0.01, "beta": 0.965}
    start = wide.numpy()
    target = train(
        wide, HiddenAccumulation(build_param_groups(wide), TigerRule(), defaults, accumulation_steps=2), gradients
    )
    changes = []
    for seed in range(400):
        toy = Toy(torch.bfloat16)
        options = Options(bf16_states=True, seed=seed)
        optimizer = HiddenAccumulation(
            build_param_groups(toy), TigerRule(), defaults, accumulation_steps=2, options=options
        )
        train(toy, optimizer, gradients)
        changes.append(toy.numpy()["matrix"] - start["matrix"])
    mean, error = np.mean(changes, axis=0), np.std(changes, axis=0) / math.sqrt(len(changes))
    deviation = np.abs(mean - (target["matrix"] - start["matrix"])) / np.maximum(error, 1e-9)
    assert deviation.max() < 5
    assert np.abs(mean).mean() > 5 * error.mean()  # and that is not because nothing can be seen


def test_bf16_states_are_the_same_every_time():
    ends = []
    for _ in range(2):
        toy = Toy(torch.bfloat16)
        train(toy, optimizer_for(toy, TigerRule(), 2, bf16_states=True, seed=1), draw_gradients(6))
        ends.append([parameter.detach().clone() for parameter in toy.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*ends, strict=True))


# --- names of before --------------------------------------------------------------------------------------------------


def test_names_of_before_work_for_one_release_and_warn():
    from kexue_train.optim import build, library

    toy = Toy()
    optimizer = optimizer_for(toy, TigerRule(), 2, lazy_rows=True)
    toy.backward(draw_gradients(1)[0])
    with pytest.warns(DeprecationWarning, match="observe_tokens"):
        optimizer.saw_tokens(torch.tensor([1]))
    (seen,) = optimizer.state_dict()["seen"].values()
    assert seen.nonzero().tolist() == [[1]]
    optimizer.step()
    with pytest.warns(DeprecationWarning, match="micro_steps_done"):
        assert optimizer.filled == 1
    with pytest.warns(DeprecationWarning, match="AccumulatingOptimizer"):
        assert build.WindowedOptimizer is build.AccumulatingOptimizer
    with pytest.warns(DeprecationWarning, match="GradientAccumulation"):
        assert library.LibraryWindows is library.GradientAccumulation
