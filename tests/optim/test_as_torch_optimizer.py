"""Tiger as anyone's ``torch.optim.Optimizer``: torch's tests of its own optimizers, under their names, and its tools.

The inputs and errors that every optimizer has to know come from ``torch.testing._internal.common_optimizers``.
"""

from __future__ import annotations

import copy
import io
import pickle
import sys
import types
import unittest
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.nn import Parameter
from torch.optim import lr_scheduler, swa_utils
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from kexue_train.optim import Tiger, build_param_groups
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.options import Options
from kexue_train.optim.rules import AdamWRule, SgdmRule
from tests.reference.toy_model import Toy, draw_gradients, parameters_equal

BOTH_WAYS = pytest.mark.parametrize("accumulate", ["momentum", "gradient"])
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {"weight_decay": 0.0},
    "other lr": {"lr": 1e-2, "weight_decay": 0.0},
    "tensor lr": {"lr": torch.tensor(1e-3), "weight_decay": 0.0},
    "beta": {"beta": 0.5, "lr": 1e-2, "weight_decay": 0.0},
    "weight decay": {"weight_decay": 0.1},
    "gradient": {"options": Options(accumulate="gradient"), "weight_decay": 0.0},
    "micro-batches": {"accumulation_steps": 2, "lr": 1e-2, "weight_decay": 0.0},
}
every_configuration = pytest.mark.parametrize("kwargs", CONFIGURATIONS.values(), ids=list(CONFIGURATIONS))


def line(dtype: torch.dtype = torch.float32) -> tuple[Parameter, Parameter, Tensor]:
    torch.manual_seed(0)
    numbers = torch.randn(10, 5, dtype=dtype), torch.randn(10, dtype=dtype), torch.randn(5, dtype=dtype)
    return Parameter(numbers[0]), Parameter(numbers[1]), numbers[2]


def closure_of(optimizer: torch.optim.Optimizer, weight: Parameter, bias: Parameter, x: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).square().sum()
        loss.backward()
        return loss

    return closure


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for k in range(steps):
        model(torch.full((2, 3), 0.5 + k)).square().sum().backward()
        optimizer.step()


def made(**changes: Any) -> tuple[nn.Module, Tiger]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return model, Tiger(build_param_groups(model), **{"lr": 1e-2, **changes})


def assert_same_state(first: dict[str, Any], second: dict[str, Any]) -> None:
    for saved in (first, second):
        saved["param_groups"] = [{**g, "lr": float(g["lr"])} for g in saved["param_groups"]]
    assert first["param_groups"] == second["param_groups"]
    rest = [{key: value for key, value in saved.items() if key != "param_groups"} for saved in (first, second)]
    torch.testing.assert_close(*rest, rtol=0, atol=0)


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(map(torch.equal, first.parameters(), second.parameters()))


# --- torch's tests by name --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def common() -> Any:
    """``torch.testing._internal.common_optimizers``, which needs ``expecttest`` for nothing that is used here."""
    stub = types.ModuleType("expecttest")
    stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "expecttest", sys.modules.get("expecttest", stub))
        from torch.testing._internal import common_optimizers

        return common_optimizers


@pytest.fixture
def info(common: Any) -> Any:
    def inputs(device: str, dtype: Any = None) -> list[Any]:
        return [common.OptimizerInput(params=None, kwargs=k, desc=name) for name, k in CONFIGURATIONS.items()]

    def errors(device: str, dtype: torch.dtype) -> list[Any]:
        wrong: dict[str, Any] = {"lr": -0.5, "beta": 1.0, "weight_decay": -1.0, "rms_floor": -1.0}
        return common.get_error_inputs_for_all_optims(device, dtype) + [
            common.ErrorOptimizerInput(
                common.OptimizerInput(params=None, kwargs={name: value}), error_type=ValueError, error_regex=name
            )
            for name, value in wrong.items()
        ]

    return common.OptimizerInfo(
        Tiger,
        optim_inputs_func=inputs,
        optim_error_inputs_func=errors,
        supported_impls=(),
        not_og_supported_flags=(),
        supports_sparse=True,
        supports_complex=False,
    )


def test_errors(info):
    for wrong in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        given = wrong.optimizer_error_input
        params = given.params if given.params is not None else [Parameter(torch.randn(1, 1))]
        if wrong.error_type is UserWarning:  # the same parameter twice, which torch will refuse, is refused
            with pytest.warns(UserWarning, match=wrong.error_regex), pytest.raises(ValueError, match="more than once"):
                Tiger(params, **given.kwargs)
            continue
        with pytest.raises(wrong.error_type, match=wrong.error_regex):
            Tiger(params, **given.kwargs)


def test_forloop_goes_right_direction(info):
    for given in info.optim_inputs_func(device="cpu"):
        weight, bias, x = line()
        optimizer = info.optim_cls([weight, bias], **copy.deepcopy(given.kwargs))
        closure = closure_of(optimizer, weight, bias, x)
        losses = [optimizer.step(closure).item() for _ in range(20)]
        assert losses[-1] < losses[0], given.desc


def test_param_group_with_lrscheduler_goes_right_direction(info):
    for schedulers in info.scheduler_inputs:
        weight, bias, x = line()
        optimizer = Tiger([{"params": [weight]}, {"params": [bias], "lr": 1e-2}], lr=1e-3)
        made_schedulers = [make(optimizer) for make in schedulers]
        closure = closure_of(optimizer, weight, bias, x)
        losses = []
        for _ in range(20):
            losses.append(optimizer.step(closure).item())
            for scheduler in made_schedulers:
                scheduler.step(*[losses[-1]] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("shape", [(), (1,)])
def test_tensor_lr(shape):
    ends = []
    for lr in (torch.full(shape, 1e-2), 1e-2):
        weight, bias, x = line()
        optimizer = Tiger([weight, bias], lr=lr)
        for _ in range(5):
            optimizer.step(closure_of(optimizer, weight, bias, x))
        ends.append(weight.detach().clone())
    torch.testing.assert_close(*ends)


def test_rosenbrock_sparse():
    # Each step knows one coordinate's gradient only, once sparse (and not coalesced), once dense: the same ends.
    ends = []
    for is_sparse in (True, False):
        point = Parameter(torch.tensor([1.5, 1.5]))
        optimizer = Tiger([point], lr=1e-2, weight_decay=0.0)
        for step in range(200):
            x, y = point.tolist()
            slope = (-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2))[step % 2]
            index = torch.tensor([[step % 2] * 2])
            gradient = torch.sparse_coo_tensor(
                index, torch.tensor([slope / 4, slope * 3 / 4]), (2,), check_invariants=False
            )
            point.grad = gradient if is_sparse else gradient.to_dense()
            optimizer.step()
        ends.append(point.detach().clone())
    assert torch.equal(*ends)
    assert (ends[0] - 1).norm() < (torch.tensor([1.5, 1.5]) - 1).norm()


def test_param_groups_weight_decay():
    weight, bias, _ = line()
    optimizer = Tiger([{"params": weight, "weight_decay": 0.5}, {"params": bias}], lr=1e-2, weight_decay=0.0)
    before = weight.detach().clone(), bias.detach().clone()
    optimizer.step()
    length = 1e-2 * before[0].square().mean().sqrt()
    torch.testing.assert_close(weight.detach(), before[0] * (1 - length * 0.5))
    assert torch.equal(bias, before[1])


def test_param_groups_lr():
    weight, bias, x = line()
    optimizer = Tiger([{"params": weight, "lr": 0.0}, {"params": bias, "lr": 1e-2}], lr=1.0)
    before = weight.detach().clone(), bias.detach().clone()
    optimizer.step(closure_of(optimizer, weight, bias, x))
    assert torch.equal(weight, before[0])
    torch.testing.assert_close((bias - before[1]).abs(), torch.full((10,), 0.5e-2))


@pytest.mark.parametrize(
    "kwargs", [{"weight_decay": 0.0}, {"options": Options(lazy_tensors=True)}], ids=["no decay", "lazy"]
)
def test_step_is_noop_when_params_have_no_grad(kwargs):
    weight, bias, _ = line()
    optimizer = Tiger([weight, bias], **kwargs)
    before = weight.detach().clone(), bias.detach().clone()
    optimizer.step()
    assert torch.equal(weight, before[0])
    assert torch.equal(bias, before[1])


def test_step_is_noop_for_zero_grads():
    weight, _, _ = line()
    optimizer, before = Tiger([weight], weight_decay=0.0), weight.detach().clone()
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(weight, before)


@every_configuration
def test_optimizer_can_be_printed(kwargs):
    assert "Parameter Group 0" in repr(Tiger([Parameter(torch.randn(2, 3))], **copy.deepcopy(kwargs)))


@every_configuration
def test_state_dict_deterministic(kwargs):
    weight, bias, x = line()
    optimizer = Tiger([weight, bias], **copy.deepcopy(kwargs))
    for _ in range(4):
        optimizer.step(closure_of(optimizer, weight, bias, x))
    others = Parameter(weight.detach().clone()), Parameter(bias.detach().clone())
    other = Tiger(others, **copy.deepcopy(kwargs))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    assert_same_state(saved, kept)
    for _ in range(4):
        optimizer.step(closure_of(optimizer, weight, bias, x))
        other.step(closure_of(other, *others, x))
        assert torch.equal(weight, others[0])
        assert torch.equal(bias, others[1])
    assert_same_state(optimizer.state_dict(), other.state_dict())


def test_can_load_older_state_dict():
    # Before, groups had three settings and no params, and the steps lay beside them.
    model, optimizer = made()
    train(model, optimizer)
    new = optimizer.state_dict()
    groups = [{key: group[key] for key in ("lr", "beta", "weight_decay")} for group in new["param_groups"]]
    old, other_model = {**new, "steps": 3, "param_groups": groups}, copy.deepcopy(model)
    other = Tiger(build_param_groups(other_model), lr=0.3, beta=0.1)
    other.load_state_dict(copy.deepcopy(old))
    assert (other.steps, other.param_groups[0]["lr"], other.param_groups[0]["beta"]) == (3, 1e-2, 0.965)
    train(model, optimizer)
    train(other_model, other)
    assert same(model, other_model)


@pytest.mark.parametrize(("saves_names", "has_names"), [(True, False), (False, True), (True, True)])
def test_can_load_from_to_named_state_dict(saves_names, has_names):
    models = [made()[0] for _ in range(2)]
    optimizers = [
        Tiger(model.named_parameters() if named else model.parameters(), lr=1e-2)
        for model, named in zip(models, (saves_names, has_names), strict=True)
    ]
    train(models[0], optimizers[0])
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    assert same(*models)
    assert [t.name for t in optimizers[1].tensors] == (
        ["weight", "bias"] if has_names else ["parameter 0", "parameter 1"]
    )


def test_save_load_equality_with_weights_only():
    model, optimizer = made(accumulation_steps=2)
    train(model, optimizer)
    memory = io.BytesIO()
    torch.save(optimizer.state_dict(), memory)
    memory.seek(0)
    loaded = torch.load(memory, weights_only=True)
    assert_same_state(loaded, optimizer.state_dict())


@pytest.mark.parametrize("rule", [None, SgdmRule(), AdamWRule()], ids=["tiger", "sgdm", "adamw"])
def test_deepcopy_copies_all_public_attrs(rule):
    model, optimizer = made()
    if rule:
        model = copy.deepcopy(model)
        defaults = {"lr": 1e-2, "beta": 0.9, "weight_decay": 0.0}
        optimizer = HiddenAccumulation(build_param_groups(model), rule, defaults)
    public = [{name for name in vars(o) if not name.startswith("_")} for o in (optimizer, copy.deepcopy(optimizer))]
    assert public[0] == public[1]


def test_non_empty_state():
    _, optimizer = made()
    assert all(optimizer.state_dict()["state"].values())


def test_step_pre_hook_and_post_hook_and_all_hooks():
    _, optimizer = made()
    calls: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        register_optimizer_step_pre_hook(lambda *_: calls.append("before any")),
        register_optimizer_step_post_hook(lambda *_: calls.append("after any")),
    ]
    optimizer.step()
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert calls == ["before any", "before", "after", "after any"]


def test_state_dict_and_load_state_dict_hooks():
    model, optimizer = made()
    train(model, optimizer)
    calls: list[Any] = []
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("saves"))
    optimizer.register_state_dict_post_hook(lambda _, saved: {**saved, "by a hook": 1})

    def halve_lr(_: Any, saved: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": group["lr"] / 2} for group in saved["param_groups"]]
        return {**saved, "param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(halve_lr)
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append(o.param_groups[0]["lr"]))
    saved = optimizer.state_dict()
    assert saved["by a hook"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["saves", 0.5e-2]


# --- convergence, as pytorch_optimizer asks for it: logistic regression, 100 points in the plane, loss to two thirds --


@BOTH_WAYS
@pytest.mark.parametrize("is_mixed", [False, True], ids=["fp32", "autocast"])
def test_logistic_regression_converges_in_ten_steps(accumulate, is_mixed):
    torch.manual_seed(42)
    x = torch.randn(100, 2)
    y = (x[:, :1] * 2 - x[:, 1:] > 0).float()
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = Tiger(build_param_groups(model), lr=1.0, weight_decay=1e-3, options=Options(accumulate=accumulate))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss = nn.functional.binary_cross_entropy_with_logits(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.5 * losses[-1]


# --- schedules --------------------------------------------------------------------------------------------------------

SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda _: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "ConstantLR": lr_scheduler.ConstantLR,
    "LinearLR": lr_scheduler.LinearLR,
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lr_scheduler.PolynomialLR,
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 1e-3, 1e-2, cycle_momentum=False),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=9, cycle_momentum=False),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 1e-3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_of_torch_sets_what_it_sets_for_sgd(name):
    rates = []
    for make in (lambda p: Tiger(p, lr=1e-2), lambda p: torch.optim.SGD(p, lr=1e-2)):
        weight = Parameter(torch.ones(2, 2))
        optimizer = make([weight])
        scheduler = SCHEDULES[name](optimizer)
        rates.append([])
        for _ in range(5):
            weight.sum().backward()
            optimizer.step()
            scheduler.step()
            rates[-1].append(optimizer.param_groups[0]["lr"])
    assert rates[0] == rates[1]


def test_a_schedule_resumes_with_the_initial_rate_of_the_state():
    model, optimizer = made()
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    train(model, optimizer)
    scheduler.step()
    _, again = made(lr=0.5)
    again.load_state_dict(optimizer.state_dict())
    resumed = lr_scheduler.LambdaLR(again, lambda step: 1 / (1 + step), last_epoch=3)
    assert resumed.base_lrs == [1e-2, 1e-2]


# --- what is set in a group -------------------------------------------------------------------------------------------


@BOTH_WAYS
@pytest.mark.parametrize("name", ["beta", "weight_decay", "lr", "dead_zone", "rms_floor"])
def test_a_setting_changed_between_steps_counts_as_if_it_had_been_so_from_a_copy_on(name, accumulate):
    options = Options(accumulate=accumulate)
    model, optimizer = made(options=options)
    train(model, optimizer)
    twin, other = copy.deepcopy((model, optimizer))
    value = {"beta": 0.5, "weight_decay": 0.7, "lr": 3e-2, "dead_zone": 0.2, "rms_floor": 9.0}[name]
    for group in optimizer.param_groups:
        group[name] = value
    rebuilt = Tiger(build_param_groups(twin_of := copy.deepcopy(twin)), **{"lr": 1e-2, "options": options, name: value})
    saved = other.state_dict()
    for group in saved["param_groups"]:
        group[name] = value
    rebuilt.load_state_dict(saved)
    train(model, optimizer)
    train(twin_of, rebuilt)
    train(twin, other)
    assert same(model, twin_of)
    assert not same(model, twin)


def test_beta_of_a_group_is_its_own():
    weight, bias, x = line()
    optimizer = Tiger([{"params": [weight], "beta": 0.0}, {"params": [bias]}], beta=0.5)
    optimizer.step(closure_of(optimizer, weight, bias, x))
    torch.testing.assert_close(optimizer.momentum(bias), 0.5 * (optimizer.momentum(weight) @ x) / x.square().sum())


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"lr": float("inf")}, ValueError), ({"lr": True}, TypeError), ({"lr": "0.1"}, TypeError),
     ({"beta": 1.5}, ValueError), ({"beta": None}, TypeError), ({"weight_decay": float("nan")}, ValueError),
     ({"rms_floor": -1.0}, ValueError),
     ({"dead_zone": float("inf")}, ValueError), ({"role": "row"}, ValueError), ({"accumulation_steps": 2}, ValueError),
     ({"clip_norm": 1.0}, ValueError), ({"lr": torch.tensor(float("nan"))}, ValueError)],
    ids=str,
)  # fmt: skip
def test_a_setting_that_cannot_be_meant_is_refused_by_name_also_between_steps(settings, error):
    (name,) = settings
    first, second = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    with pytest.raises(error, match=name if name != "role" else "row"):
        Tiger([{"params": [first], **settings}])
    optimizer = Tiger([first])
    with pytest.raises(error, match=name if name != "role" else "row"):
        optimizer.add_param_group({"params": [second], **settings})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(settings)
    with pytest.raises(error, match=name):
        optimizer.step()


@pytest.mark.parametrize("steps", [0, -1, 1.5, True, None, "2"])
def test_accumulation_steps_is_a_whole_number(steps):
    with pytest.raises(ValueError, match="accumulation_steps must be a whole number"):
        Tiger([Parameter(torch.ones(2, 2))], accumulation_steps=steps)
    optimizer = Tiger([Parameter(torch.ones(2, 2))], accumulation_steps=2)
    with pytest.raises(ValueError, match="accumulation_steps must be a whole number"):
        optimizer.accumulation_steps = steps
    optimizer.step()
    with pytest.raises(ValueError, match="set accumulation_steps between steps, not after 1"):
        optimizer.accumulation_steps = 3


# --- what can be optimized --------------------------------------------------------------------------------------------

UNFIT: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "complex": (lambda: [Parameter(torch.ones(2, dtype=torch.complex64))], "parameter 0 is torch.complex64"),
    "int": (lambda: [torch.ones(2, dtype=torch.int64)], "parameter 0 is torch.int64"),
    "bool": (lambda: [torch.ones(2, dtype=torch.bool)], "parameter 0 is torch.bool"),
    "float8": (lambda: [torch.ones(2).to(torch.float8_e4m3fn)], "parameter 0 is torch.float8"),
    "half": (lambda: [Parameter(torch.ones(2, dtype=torch.float16))], "parameter 0 is torch.float16"),
    "sparse": (lambda: [torch.eye(2).to_sparse().requires_grad_()], "parameter 0 is torch.sparse_coo"),
    "meta": (lambda: [Parameter(torch.ones(2, device="meta"))], "parameter 0 is on the meta device"),
    "lazy": (lambda: list(nn.LazyLinear(2).parameters()), "parameter 0 has no shape yet"),
    "dtypes": (lambda: [Parameter(torch.ones(2)), Parameter(torch.ones(2).double())], "parameter 1 is torch.float64"),
    "transposed": (lambda: [Parameter(torch.ones(2, 3).T)], "parameter 0 is not contiguous"),
    "twice": (lambda: [{"params": [], "lr": 1.0}], "no parameters"),
    "single number": (lambda: [{"params": [Parameter(torch.ones(()))], "role": "matrix"}], "is a single number"),
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_cannot_be_optimized_is_refused_at_construction_by_name(name):
    make, message = UNFIT[name]
    with pytest.raises(ValueError, match=message):
        Tiger(make())


@BOTH_WAYS
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_tensors_without_elements_are_no_obstacle(shape, accumulate):
    empty, full = Parameter(torch.ones(shape)), Parameter(torch.ones(2, 2))
    optimizer = Tiger([full, empty], options=Options(accumulate=accumulate))
    (empty.sum() + full.sum()).backward()
    optimizer.step()
    assert full[0, 0].item() < 1


@BOTH_WAYS
def test_sparse_gradients_count_as_dense_ones(accumulate):
    ends = []
    for is_sparse in (False, True):
        torch.manual_seed(0)
        table = nn.Embedding(6, 3, sparse=is_sparse)
        optimizer = Tiger(build_param_groups(table), 1e-2, accumulation_steps=2, options=Options(accumulate=accumulate))
        for ids in ([1, 3], [1, 1], [5, 0], [2, 2]):
            table(torch.tensor(ids)).square().sum().backward()
            optimizer.step()
        ends.append(table)
    assert same(*ends)


# --- frozen parameters ------------------------------------------------------------------------------------------------


@BOTH_WAYS
@pytest.mark.parametrize("k", [1, 3])
def test_frozen_parameters_rest_with_their_moments_and_go_on_when_unfrozen(accumulate, k):
    toy, gradients = Toy(), draw_gradients(9 * k)
    optimizer = Tiger(build_param_groups(toy), 1e-2, accumulation_steps=k, options=Options(accumulate=accumulate))
    for step in range(9):
        is_frozen = 3 <= step < 6
        toy.matrix.requires_grad_(not is_frozen)
        before = toy.numpy()["matrix"], optimizer.momentum(toy.matrix).clone()
        for gradient in gradients[step * k : step * k + k]:
            toy.backward({name: g for name, g in gradient.items() if name != "matrix" or not is_frozen})
            optimizer.step()
        assert (before[0] == toy.numpy()["matrix"]).all() == is_frozen
        assert torch.equal(before[1], optimizer.momentum(toy.matrix)) == is_frozen


@BOTH_WAYS
def test_a_parameter_that_is_frozen_within_a_step_rests_in_it(accumulate):
    toy, (first, second) = Toy(), draw_gradients(2)
    optimizer = Tiger(build_param_groups(toy), 1e-2, accumulation_steps=2, options=Options(accumulate=accumulate))
    before = toy.numpy()
    toy.backward(first)
    optimizer.step()
    toy.matrix.requires_grad_(False)
    toy.backward({"vector": second["vector"]})
    with warnings.catch_warnings(action="ignore" if accumulate == "gradient" else "error"):
        assert optimizer.step()
    assert (before["matrix"] == toy.numpy()["matrix"]).all()
    assert (before["vector"] != toy.numpy()["vector"]).all()


@BOTH_WAYS
def test_parameters_frozen_from_the_start_may_be_trained_later(accumulate):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    model[0].weight.data[0, 0] = float("inf")  # a frozen mask may hold such
    optimizer = Tiger(model.parameters(), 1e-2, options=Options(accumulate=accumulate))
    start = copy.deepcopy(model[0])
    model[1](torch.ones(2, 3)).sum().backward()
    optimizer.step()
    assert same(start, model[0])
    model[0].weight.data[0, 0] = 0.5
    model[0].requires_grad_(True)
    for step in range(3):
        before = copy.deepcopy(model[0])
        model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(before.weight, model[0].weight)
        assert all(parameter.grad is None for parameter in model.parameters())


@BOTH_WAYS
def test_a_gradient_of_a_frozen_parameter_is_left_out_and_told(accumulate):
    weight = Parameter(torch.ones(2, 2), requires_grad=False)
    other = Parameter(torch.ones(2, 2))
    optimizer = Tiger([weight, other], options=Options(accumulate=accumulate))
    weight.grad = torch.ones(2, 2)
    with pytest.warns(UserWarning, match="parameter 0 has a gradient but is frozen"):
        optimizer.step()
    assert weight.eq(1).all()


@BOTH_WAYS
def test_lazy_tensors_rest_in_steps_without_a_gradient_of_theirs(accumulate):
    ends = {}
    for is_lazy in (True, False):
        toy, gradients = Toy(), draw_gradients(4)
        options = Options(accumulate=accumulate, lazy_tensors=is_lazy)
        optimizer = Tiger(build_param_groups(toy), 1e-2, accumulation_steps=2, options=options)
        for number, gradient in enumerate(gradients):
            used = gradient if number in (0, 3) else {"vector": gradient["vector"]}
            toy.backward(used)
            optimizer.step()
        before = toy.numpy(), optimizer.momentum(toy.matrix).clone()
        for _ in range(2):
            toy.backward({"vector": gradients[0]["vector"]})
            optimizer.step()
        rests = (before[0]["matrix"] == toy.numpy()["matrix"]).all() and torch.equal(
            before[1], optimizer.momentum(toy.matrix)
        )
        assert rests == is_lazy
        ends[is_lazy] = before[0]
    assert parameters_equal(ends[True], ends[False])  # with a gradient in every step nothing differs


# --- whose gradients they are -----------------------------------------------------------------------------------------


def test_the_gradients_of_an_optimizer_that_is_gone_are_anyones():
    model, optimizer = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model)
    train(model, optimizer, 1)
    assert not same(before, model)


@BOTH_WAYS
def test_a_second_optimizer_beside_a_living_one_is_refused(accumulate):
    toy = Toy()
    options = Options(accumulate=accumulate)
    first = Tiger(build_param_groups(toy), options=options)
    with pytest.raises(ValueError, match="another optimizer already takes the gradients of matrix"):
        Tiger([("matrix", toy.matrix)])
    first.cycle = first  # only the collector can end it
    del first
    assert Tiger(build_param_groups(toy), options=options).step()


@BOTH_WAYS
def test_a_refused_optimizer_leaves_its_parameters_free(accumulate):
    weight = Parameter(torch.ones(2, 2))
    try:
        Tiger([{"params": [weight]}, {"params": [Parameter(torch.ones(2).half())]}])
    except ValueError:  # whose traceback keeps the refused one alive
        assert Tiger([weight], options=Options(accumulate=accumulate)).step()
    assert weight[0, 0] < 1


@BOTH_WAYS
def test_gradients_set_by_hand_count_like_those_of_backward(accumulate):
    ends = []
    for by_hand in (False, True):
        toy = Toy()
        optimizer = Tiger(build_param_groups(toy), 1e-2, accumulation_steps=2, options=Options(accumulate=accumulate))
        for gradient in draw_gradients(4):
            if by_hand:
                for name, parameter in toy.by_name().items():
                    had = 0.0 if parameter.grad is None else parameter.grad
                    parameter.grad = torch.from_numpy(gradient[name]) + had
            else:
                toy.backward(gradient)
            optimizer.step()
        ends.append(toy.numpy())
    assert parameters_equal(*ends)


def test_a_gradient_by_hand_adds_to_that_of_backward():
    toy, other, (first, second) = Toy(), Toy(), draw_gradients(2)
    both = {name: first[name] + second[name] for name in first}
    optimizer, reference = Tiger(build_param_groups(toy), 1e-2), Tiger(build_param_groups(other), 1e-2)
    toy.backward(first)
    for name, parameter in toy.by_name().items():
        parameter.grad = torch.from_numpy(second[name])
    optimizer.step()
    other.backward(both)
    reference.step()
    for parameter, wanted in zip(toy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, wanted, atol=1e-14, rtol=0)


@BOTH_WAYS
@pytest.mark.parametrize("how", ["two losses", "retained graph", "reentrant", "not reentrant", "create_graph"])
def test_any_number_of_backwards_is_one_micro_batch(how, accumulate):
    ends = []
    for whole in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        optimizer = Tiger(build_param_groups(model), 1e-2, accumulation_steps=2, options=Options(accumulate=accumulate))
        for _ in range(4):
            x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
            hidden = model[:2](x)
            if "reentrant" in how and not whole:
                hidden = torch.utils.checkpoint.checkpoint(model[:2], x, use_reentrant=how == "reentrant")
            loss = model[2](hidden).square().mean()
            if whole:
                (loss * (1 if "reentrant" in how or how == "create_graph" else 2)).backward()
            elif "reentrant" in how:
                loss.backward()
            elif how == "create_graph":
                with warnings.catch_warnings(action="ignore"):
                    loss.backward(create_graph=True)
            else:
                loss.backward(retain_graph=how == "retained graph")
                (loss if how == "retained graph" else model(x).square().mean()).backward()
            optimizer.step()
        ends.append(model)
    for first, second in zip(*(model.parameters() for model in ends), strict=True):
        torch.testing.assert_close(first, second, atol=1e-14, rtol=0)


# --- those who look for gradients -------------------------------------------------------------------------------------


def test_clipping_that_finds_no_gradients_is_warned_of_once():
    model, optimizer = made()
    for step in range(3):
        model(torch.ones(1, 3)).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with warnings.catch_warnings(record=True, action="always") as said:
            optimizer.step()
        assert [str(w.message).partition(" in ")[0] for w in said] == [
            "test_clipping_that_finds_no_gradients_is_warned_of_once"
        ] * (step == 0)


def test_clipping_works_where_gradients_are_kept():
    ends = []
    for clip_norm in (None, 1e-3):
        torch.manual_seed(0)
        model, options = nn.Linear(3, 2), Options(accumulate="gradient", clip_norm=clip_norm)
        defaults = {"lr": 1.0, "beta": 0.0, "weight_decay": 0.0}
        optimizer = HiddenAccumulation(build_param_groups(model), SgdmRule(), defaults, options=options)
        model(torch.ones(1, 3)).sum().backward()
        if clip_norm is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        ends.append(model)
    for first, second in zip(*(model.parameters() for model in ends), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    "kwargs", [{}, {"options": Options(accumulate="gradient"), "accumulation_steps": 2}], ids=["momentum", "adds up"]
)
@pytest.mark.parametrize("unscales", [False, True])
def test_a_scaler_whose_scale_cannot_be_undone_is_refused(kwargs, unscales):
    weight = Parameter(torch.ones(2, 2))
    optimizer = Tiger([weight], **kwargs)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.square().sum()).backward()
    if unscales:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="GradScaler cannot undo its scale"):
        scaler.step(optimizer)
    optimizer.step()  # what it left on the optimizer is gone


def test_a_scaler_works_where_gradients_are_kept():
    weight, other = Parameter(torch.ones(2, 2)), Parameter(torch.ones(2, 2))
    optimizer, plain = (Tiger([p], 0.1, options=Options(accumulate="gradient")) for p in (weight, other))
    scaler = torch.amp.GradScaler("cpu")
    for loss in (1.0, float("inf"), 1.0):
        scaler.scale(weight.square().sum() * loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    for _ in range(2):
        other.square().sum().backward()
        plain.step()
    assert torch.equal(weight, other)


def test_zero_grad_that_comes_too_late_is_warned_of():
    model, optimizer = made()
    optimizer.zero_grad()
    model(torch.ones(1, 3)).sum().backward()
    with pytest.warns(UserWarning, match="takes nothing back"):
        optimizer.zero_grad()
    optimizer.step()
    optimizer.zero_grad()


def test_zero_grad_keeps_the_gradients_of_an_open_step():
    ends = []
    for zeroes in (False, True):
        model, optimizer = made(accumulation_steps=2, options=Options(accumulate="gradient"))
        for k in range(4):
            if zeroes:
                optimizer.zero_grad()
            model(torch.full((2, 3), 0.5 + k)).square().sum().backward()
            optimizer.step()
        ends.append(model)
    assert same(*ends)


# --- groups, copies, states -------------------------------------------------------------------------------------------


@BOTH_WAYS
def test_a_group_that_is_added_trains_and_the_others_go_on(accumulate):
    options = Options(accumulate=accumulate)
    ends = []
    for added_after in (0, 2):
        toy, gradients = Toy(), draw_gradients(5)
        groups = build_param_groups(toy)
        optimizer = Tiger(groups if not added_after else groups[:2], 1e-2, options=options)
        for number, gradient in enumerate(gradients):
            if number == added_after != 0:
                optimizer.add_param_group(groups[2])
            toy.backward(gradient if number >= 2 else {n: g for n, g in gradient.items() if n != "vector"})
            optimizer.step()
        ends.append(toy.numpy())
    assert parameters_equal(*ends)


def test_a_group_is_refused_within_a_step_and_with_parameters_that_are_there():
    model, optimizer = made(accumulation_steps=2)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model.weight]})
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(ValueError, match="added between steps"):
        optimizer.add_param_group({"params": [Parameter(torch.ones(2))]})
    optimizer.step()
    optimizer.step()
    optimizer.param_groups[0]["params"] = [Parameter(torch.ones(2, 3))]
    optimizer.step()
    with pytest.raises(ValueError, match="parameters of a group were exchanged"):
        optimizer.step()


def by_torch_save(pair: Any) -> Any:
    memory = io.BytesIO()
    torch.save(pair, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy, "torch.save": by_torch_save, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))
}  # fmt: skip


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation_steps": 2}, {"options": Options(accumulate="gradient")}, {"options": Options(lazy_rows=True)}],
    ids=["plain", "within a step", "gradient", "lazy"],
)
def test_a_copy_goes_on_like_the_original(how, changes):
    model, optimizer = made(**changes)
    train(model, optimizer)
    optimizer.param_groups[0]["lr"] = 3e-2
    other_model, other = COPIES[how]((model, optimizer))
    assert type(other) is Tiger
    train(model, optimizer)
    assert not same(model, other_model)
    train(other_model, other)
    assert same(model, other_model)
    assert_same_state(optimizer.state_dict(), other.state_dict())


def test_a_pickled_optimizer_has_each_moment_once():
    model = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(8)])
    optimizer = Tiger(model.parameters())
    assert len(pickle.dumps(optimizer)) < 2.2 * 8 * 64 * 64 * 4


@pytest.mark.parametrize("is_flat", [False, True])
def test_distributed_checkpoint_gets_and_sets_its_state(is_flat):
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    options = StateDictOptions(flatten_optimizer_state_dict=is_flat)
    model, optimizer = made()
    train(model, optimizer)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other_model = copy.deepcopy(model)
    other = Tiger(build_param_groups(other_model), lr=0.5)
    set_optimizer_state_dict(other_model, other, saved, options=options)
    assert other.steps == 3
    train(model, optimizer)
    train(other_model, other)
    assert same(model, other_model)


def test_the_state_of_another_optimizer_is_refused_by_name():
    parameter = Parameter(torch.ones(2, 2))
    other = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    other.step()
    optimizer = Tiger([Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="keeps exp_avg, exp_avg_sq, step and no number of steps"):
        optimizer.load_state_dict(other.state_dict())
    adamw = HiddenAccumulation(
        [Parameter(torch.ones(2, 2))], AdamWRule(), {"lr": 1.0, "beta": 0.9, "weight_decay": 0.0}
    )
    with pytest.raises(ValueError, match="the state of parameter 0 is momentum, square, this optimizer keeps momentum"):
        optimizer.load_state_dict(adamw.state_dict())
    wider = Tiger([Parameter(torch.ones(2, 3))])
    with pytest.raises(ValueError, match=r"the momentum of parameter 0 is \[2, 3\], the parameter \[2, 2\]"):
        optimizer.load_state_dict(wider.state_dict())
    with pytest.raises(ValueError, match="no state of an optimizer: param_groups"):
        optimizer.load_state_dict({"state": {0: {}}})
    table = Tiger([{"params": [Parameter(torch.ones(2, 2))], "role": "embedding"}])
    with pytest.raises(ValueError, match="has the role None, in the state embedding"):
        optimizer.load_state_dict(table.state_dict())
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_its_own_state_loaded_within_a_step_keeps_its_flags():
    model, optimizer = made(accumulation_steps=3)
    (model(torch.ones(1, 3)).sum() * float("nan")).backward()
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state_dict()["nonfinite"].tolist() == [1.0, 1.0]
    assert optimizer.micro_steps_done == 1
