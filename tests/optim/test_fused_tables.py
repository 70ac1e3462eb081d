"""The tables of the fused kernels: every element once, under the right scalar, and vectors only where they fit."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kexue_train.optim.param_groups import Role
from kexue_train.optim.random_bits import Rounding
from kexue_train.optim.step_sizes import ScalarLayout

pytest.importorskip("triton", reason="Triton is made for Linux only")
from kexue_train.optim import fused_tiger, storage
from kexue_train.optim import triton_tiger as kernels
from kexue_train.optim.fused_tiger import FusedTables, FusedTensors, fused_tables
from kexue_train.optim.storage import choose_storage
from kexue_train.optim.tiger_update import TigerRule
from kexue_train.optim.whole_tensors import WholeTensors

ROWS, COLUMNS = 4, 8
SHAPE_OF = {
    Role.MATRIX: st.tuples(st.integers(0, 70), st.integers(1, 70)),
    Role.EMBEDDING: st.tuples(st.integers(0, 30), st.sampled_from([1, 7, 8, 16, 24, 25])),
    Role.VECTOR: st.tuples(st.integers(0, 3000)),
}
TENSORS = st.lists(
    st.sampled_from(Role).flatmap(lambda role: st.tuples(st.just(role), SHAPE_OF[role])), min_size=1, max_size=6
)


def tables_of(
    drawn: list[tuple[Role, tuple[int, ...]]],
) -> tuple[FusedTables, list[Tensor], list[Tensor], ScalarLayout]:
    params = [torch.zeros(shape) for _, shape in drawn]
    flat = torch.zeros(sum(param.numel() for param in params))
    momenta = list(flat.split([param.numel() for param in params]))
    layout = ScalarLayout([p.shape for p in params], [role for role, _ in drawn], torch.device("cpu"))
    numbers = list(range(len(params)))
    tables = fused_tables(params, momenta, layout, numbers, [7 * n for n in numbers], rows=ROWS, columns=COLUMNS)
    return tables, params, momenta, layout


@given(TENSORS)
def test_every_element_is_worked_on_once_under_its_scalar(drawn):
    tables, params, momenta, layout = tables_of(drawn)
    worked_on = [[-1] * param.numel() for param in params]
    for address, momentum, start, elements, width, scalar, stride, _, stream, _ in tables.tiles.tolist():
        assert address == params[stream].data_ptr() + 4 * start
        assert momentum == momenta[stream].data_ptr() + 4 * start
        for element in range(elements):
            assert worked_on[stream][start + element] == -1
            worked_on[stream][start + element] = scalar + element // width * stride
    for mine, param, scalars in zip(worked_on, params, layout.split(torch.arange(layout.total)), strict=True):
        expected = scalars[:, None].expand(len(scalars), param.numel() // max(len(scalars), 1))
        assert mine == expected.flatten().tolist()


@given(TENSORS)
def test_gradients_are_folded_where_the_momenta_lie(drawn):
    tables, _, momenta, _ = tables_of(drawn)
    assert tables.momenta.tolist() == [[m.data_ptr(), m.numel(), 7 * n] for n, m in enumerate(momenta)]


@given(TENSORS)
def test_sums_of_all_tiles_arrive_at_their_scalars(drawn):
    tables, _, _, layout = tables_of(drawn)
    sums = tables.sums.tolist()
    for _, _, _, elements, width, _, stride, target, _, _ in tables.tiles.tolist():
        for element in range(elements):
            sums[target + element // width * stride] += 1.0  # every element counts one
    for first, count, target in tables.spans.tolist():
        sums[target] = sum(sums[first : first + count])
    assert sums[: layout.total] == layout.elements.tolist()


@given(TENSORS)
def test_vectors_are_read_only_from_full_and_aligned_tiles(drawn):
    tables, *_ = tables_of(drawn)
    for address, momentum, _, elements, width, *_, whole in tables.tiles.tolist():
        fits = address % 16 == 0 and momentum % 16 == 0 and width % COLUMNS == 0 and elements == ROWS * width
        assert whole == fits


def test_full_tiles_are_found():
    tables, *_ = tables_of([(Role.EMBEDDING, (9, 16)), (Role.MATRIX, (70, 64))])
    assert tables.tiles[:, -1].tolist() == [1, 1, 0, 1, 1, 0]


def test_tensors_beyond_32_bits_are_refused():
    param = torch.empty(2**33, dtype=torch.bfloat16, device="meta")
    layout = ScalarLayout([param.shape], [Role.MATRIX], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"2\*\*32 elements"):
        fused_tables([param], [param], layout, [0], [0], rows=ROWS, columns=COLUMNS)


def tracked(param: Tensor, *, on_gpu: bool = False) -> SimpleNamespace:
    momentum = torch.zeros_like(param)
    if on_gpu:
        momentum = SimpleNamespace(is_cuda=True, dtype=torch.float32, device=torch.device("cpu"))
    return SimpleNamespace(param=param, moments=(momentum,), index=0, rule=TigerRule(0.9))


def test_a_parameter_that_was_put_elsewhere_is_moved_there():
    param = torch.nn.Parameter(torch.zeros(4, 8))
    layout = ScalarLayout([param.shape], [Role.MATRIX], torch.device("cpu"))
    kept = FusedTensors([tracked(param)], TigerRule(0.9), layout, torch.zeros(1))
    param.data = torch.ones(4, 8)
    assert kept._fused._current_tables().tiles[:, 0].tolist() == [param.data_ptr()]


def test_kernels_are_gone_with_their_optimizer():
    param = torch.nn.Parameter(torch.zeros(4, 8))
    layout = ScalarLayout([param.shape], [Role.MATRIX], torch.device("cpu"))
    kept = FusedTensors([tracked(param)], TigerRule(0.9), layout, torch.zeros(1))
    gone = weakref.ref(kept)
    gc.disable()  # moments must not wait for the collector
    try:
        del kept
        assert gone() is None
    finally:
        gc.enable()


def test_without_a_compiler_the_kernels_are_tried_once_and_plain_operations_taken(monkeypatch, caplog):
    tried = []

    def fail(device: torch.device) -> None:
        tried.append(device)
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore")

    monkeypatch.setattr(fused_tiger, "try_kernel", fail)
    storage._triton_works.cache_clear()
    layout = ScalarLayout([torch.Size([4, 8])], [Role.MATRIX], torch.device("cpu"))
    for _ in range(2):
        chosen = choose_storage([tracked(torch.zeros(4, 8), on_gpu=True)], layout, torch.zeros(1))
        assert isinstance(chosen, WholeTensors)
    storage._triton_works.cache_clear()
    assert len(tried) == 1
    assert caplog.text.count("Triton's kernels do not run on cpu (Failed to find C compiler.") == 1


@pytest.mark.parametrize("time", [0, 127, 128, 2**37])
def test_kernels_are_compiled_for_streams_of_one_size(time):
    stream = Rounding(5, time).stream(7)
    wide = fused_tiger._as_wide(stream)
    assert 2**31 <= wide < 2**63
    assert wide & (kernels.WIDE - 1) == stream
