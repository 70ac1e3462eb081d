"""``micro_batch_size: auto`` and running out of memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.foundation.errors import ResourceError
from kexue_train.train import micro_batch
from kexue_train.train.engine import TorchEngine
from kexue_train.train.job import TrainDir
from kexue_train.train.micro_batch import Cost, choose_size, divisors, is_out_of_memory
from tests.train.tiny_training import curve, final_tensors, make_config, same_bits, train_here

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
ON_CPU = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to"


def device(*, fixed: int, per_row: int, setup: float = 1.0, memory: float = math.inf) -> Callable[[int], Cost | None]:
    """A device of so much memory on which a batch takes ``setup`` and one second per row."""

    def run(size: int) -> Cost | None:
        peak = fixed + per_row * size
        return Cost(peak, setup + size) if peak <= memory else None

    return run


@given(st.integers(1, 400), st.integers(0, 50), st.integers(1, 9), st.integers(0, 4000))
def test_without_a_gain_in_view_the_largest_that_fits_is_chosen(rows, fixed, per_row, budget):
    fitting = [size for size in divisors(rows) if fixed + per_row * size <= budget]
    huge_setup = device(fixed=fixed, per_row=per_row, setup=1e6)
    assert choose_size(divisors(rows), huge_setup, budget) == max(fitting, default=0)


@given(st.integers(1, 400), st.integers(1, 9), st.integers(1, 4000))
def test_a_size_that_runs_out_of_memory_ends_the_search(rows, per_row, memory):
    run = device(fixed=0, per_row=per_row, setup=1e6, memory=memory)
    fitting = [size for size in divisors(rows) if per_row * size <= memory]
    assert choose_size(divisors(rows), run, 10**9) == max(fitting, default=0)


def test_what_will_not_fit_by_the_line_through_the_peaks_is_not_tried():
    tried = []

    def run(size: int) -> Cost:
        tried.append(size)
        return Cost(100 + 10 * size, 1000 + size)

    assert choose_size([1, 2, 4, 8, 16], run, budget_bytes=199) == 8
    assert tried == [1, 2, 4, 8]


def test_a_size_no_faster_than_half_of_it_is_not_worth_its_memory():
    # Per row 2, 1.5, 1.25, 1.125, 1.06, 1.03, 1.016: from 16 rows to 32 the gain is below 3 %.
    assert choose_size([1, 2, 4, 8, 16, 32, 64], device(fixed=0, per_row=1), budget_bytes=10**9) == 16


def test_divisors_are_all_of_them():
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes "auto" measure as always and then find this size."""

    def choose(size: int) -> None:
        def find(sizes, run, budget):
            assert all(run(tried).peak_bytes <= budget for tried in sizes)
            return size

        monkeypatch.setattr(micro_batch, "choose_size", find)

    return choose


@pytest.mark.parametrize("size", [2, 8])
def test_auto_gives_the_bits_of_the_same_number_given_by_hand(samples, tmp_path, chosen, size):
    chosen(size)
    train_here(make_config(micro_batch_size="auto"), samples, tmp_path / "auto")
    train_here(make_config(micro_batch_size=size), samples, tmp_path / "hand")
    assert curve(tmp_path / "auto", "start")[0]["micro_batch_size"] == size
    assert same_bits(final_tensors(tmp_path / "auto"), final_tensors(tmp_path / "hand"))
    assert curve(tmp_path / "auto") == curve(tmp_path / "hand")


def test_auto_finds_a_divisor_on_this_machine(samples, tmp_path):
    train_here(make_config(micro_batch_size="auto", global_batch_size=12), samples, tmp_path / "out")
    line = curve(tmp_path / "out", "start")[0]
    assert line["micro_batch_size"] in divisors(12)
    assert line["micro_batch_size"] * line["accumulation_steps"] == 12


def test_each_phase_has_its_own_and_a_resume_keeps_what_was_found(samples, tmp_path, chosen, monkeypatch):
    out = tmp_path / "out"
    phases = [{"steps": 4, "global_batch_size": 6}, {"steps": 3, "micro_batch_size": 8}, {"steps": 1}]
    chosen(2)
    train_here(make_config(micro_batch_size="auto", phases=phases), samples, out)
    assert [line["micro_batch_size"] for line in curve(out, "start", "phase")] == [2, 8, 2]
    assert list(json.loads(TrainDir(out).micro_batch_sizes.read_text()).values()) == [2, 2]
    (out / "manifest.json").unlink()
    chosen(1)
    train_here(make_config(micro_batch_size="auto", phases=phases), samples, out)
    assert curve(out, "resume")[-1]["micro_batch_size"] == 2
    train_here(make_config(micro_batch_size="auto", phases=phases, recompute="full"), samples, out)
    assert curve(out, "resume")[-1]["micro_batch_size"] == 1  # found anew, since other memory is needed


def test_when_not_even_a_row_fits_the_message_says_what_to_lower(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(micro_batch, "_budget_bytes", lambda _: 1000)
    with pytest.raises(ResourceError, match=r"auto: not even one row of 32 tokens fits cpu with 1 kB .*recompute=full"):
        train_here(make_config(micro_batch_size="auto"), samples, tmp_path / "out")


def test_a_trial_that_runs_out_of_memory_leaves_no_gradient(samples, tmp_path, monkeypatch):
    from kexue_train.train.objective import PretrainingObjective

    forward, left = PretrainingObjective.forward, []

    def crowded(self, batch):
        if len(batch["input_ids"]) > 2:
            left.append(any(parameter.grad is not None for parameter in self.parameters()))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingObjective, "forward", crowded)
        patch.setattr(micro_batch, "_GAIN", 9.0)  # however the clock goes
        train_here(make_config(STILL, micro_batch_size="auto"), samples, tmp_path / "auto")
    train_here(make_config(STILL, micro_batch_size=2), samples, tmp_path / "hand")
    assert left == [True]
    assert same_bits(final_tensors(tmp_path / "auto"), final_tensors(tmp_path / "hand"))


def test_memory_of_this_process_is_measured():
    cpu = torch.device("cpu")
    micro_batch._forget_peak(cpu)
    before = micro_batch._peak_bytes(cpu)
    torch.ones(50_000_000)
    peak = micro_batch._peak_bytes(cpu)
    assert 190e6 < peak - before < 300e6
    micro_batch._forget_peak(cpu)
    assert micro_batch._peak_bytes(cpu) < peak - 100e6


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(ON_CPU),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other API call"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
        RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("call failed: cudaErrorMemoryAllocation"),
        RuntimeError("unable to allocate 68719476736 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_known_in_all_its_forms(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("out of resource: shared memory, Required: 245760, Hardware limit: 232448"),
        RuntimeError("NCCL error: unhandled system error\nLast error:\nConnection refused"),
    ],
)
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {},
            r"4 rows of 32 tokens with .*Set micro_batch_size=2 \(.*or auto; or train\.compute\.recompute=full",
        ),
        ({"global_batch_size": 24, "micro_batch_size": 6}, r"Set micro_batch_size=3 "),
        (
            {"micro_batch_size": 1},
            r"\)\. Set train\.compute\.recompute=full \(a third more work\); then run the same command",
        ),
        ({"micro_batch_size": 1, "recompute": "full"}, r"Set shorter rows, a smaller model, or a device"),
        (
            {"phases": [{"steps": 2, "micro_batch_size": 1, "global_batch_size": 8}, {"steps": 6}]},
            r"2: a micro-batch of 4 .* Set micro_batch_size=2 in phase 2",
        ),
    ],
)
def test_running_out_of_memory_says_what_to_lower_and_by_how_much(samples, tmp_path, monkeypatch, train, said):
    micro_step, calls = TorchEngine.micro_step, []

    def crowded(self, batch, *more):
        calls.append(batch)
        if len(calls) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
        return micro_step(self, batch, *more)

    monkeypatch.setattr(TorchEngine, "micro_step", crowded)
    with pytest.raises(ResourceError, match=rf"out of memory on cpu after step .*{said}") as error:
        train_here(make_config(**{"global_batch_size": 32, **train}), samples, tmp_path / "out")
    assert "(CUDA out of memory. Tried to allocate 2.00 GiB.)" in str(error.value)
