"""Tiger against the published recursion, and what an optimizer without a gradient buffer promises."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from kexue_train.model import RoFormerV2Config, RoFormerV2ForPreTraining
from kexue_train.optim import Tiger, build_param_groups, tiger_update_
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role
from tests.reference.tiger_numpy import tiger_micro_steps, tiger_windows
from tests.reference.toy_model import ROLES, Toy, draw_gradients, parameters_equal, stacked

SETTINGS = {"lr": 2e-3, "beta": 0.965, "weight_decay": 0.01}
# float64: a few roundings per step of numbers of order one.
TOLERANCE = 1e-14


def tiger_for(model: nn.Module, k: int = 1, **changes: Any) -> Tiger:
    options = Options(**{name: changes.pop(name) for name in list(changes) if name in Options.__dataclass_fields__})
    return Tiger(build_param_groups(model), **{**SETTINGS, **changes}, accumulation_steps=k, options=options)


def assert_follows_reference(toy: Toy, gradients: list[dict[str, np.ndarray]], k: int) -> None:
    """Every parameter equals the NumPy recursion after every micro-batch."""
    start, optimizer, history = toy.numpy(), tiger_for(toy, k), []
    for gradient in gradients:
        toy.backward(gradient)
        optimizer.step()
        history.append(toy.numpy())
    for name, role in ROLES.items():
        expected = tiger_micro_steps(start[name], stacked(gradients, name), role, **SETTINGS, k=k)
        for actual, wanted in zip(history, expected, strict=True):
            np.testing.assert_allclose(actual[name], wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("k", range(1, 8))
def test_equals_the_published_recursion_at_every_micro_batch(k):
    assert_follows_reference(Toy(), draw_gradients(6 * k), k)


@pytest.mark.parametrize("k", range(1, 8))
def test_equals_plain_tiger_on_the_averaged_gradient(k):
    toy, gradients = Toy(), draw_gradients(6 * k)
    start, optimizer = toy.numpy(), tiger_for(toy, k)
    for gradient in gradients:
        toy.backward(gradient)
        optimizer.step()
    for name, role in ROLES.items():
        expected = tiger_windows(start[name], stacked(gradients, name), role, **SETTINGS, k=k)
        np.testing.assert_allclose(toy.numpy()[name], expected, atol=TOLERANCE, rtol=0)


def test_parameters_move_at_the_end_of_a_window_only():
    toy, moved = Toy(), []
    optimizer = tiger_for(toy, 3)
    for gradient in draw_gradients(9):
        before = toy.numpy()
        toy.backward(gradient)
        said = optimizer.step()
        assert said is not parameters_equal(before, toy.numpy())
        moved.append(said)
    assert moved == [False, False, True] * 3


@pytest.mark.parametrize("k", [1, 3])
def test_first_step_goes_against_the_gradient_by_a_known_length(k):
    toy = Toy()
    start, gradient = toy.numpy(), draw_gradients(1)[0]
    optimizer = tiger_for(toy, k, lr=1e-3, weight_decay=0.0)
    for _ in range(k):
        toy.backward(gradient)
        optimizer.step()
    change = {name: toy.numpy()[name] - start[name] for name in start}
    for name in start:
        assert np.array_equal(np.sign(change[name]), -np.sign(gradient[name]))
    rows = np.sqrt((start["table"] ** 2).mean(-1, keepdims=True))
    np.testing.assert_allclose(np.abs(change["table"]), np.broadcast_to(1e-3 * rows, (7, 5)), rtol=1e-9)
    np.testing.assert_allclose(np.abs(change["matrix"]), 1e-3 * np.sqrt((start["matrix"] ** 2).mean()), rtol=1e-9)
    np.testing.assert_allclose(np.abs(change["vector"]), 0.5e-3, rtol=1e-9)


def test_relative_updates_do_not_depend_on_the_scale():
    small, large = Toy(), Toy()
    with torch.no_grad():
        for parameter in large.parameters():
            parameter.mul_(8.0)
    for toy, scale in ((small, 1.0), (large, 1 / 8)):
        optimizer = tiger_for(toy, weight_decay=0.0)
        for gradient in draw_gradients(5):
            toy.backward(gradient, scale)
            optimizer.step()
    for name in ("table", "matrix"):  # vectors have a step of fixed length
        assert np.array_equal(8.0 * small.numpy()[name], large.numpy()[name])


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("scale", [2.0**16, 2.0**-10])
def test_scaling_the_loss_by_a_power_of_two_changes_no_bit(k, scale):
    plain, scaled = Toy(torch.float32), Toy(torch.float32)
    for toy, factor in ((plain, 1.0), (scaled, scale)):
        optimizer = tiger_for(toy, k)
        for gradient in draw_gradients(5 * k):
            toy.backward(gradient, factor)
            optimizer.step()
    assert parameters_equal(plain.numpy(), scaled.numpy())


def test_vectors_do_not_decay():
    toy = Toy()
    optimizer = tiger_for(toy, weight_decay=1.0)
    before = toy.numpy()
    toy.backward({name: np.zeros_like(value) for name, value in before.items()})
    optimizer.step()
    assert np.array_equal(toy.numpy()["vector"], before["vector"])
    assert not np.array_equal(toy.numpy()["matrix"], before["matrix"])


def test_a_parameter_without_gradient_still_loses_momentum():
    # Its gradient is zero then, and the recursion runs on: decay once per window, whichever micro-batches it missed.
    toy, gradients = Toy(), draw_gradients(12)
    optimizer, expected = tiger_for(toy, 3), np.zeros_like(gradients[0]["matrix"])
    absent = {3, 4, 5, 6, 10}  # a whole window, the first of one, the middle of one
    for index, gradient in enumerate(gradients):
        toy.backward({name: g for name, g in gradient.items() if name != "matrix" or index not in absent})
        optimizer.step()
        expected = (0.965 if index % 3 == 0 else 1.0) * expected + 0.035 / 3 * gradient["matrix"] * (
            index not in absent
        )
        if index % 3 == 2:
            np.testing.assert_allclose(optimizer.momentum(toy.matrix).numpy(), expected, atol=TOLERANCE, rtol=0)


# --- gradients that are not finite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [[3], [4], [5], [3, 5], [3, 4, 5]], ids=["first", "middle", "last", "two", "all"])
@pytest.mark.parametrize("name", list(ROLES))
def test_a_bad_gradient_is_left_out_and_its_tensor_shrinks_once(name, place, value):
    gradients = draw_gradients(12)
    for index in place:
        gradients[index][name].flat[2] = value
    # The other two parameters follow the recursion of their own, finite gradients: nothing else is affected.
    assert_follows_reference(Toy(), gradients, 3)


def test_the_shrink_is_one_hundredth_of_that_tensor():
    toy, gradient = Toy(), draw_gradients(1)[0]
    gradient["table"][0, 0] = math.nan
    before, optimizer = toy.numpy(), tiger_for(toy)
    toy.backward(gradient)
    assert optimizer.step()
    assert np.array_equal(toy.numpy()["table"], 0.99 * before["table"])
    assert optimizer.momentum(toy.embedding.weight).abs().max() == 0


# --- memory ----------------------------------------------------------------------------------------------------------


def roformer(*, recompute: bool) -> RoFormerV2ForPreTraining:
    torch.manual_seed(0)
    config = RoFormerV2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = RoFormerV2ForPreTraining(config).train()
    if recompute:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of transformers have another name for it
            model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recomputed"])
def test_at_most_one_gradient_is_alive_and_none_after_backward(recompute):
    model = roformer(recompute=recompute)
    parameters, alive = list(model.parameters()), []
    for parameter in parameters:  # registered before Tiger's hooks, so each sees the gradient that Tiger will free
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in parameters))
        )
    optimizer = tiger_for(model, 2)
    for _ in range(4):
        ids = torch.randint(1, 50, (2, 9))
        model(ids, labels=ids, next_sentence_label=torch.tensor([0, 1])).loss.backward()
        assert all(parameter.grad is None for parameter in parameters)
        optimizer.step()
    assert alive == [1] * (4 * len(parameters))


def test_one_state_tensor_per_parameter():
    model = roformer(recompute=False)
    optimizer = tiger_for(model, 4)
    parameters = list(model.parameters())
    storages = {s.data_ptr(): s.nbytes() for s in (optimizer.momentum(p).untyped_storage() for p in parameters)}
    assert list(storages.values()) == [4 * sum(p.numel() for p in parameters)]


def test_a_real_model_follows_the_recursion_of_its_own_gradients():
    # The same model, fp32, with gradients kept and the reference in float64 at each window.
    model, reference = roformer(recompute=True), roformer(recompute=False)
    optimizer = tiger_for(model, 2)
    batches = torch.randint(1, 50, (2, 3, 9), generator=torch.Generator().manual_seed(0))
    gradients: dict[str, list[np.ndarray]] = {name: [] for name, _ in reference.named_parameters()}
    for number, ids in enumerate(batches):
        for which in (model, reference):
            torch.manual_seed(number)
            which(ids, labels=ids, next_sentence_label=torch.tensor([0, 1, 1])).loss.backward()
        for name, parameter in reference.named_parameters():
            gradients[name].append(parameter.grad.double().numpy())
        reference.zero_grad()
        optimizer.step()
    roles = {name: group["role"] for group in optimizer.param_groups for name in group["names"]}
    start = {name: p.detach().double().numpy() for name, p in reference.named_parameters()}
    for name, parameter in model.named_parameters():
        expected = tiger_micro_steps(start[name], gradients[name], str(roles[name]), **SETTINGS, k=2)[-1]
        np.testing.assert_allclose(parameter.detach().numpy(), expected, atol=1e-7, rtol=1e-6, err_msg=name)


# --- state -----------------------------------------------------------------------------------------------------------


def run(toy: Toy, optimizer: Tiger, gradients: list[dict[str, np.ndarray]]) -> None:
    for gradient in gradients:
        toy.backward(gradient)
        optimizer.step()


def test_continuing_from_a_state_changes_no_bit(tmp_path):
    gradients = draw_gradients(15)
    straight = Toy(torch.float32)
    run(straight, tiger_for(straight, 3), gradients)
    first = Toy(torch.float32)
    optimizer = tiger_for(first, 3)
    run(first, optimizer, gradients[:6])
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=False)
    second = Toy(torch.float32, seed=9)
    second.load_state_dict(saved["model"])
    resumed = tiger_for(second, 3, lr=0.5, beta=0.5)  # the settings come from the state as well
    resumed.load_state_dict(saved["optimizer"])
    assert resumed.micro_step == 6
    run(second, resumed, gradients[6:])
    assert parameters_equal(straight.numpy(), second.numpy())


def test_a_state_can_be_continued_with_another_window_length():
    # Half as many ranks means twice as many micro-batches per window.
    first, second, gradients = Toy(), Toy(seed=9), draw_gradients(14)
    before = first.numpy()
    optimizer, longer = tiger_for(first, 2), tiger_for(second, 4)
    run(first, optimizer, gradients[:6])
    second.load_state_dict(first.state_dict())
    longer.load_state_dict(optimizer.state_dict())
    moves = []
    for gradient in gradients[6:]:
        second.backward(gradient)
        moves.append(longer.step())
    assert moves == [False, False, False, True] * 2
    # One long recursion in which every micro-batch of the first three windows counts twice.
    given = [g["matrix"] for g in gradients]
    expected = tiger_micro_steps(
        before["matrix"], [g for g in given[:6] for _ in range(2)] + given[6:], "matrix", **SETTINGS, k=4
    )[-1]
    np.testing.assert_allclose(second.numpy()["matrix"], expected, atol=TOLERANCE, rtol=0)


def test_loading_forgets_a_window_that_was_begun():
    toy, (gradient, bad) = Toy(), draw_gradients(2)
    optimizer = tiger_for(toy, 2)
    state, before = optimizer.state_dict(), toy.numpy()
    state = copy.deepcopy(state)
    bad["matrix"][:] = math.nan
    toy.backward(bad)
    optimizer.load_state_dict(state)
    run(toy, optimizer, [gradient, gradient])
    expected = tiger_micro_steps(before["matrix"], [gradient["matrix"]] * 2, "matrix", **SETTINGS, k=2)[-1]
    np.testing.assert_allclose(toy.numpy()["matrix"], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("options", [{}, {"lazy_rows": True}], ids=str)
@pytest.mark.parametrize("cut", range(1, 15))
def test_continuing_from_any_micro_batch_changes_no_bit(cut, options):
    gradients = draw_gradients(15)
    gradients[4]["matrix"][0, 0] = math.nan  # its flag must survive as well
    straight, first, second = Toy(torch.float32), Toy(torch.float32), Toy(torch.float32, seed=9)
    run(straight, tiger_for(straight, 3, **options), gradients)
    optimizer, resumed = tiger_for(first, 3, **options), tiger_for(second, 3, **options)
    run(first, optimizer, gradients[:cut])
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(second, resumed, gradients[cut:])
    assert parameters_equal(straight.numpy(), second.numpy())


def test_a_state_deeper_in_a_window_than_the_window_is_long_is_refused():
    toy, other = Toy(), Toy()
    optimizer = tiger_for(toy, 4)
    run(toy, optimizer, draw_gradients(3))
    with pytest.raises(ValueError, match="3 micro-batches into a step, this optimizer's steps have 2"):
        tiger_for(other, 2).load_state_dict(optimizer.state_dict())


def test_a_state_of_another_model_is_refused():
    toy = Toy()
    other = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="2 parameters do not match this optimizer's 3 parameters"):
        tiger_for(toy).load_state_dict(tiger_for(other).state_dict())


# --- sign steps in the long run (https://kexue.fm/archives/9736) ------------------------------------------------------


@pytest.mark.parametrize("role", [Role.EMBEDDING, Role.MATRIX])
def test_a_constant_gradient_drives_weights_to_the_inverse_decay(role):
    param = torch.full((2, 3), 0.01, dtype=torch.float64)
    momentum = torch.tensor([[1e-30, -1.0, 1e-30], [-1e-3, 1e-30, -1.0]], dtype=torch.float64)
    for _ in range(3000):
        tiger_update_(param, momentum, role=role, lr=0.02, weight_decay=0.01)
    np.testing.assert_allclose(param.numpy(), -np.sign(momentum.numpy()) / 0.01, rtol=1e-6)


@pytest.mark.parametrize("total", [2.0, 6.0, math.log(9999.0), 14.0])
def test_growth_towards_it_is_logistic_in_the_sum_of_learning_rates(total):
    # dθ = θ(1 - λθ) dα for a row whose entries all grow alike; 9.2 takes it from 0.01 to 50.
    param, momentum = torch.full((1, 4), 0.01, dtype=torch.float64), torch.full((1, 4), -1.0, dtype=torch.float64)
    steps = round(total / 1e-3)
    for _ in range(steps):
        tiger_update_(param, momentum, role=Role.EMBEDDING, lr=1e-3, weight_decay=0.01)
    limit = 1 / 0.01
    expected = limit / (1 + (limit / 0.01 - 1) * math.exp(-steps * 1e-3))
    np.testing.assert_allclose(param.numpy(), expected, rtol=0.006)  # Euler's error, about α/2 per unit of the sum


@pytest.mark.parametrize("role", [Role.EMBEDDING, Role.MATRIX])
def test_a_tensor_of_zeros_moves_as_if_it_had_the_least_size(role):
    param = torch.zeros(2, 3)
    tiger_update_(param, torch.ones(2, 3), role=role, lr=0.1, weight_decay=0.01, rms_floor=1e-3)
    torch.testing.assert_close(param, torch.full((2, 3), -1e-4))


# --- wrong calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"lr": 0.0}, {"lr": math.nan}, {"beta": 1.0}, {"beta": -0.1}, {"weight_decay": -1.0}, {"shrink": 0.0}, {"k": 0},
     {"rms_floor": -1.0}, {"dead_zone": -1.0}, {"clip_norm": 0.0}, {"gradient_keep": 0.0}, {"weissi": -1.0},
     {"weissi_sparsity": -1.0}],
    ids=str,
)  # fmt: skip
def test_arguments_out_of_range_are_refused(changes):
    with pytest.raises(
        ValueError,
        match=next(iter(changes)).replace("k", "accumulation_steps") if "k" in changes else next(iter(changes)),
    ):
        tiger_for(Toy(), **changes)


def test_something_else_that_takes_a_gradient_first_is_named():
    toy = Toy()
    toy.matrix.register_post_accumulate_grad_hook(lambda parameter: setattr(parameter, "grad", None))
    optimizer = tiger_for(toy)
    with pytest.raises(RuntimeError, match="something else has taken the gradient of matrix"):
        toy.backward(draw_gradients(1)[0])
    assert optimizer.steps == 0


def test_plain_parameters_get_their_role_from_their_shape():
    toy, gradients = Toy(), draw_gradients(4)
    start = toy.numpy()
    optimizer = Tiger([toy.matrix, toy.vector], **SETTINGS, accumulation_steps=2)
    for gradient in gradients:
        toy.backward({name: gradient[name] for name in ("matrix", "vector")})
        optimizer.step()
    for name in ("matrix", "vector"):
        expected = tiger_micro_steps(start[name], stacked(gradients, name), name, **SETTINGS, k=2)[-1]
        np.testing.assert_allclose(toy.numpy()[name], expected, atol=TOLERANCE, rtol=0)


def test_pieces_of_any_size_give_the_same_bits(monkeypatch):
    def train(piece: int) -> list[torch.Tensor]:
        monkeypatch.setattr("kexue_train.optim.whole_tensors._PIECE", piece)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(50, 12), nn.Linear(12, 30))
        optimizer = Tiger(build_param_groups(model), accumulation_steps=2)
        for _ in range(4):
            model(torch.randint(50, (20,))).square().sum().backward()
            optimizer.step()
        return [*model.parameters(), *optimizer.named_moments().values()]

    whole = train(1 << 18)
    for piece in (7, 64, 359, 360):
        assert all(map(torch.equal, train(piece), whole))
