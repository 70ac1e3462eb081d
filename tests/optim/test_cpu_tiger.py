"""Tiger's compiled functions give the bits of plain operations, and are done without where they cannot be had."""

from __future__ import annotations

import logging
import stat

import pytest
import torch
from torch import Tensor

from kexue_train.optim import Tiger, cpu_tiger
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import build_param_groups
from kexue_train.optim.random_bits import Rounding

needs_compiler = pytest.mark.skipif(
    cpu_tiger.compiled() is None, reason="no C compiler whose code rounds as torch does"
)


@pytest.fixture
def fresh():
    """Compile anew in the test, and again after it."""
    cpu_tiger.compiled.cache_clear()
    yield
    cpu_tiger.compiled.cache_clear()


@pytest.fixture(params=[1, 3], ids="{}threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _weights_and_state(monkeypatch: pytest.MonkeyPatch, *, compiled: bool, bf16: bool, k: int) -> list[Tensor]:
    """Train a table, a matrix and a vector on random gradients for three steps of ``k`` micro-batches."""
    with monkeypatch.context() as patch:
        if not compiled:
            patch.setattr(cpu_tiger, "compiled", lambda: None)
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"table": torch.nn.Embedding(1001, 193), "matrix": torch.nn.Linear(1003, 257)})
        model = model.to(torch.bfloat16) if bf16 else model
        optimizer = Tiger(build_param_groups(model), lr=1e-2, accumulation_steps=k, options=Options(bf16_states=bf16))
        for _ in range(3 * k):
            for param in model.parameters():
                param.grad = torch.randn(param.shape).mul_(torch.rand(param.shape) < 0.9).to(param.dtype)
            optimizer.step()
        return [*model.parameters(), *optimizer.named_moments().values()]


@needs_compiler
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_a_training_has_the_same_bits_with_and_without(monkeypatch, threads, bf16, k):
    with_, without = (_weights_and_state(monkeypatch, compiled=compiled, bf16=bf16, k=k) for compiled in (True, False))
    assert len(with_) == 6
    for ours, plain in zip(with_, without, strict=True):
        assert torch.equal(ours, plain)


@needs_compiler
def test_the_compiled_functions_are_used(monkeypatch):
    calls = []
    kernels = cpu_tiger.compiled()
    monkeypatch.setattr(kernels, "fold_", lambda *_, **__: calls.append("fold"))
    monkeypatch.setattr(kernels, "move_", lambda *_, **__: calls.append("move"))
    _weights_and_state(monkeypatch, compiled=True, bf16=False, k=1)
    assert calls.count("fold") == calls.count("move") == 2 * 3  # table and matrix, three steps


@needs_compiler
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_bad_gradient_leaves_the_momentum_as_it_was(value):
    table = torch.nn.Parameter(torch.randn(1024, 128))
    optimizer = Tiger([table], lr=1e-2)
    table.grad = torch.randn_like(table)
    optimizer.step()
    before = [moment.clone() for moment in optimizer.named_moments().values()]
    table.grad = torch.randn_like(table)
    table.grad[511, 7] = value
    optimizer.step()
    assert all(map(torch.equal, before, optimizer.named_moments().values()))


@needs_compiler
def test_bits_of_bf16_do_not_depend_on_the_number_of_threads(threads):
    kernels = cpu_tiger.compiled()
    moment, grad = torch.zeros(1 << 18, dtype=torch.bfloat16), torch.full((1 << 18,), 0.3, dtype=torch.bfloat16)
    kernels.fold_(moment, grad, decay=1.0, weight=0.01, rounding=Rounding(5, 6), number=7)
    one = torch.zeros_like(moment)
    torch.set_num_threads(1)
    kernels.fold_(one, grad, decay=1.0, weight=0.01, rounding=Rounding(5, 6), number=7)
    assert torch.equal(moment, one)
    assert moment.unique().numel() == 2  # both neighbours occur
    assert abs(moment.double().mean() - float(grad[0]) * 0.01) < 1e-7


def test_what_is_small_mixed_or_not_contiguous_is_left_to_plain_operations(monkeypatch):
    monkeypatch.setattr(cpu_tiger, "compiled", lambda: "kernels")
    large = torch.zeros(1 << 8, 1 << 8)
    assert cpu_tiger.kernels_for(large, large) == "kernels"
    assert cpu_tiger.kernels_for(large[:-1]) is None
    assert cpu_tiger.kernels_for(large, large.bfloat16()) is None
    assert cpu_tiger.kernels_for(large, large.T) is None
    assert cpu_tiger.kernels_for(large.double()) is None
    assert cpu_tiger.kernels_for(torch.zeros(1 << 8, 1 << 8, device="meta")) is None


def test_without_a_compiler_training_goes_on_and_the_log_says_why(monkeypatch, fresh, caplog):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with caplog.at_level(logging.INFO):
        assert cpu_tiger.compiled() is None
    assert "there is no C compiler" in caplog.text


def test_a_compiler_that_fails_is_told_of(monkeypatch, fresh, caplog, tmp_path):
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\necho 'no such option: -O3' >&2; exit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    with caplog.at_level(logging.INFO):
        assert cpu_tiger.compiled() is None
    assert "no such option: -O3" in caplog.text


@needs_compiler
def test_code_that_rounds_differently_is_not_used(monkeypatch, fresh, caplog, tmp_path):
    source, fused = cpu_tiger._SOURCE.read_text(), "fmaf(weight, g[i], decay * m[i])"
    assert fused in source
    changed = tmp_path / "cpu_tiger.c"
    changed.write_text(source.replace(fused, "weight * g[i] + decay * m[i]"))
    monkeypatch.setattr(cpu_tiger, "_SOURCE", changed)
    with caplog.at_level(logging.INFO):
        assert cpu_tiger.compiled() is None
    assert "rounds in another way" in caplog.text


@needs_compiler
def test_nothing_is_left_in_the_folder_for_temporary_files(monkeypatch, fresh, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cpu_tiger.compiled() is not None
    assert not list(tmp_path.iterdir())
