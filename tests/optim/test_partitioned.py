"""Slices of tensors, cut anywhere and spread over ranks, give what the whole tensors give."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor

from kexue_train.optim import accumulation
from kexue_train.optim.accumulation import HiddenAccumulation
from kexue_train.optim.options import Options
from kexue_train.optim.param_groups import Role
from kexue_train.optim.partitioned import FlatSteps, SliceMap, TensorSlice
from kexue_train.optim.step_sizes import ScalarLayout
from kexue_train.optim.tiger_update import TigerRule

CPU = torch.device("cpu")


@dataclass
class Cut:
    """Tensors, and the ranks that hold them in slices."""

    tensors: list[Tensor]
    layout: ScalarLayout
    maps: list[SliceMap]
    """One per rank."""
    flats: list[list[Tensor]]
    """Flat tensors of each rank."""

    def slices(self) -> list[list[Tensor]]:
        """What the ranks hold of the tensors, by slice; views."""
        return [[s.of(flats) for s in own.slices] for own, flats in zip(self.maps, self.flats, strict=True)]

    def reassembled(self) -> list[Tensor]:
        """The tensors, as they lie on the ranks."""
        wholes = [torch.full((tensor.numel(),), torch.nan, dtype=tensor.dtype) for tensor in self.tensors]
        for own, flats in zip(self.maps, self.flats, strict=True):
            for part in own.slices:
                part.within(wholes[part.tensor]).copy_(part.of(flats))
        return [whole.view(tensor.shape) for whole, tensor in zip(wholes, self.tensors, strict=True)]


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Random tensors in random pieces on 1 to 5 ranks with 1 or 2 flat tensors each, padding between the pieces."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    roles = draw(st.lists(st.sampled_from(Role), min_size=1, max_size=4))
    side = st.integers(1, 7)
    shapes = [Size((draw(side),) if role is Role.VECTOR else (draw(side), draw(side))) for role in roles]
    tensors = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    ranks, flats_per_rank = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    slices: list[list[TensorSlice]] = [[] for _ in range(ranks)]
    parts: list[list[list[Tensor]]] = [[[] for _ in range(flats_per_rank)] for _ in range(ranks)]
    for index, tensor in enumerate(tensors):
        borders = draw(st.lists(st.integers(1, tensor.numel()), max_size=6))
        borders = sorted({0, tensor.numel(), *borders})
        for start, end in pairwise(borders):
            rank, flat = draw(st.integers(0, ranks - 1)), draw(st.integers(0, flats_per_rank - 1))
            lying = parts[rank][flat]
            lying.append(torch.full((draw(st.integers(0, 3)),), torch.inf, dtype=torch.float64))  # padding
            offset = sum(part.numel() for part in lying)
            lying.append(tensor.view(-1)[start:end])
            slices[rank].append(TensorSlice(index, start, end - start, flat, offset))
    layout = ScalarLayout(shapes, roles, CPU)
    flats = [[torch.cat(flat) if flat else torch.empty(0, dtype=torch.float64) for flat in rank] for rank in parts]
    return Cut(tensors, layout, [SliceMap(layout, each) for each in slices], flats)


def whole_sums(cut: Cut) -> Tensor:
    """Sums of squares by the definition."""
    sums = []
    for tensor, role in zip(cut.tensors, cut.layout.roles, strict=True):
        square = tensor.square()
        sums.append(square.sum(-1) if role is Role.EMBEDDING else square.sum()[None] * (role is Role.MATRIX))
    return torch.cat(sums)


@given(cuts())
def test_partial_sums_of_squares_add_up_to_those_of_whole_tensors_and_rows(cut):
    total = sum(own.sum_powers(slices) for own, slices in zip(cut.maps, cut.slices(), strict=True))
    torch.testing.assert_close(total, whole_sums(cut), rtol=2e-15, atol=0)


@given(cuts())
def test_scalars_of_tensors_and_rows_reach_each_of_their_elements_once(cut):
    factors = torch.arange(1, cut.layout.total + 1, dtype=torch.float64)
    for own, slices in zip(cut.maps, cut.slices(), strict=True):
        for blocks, kept in zip(own.blocks, slices, strict=True):
            for block in blocks:
                block.of(kept).mul_(factors[block.lines, None])
    for moved, tensor, role, own in zip(
        cut.reassembled(), cut.tensors, cut.layout.roles, cut.layout.split(factors), strict=True
    ):
        assert torch.equal(moved, tensor * (own[:, None] if role is Role.EMBEDDING else own))


@given(cuts())
def test_slices_moved_by_whole_sums_are_the_moved_tensors(cut):
    """One step of Tiger, by its definition on whole tensors and by parts on slices."""
    sums = sum(own.sum_powers(slices) for own, slices in zip(cut.maps, cut.slices(), strict=True))
    step = torch.where(cut.layout.mask(Role.VECTOR), 0.5, (sums / cut.layout.elements).sqrt()) * 1e-3
    for own, slices in zip(cut.maps, cut.slices(), strict=True):
        for blocks, kept in zip(own.blocks, slices, strict=True):
            for block in blocks:
                view = block.of(kept)
                view.sub_(step[block.lines, None] * (view.sign() + 0.01 * view))
    for moved, tensor, role in zip(cut.reassembled(), cut.tensors, cut.layout.roles, strict=True):
        expected = tensor.clone()
        size = tensor.square().mean(-1, keepdim=True) if role is Role.EMBEDDING else tensor.square().mean()
        expected -= (0.5 if role is Role.VECTOR else size.sqrt()) * 1e-3 * (tensor.sign() + 0.01 * tensor)
        torch.testing.assert_close(moved, expected, rtol=1e-15, atol=1e-18)


@given(cuts())
def test_slices_have_at_most_three_blocks_that_cover_them_once(cut):
    for own in cut.maps:
        for part, blocks in zip(own.slices, own.blocks, strict=True):
            assert len(blocks) <= 3
            marks = torch.zeros(part.numel)
            for block in blocks:
                block.of(marks).add_(1)
            assert bool((marks == 1).all())


@given(cuts())
def test_sums_over_slices_add_up_to_those_over_tensors(cut):
    pairs = zip(cut.maps, cut.slices(), strict=True)
    total = sum(own.add_up([kept.abs().sum() for kept in slices]) for own, slices in pairs)
    expected = torch.stack([tensor.abs().sum() for tensor in cut.tensors])
    torch.testing.assert_close(total.to(torch.float64), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("start", "numel", "expected"),
    [
        (0, 12, [(0, 3, 4)]),
        (2, 7, [(0, 1, 2), (1, 1, 4), (2, 1, 1)]),
        (5, 2, [(1, 1, 2)]),
        (4, 4, [(1, 1, 4)]),
        (1, 11, [(0, 1, 3), (1, 2, 4)]),
    ],
)
def test_a_slice_of_an_embedding_is_cut_where_rows_begin(start, numel, expected):
    layout = ScalarLayout([Size((3, 4))], [Role.EMBEDDING], CPU)
    (blocks,) = SliceMap(layout, [TensorSlice(0, start, numel, 0, 0)]).blocks
    assert [(b.lines.start, b.lines.stop - b.lines.start, b.width) for b in blocks] == expected


def test_whole_moments_are_freed_when_slices_are_made_and_kernels_never_hear_of_them(monkeypatch):
    monkeypatch.setattr(accumulation, "choose_storage", lambda *_: pytest.fail("kernels for whole tensors"))
    net = torch.nn.Linear(8, 4)
    defaults = {"lr": 1e-3, "beta": 0.9, "weight_decay": 0.0}
    optimizer = HiddenAccumulation(net.parameters(), TigerRule(0.9), defaults, partitioned=True)
    whole = weakref.ref(optimizer.tensors[0].moments[0].untyped_storage())
    flats = [param.detach().clone().flatten() for param in net.parameters()]
    slices = [TensorSlice(index, 0, flat.numel(), index, 0) for index, flat in enumerate(flats)]
    FlatSteps(optimizer).attach(flats, slices)
    gc.collect()
    assert whole() is None


DEFAULTS = {"lr": 1e-2, "beta": 0.9, "weight_decay": 0.1}


def make_heads() -> torch.nn.ModuleList:
    """A layer that is always trained, and two heads."""
    torch.manual_seed(0)
    return torch.nn.ModuleList(torch.nn.Linear(5, 4) for _ in range(3))


def halves_of(params: list[Tensor]) -> tuple[list[Tensor], list[TensorSlice]]:
    """The parameters in two slices each, in one flat tensor."""
    flat, slices, end = torch.cat([param.detach().flatten() for param in params]), [], 0
    for index, param in enumerate(params):
        half = param.numel() // 2
        slices += [TensorSlice(index, 0, half, 0, end), TensorSlice(index, half, param.numel() - half, 0, end + half)]
        end += param.numel()
    return [flat], slices


def train_whole(options: Options, heads_of: list[list[int]]) -> dict[str, Tensor]:
    """Two micro-batches per step, each with the layer and one head; what autograd leaves out gets no gradient."""
    net = make_heads()
    optimizer = HiddenAccumulation(net.parameters(), TigerRule(0.9), DEFAULTS, accumulation_steps=2, options=options)
    for step, heads in enumerate(heads_of):
        for micro, head in enumerate(heads):
            x = torch.randn(3, 5, generator=torch.Generator().manual_seed(10 * step + micro))
            (net[0](x) * net[head](x)).sum().backward()
            optimizer.step()
    return dict(net.named_parameters()) | optimizer.named_moments()


def train_slices(options: Options, heads_of: list[list[int]]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The same by slices, with gradients of zero for the other head, as an engine hands them over.

    Returns:
        Parameters and moments, and what the gradient observer saw.
    """
    net, seen = make_heads(), []
    params = list(net.parameters())
    optimizer = HiddenAccumulation(
        params, TigerRule(0.9), DEFAULTS, accumulation_steps=2, options=options, partitioned=True
    )
    optimizer.gradient_observer = lambda index, gradient: seen.append((index, gradient.clone()))
    flats, slices = halves_of(params)
    steps = FlatSteps(optimizer)
    steps.attach(flats, slices)
    for step, heads in enumerate(heads_of):
        for micro, head in enumerate(heads):
            x = torch.randn(3, 5, generator=torch.Generator().manual_seed(10 * step + micro))
            loss = (net[0](x) * net[head](x)).sum() + net[3 - head](x[:0]).sum()
            (loss if steps.hidden else loss / 2).backward()
            steps.note_trained([*net[0].parameters(), *net[head].parameters()])
            if steps.wants_gradients:
                steps.fold([own.within(params[own.tensor].grad).clone() for own in slices])
                net.zero_grad()
            if optimizer.ends_step:
                steps.decide()
                steps.param_groups[0]["params"] = flats
                steps.step()
                with torch.no_grad():
                    for own in slices:
                        own.within(params[own.tensor]).copy_(own.of(flats))
            optimizer.step()
    names = [f"momentum.{name}" for name, _ in net.named_parameters()]
    moments = dict(zip(names, (moment for _, moment in steps.whole_moments()), strict=True))
    return dict(net.named_parameters()) | moments, seen


@pytest.mark.parametrize("accumulate", ["momentum", "gradient"])
def test_what_no_micro_batch_of_a_step_trains_rests_in_slices_as_in_whole_tensors(accumulate):
    options = Options(accumulate=accumulate, lazy_tensors=True)
    heads_of = [[1, 2], [1, 1], [2, 1], [2, 2]]
    by_step = [train_slices(options, heads_of[:done])[0] for done in range(1, 5)]
    for done, slices in enumerate(by_step, 1):
        for expected, found in zip(train_whole(options, heads_of[:done]).values(), slices.values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for name in ("weight", "bias"):
        for kept in (f"1.{name}", f"2.{name}", f"momentum.1.{name}", f"momentum.2.{name}"):
            rests = [torch.equal(before[kept], after[kept]) for before, after in pairwise(by_step)]
            assert rests == ([False, False, True] if "1." in kept else [True, False, False])


def test_an_observer_sees_whole_gradients_before_they_are_cut():
    _, seen = train_slices(Options(lazy_tensors=True), [[1, 2]])
    net = make_heads()
    expected = []
    for micro, head in enumerate([1, 2]):
        net.zero_grad()
        x = torch.randn(3, 5, generator=torch.Generator().manual_seed(micro))
        (net[0](x) * net[head](x)).sum().backward()
        expected.append({i: p.grad.clone() for i, p in enumerate(net.parameters()) if p.grad is not None})
    for micro, gradients in enumerate(expected):
        found = dict(seen[6 * micro : 6 * micro + 6])
        assert found.keys() == set(range(6))
        for index, gradient in found.items():
            assert torch.equal(gradient, gradients.get(index, torch.zeros_like(gradient)))
