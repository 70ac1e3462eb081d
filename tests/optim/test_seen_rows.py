"""Rows whose token occurred in a window: against Python sets, over ranks, over a kill."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from kexue_train.optim.embedding_rows import SeenRows

ROWS = 9
TOKENS = st.lists(st.integers(0, ROWS - 1) | st.just(-100), max_size=12)


def seen(marks: SeenRows) -> set[int]:
    return set(marks.rows.nonzero().flatten().tolist())


@given(st.lists(st.tuples(TOKENS, TOKENS), max_size=4))
def test_a_window_has_seen_the_union_of_its_inputs_and_labels(micro_batches):
    marks = SeenRows(ROWS)
    for inputs, labels in micro_batches:
        marks.mark(torch.tensor(inputs, dtype=torch.long), torch.tensor(labels, dtype=torch.int32))
    assert seen(marks) == {token for both in micro_batches for ids in both for token in ids} - {-100}
    marks.reset()
    assert seen(marks) == set()


def test_shapes_of_tokens_do_not_matter_and_edges_are_rows():
    marks = SeenRows(ROWS)
    marks.mark(torch.tensor([[0, 4], [4, ROWS - 1]]), torch.tensor(2))
    assert seen(marks) == {0, 2, 4, ROWS - 1}
    assert (marks.rows.dtype, marks.rows.shape) == (torch.bool, (ROWS,))


@pytest.mark.parametrize("wrong", [ROWS, ROWS + 1, -1, -99, -101])
def test_a_number_out_of_range_is_refused_and_marks_nothing(wrong):
    marks = SeenRows(ROWS)
    with pytest.raises(ValueError, match=rf"tokens go from .*{wrong}.*allowed are 0 to {ROWS - 1}.*-100 for no token"):
        marks.mark(torch.tensor([3, wrong, -100]))
    assert seen(marks) == set()


def test_marking_waits_for_no_device():
    # Tensors of "meta" have no values: asking for one, which on a GPU would be to wait, is an error.
    marks = SeenRows(ROWS, "meta")
    marks.mark(torch.zeros(3, dtype=torch.long, device="meta"), torch.zeros(3, dtype=torch.long, device="meta"))
    marks.reset()
    assert marks.rows.is_meta


def test_a_window_goes_on_from_the_rows_it_had():
    first, second = SeenRows(ROWS), SeenRows(ROWS)
    first.mark(torch.tensor([1, 5]))
    state = first.rows.clone()
    first.reset()
    second.mark(torch.tensor([8]))  # of a window that is given up
    second.rows.copy_(state)
    second.mark(torch.tensor([2]))
    assert seen(second) == {1, 2, 5}


def _run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    marks = SeenRows(ROWS)
    marks.mark(torch.tensor([[0, 3], [3, 7]][rank]), torch.tensor([-100]))
    marks.reduce_over_ranks()
    marks.reduce_over_ranks()
    torch.save(marks.rows.clone(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_every_rank_knows_what_any_rank_has_seen(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_run_rank, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt").nonzero().flatten().tolist() == [0, 3, 7]
