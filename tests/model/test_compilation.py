"""Whole layers compile without a break, once for all of them, and compute the same."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from kexue_train.model.recompute import compile_layers, enable_recompute

SLOTS = 24
# The compiler looks at every tensor's.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def inputs(tokens):
    """Two packed rows with labels for the word head."""
    numbers = torch.tensor([[1] * 9 + [2] * 10 + [0] * 5, [1] * 24])
    return {"input_ids": tokens(2, SLOTS), "labels": tokens(2, SLOTS, seed=1), "sequence_ids": numbers}


def loss_and_gradients(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model(**inputs).loss
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.roformer.parameters())]


@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "autocast"])
def test_compiled_layers_compute_what_plain_ones_do(make_model, inputs, placement, dtype):
    plain, compiled = (make_model(gain=1.0, norm_placement=placement) for _ in range(2))
    compile_layers(compiled.roformer, backend="aot_eager")
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        results = [loss_and_gradients(model, inputs) for model in (plain, compiled)]
    tolerance = 1e-5 if dtype is None else 4e-2
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= tolerance * a.norm()


def test_all_layers_share_one_program_whatever_the_sequences(make_model, inputs):
    model = make_model()
    compile_layers(model.roformer, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    loss_and_gradients(model, inputs)
    loss_and_gradients(model, inputs | {"sequence_ids": inputs["sequence_ids"].flip(1).sort(1).values})
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_batches_of_many_sizes_are_no_failure(make_model, tokens):
    model = make_model(hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    compile_layers(model.roformer, backend="eager")
    for rows in range(1, 11):
        assert model.roformer(tokens(rows, 4)).last_hidden_state.isfinite().all()


def test_compiled_names_and_weights_are_the_plain_ones(make_model):
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compile_layers(model.roformer, backend="aot_eager")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_norm_rotation_and_softmax_are_fp32_under_autocast(make_model, inputs, monkeypatch):
    from kexue_train.model import modeling_roformer_v2 as modeling

    seen: dict[str, torch.dtype] = {}
    norm, attention = torch.nn.functional.rms_norm, torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(modeling.F, "rms_norm", lambda x, *a, **k: seen.update(norm=x.dtype) or norm(x, *a, **k))
    monkeypatch.setattr(
        modeling.F,
        "scaled_dot_product_attention",
        lambda q, *a, **k: seen.update(attention=q.dtype) or attention(q, *a, **k),
    )
    model = make_model()
    with torch.autocast("cpu", torch.bfloat16):
        model(**inputs)
    assert seen == {"norm": torch.float32, "attention": torch.float32}
    assert modeling.rotary_table(torch.zeros(1, 2, dtype=torch.long), 8, 1e4).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of the compiler's own modules
@pytest.mark.parametrize("recompute", [None, "full", "selective"])
def test_inductor_computes_the_same(make_model, inputs, recompute):
    plain, compiled = (make_model(gain=1.0).train(recompute is not None) for _ in range(2))
    for model in (plain, compiled):
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "query"):
                module.dropout = 0.0
    if recompute:
        enable_recompute(compiled.roformer, recompute)
    compile_layers(compiled.roformer)
    for a, b in zip(*(loss_and_gradients(model, inputs) for model in (plain, compiled)), strict=True):
        assert (a - b).norm() <= 1e-4 * a.norm()
