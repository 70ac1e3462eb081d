"""The watchdog bites when nothing moves, says who holds up whom, and lets the living live."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kexue_train.train.faults import watchdog as module
from kexue_train.train.faults.watchdog import FIRST_STEP, HUNG, Position, Watchdog, diagnose, unfinished_work


class Kennel:
    """A watchdog that notes what it would have done to the process."""

    def __init__(
        self,
        folder: Path,
        timeout: float,
        world_size: int = 1,
        unfinished_work: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.codes: list[int] = []
        self.bitten = threading.Event()
        self.dog = Watchdog(folder, 0, world_size, timeout, unfinished_work, end=self._end)

    def _end(self, code: int) -> None:
        self.codes.append(code)
        self.bitten.set()


def hang_somewhere(released: threading.Event) -> None:
    released.wait(60)


def test_a_hung_thread_is_named_with_its_place_and_ends_the_process(tmp_path, capfd):
    kennel = Kennel(tmp_path, timeout=0.4)
    with kennel.dog:
        kennel.dog.beat(1)
        hang_somewhere(kennel.bitten)
    assert kennel.codes == [HUNG]
    stacks = (tmp_path / "rank-0.stacks.txt").read_text()
    assert "hang_somewhere" in stacks  # of all threads, as faulthandler writes them
    assert "rank 0 on" in stacks
    assert "behind: rank 0, after micro-step 1" in capfd.readouterr().err


def test_who_beats_lives_and_leaves_no_file(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    kennel = Kennel(tmp_path, timeout=0.4)
    with kennel.dog:
        for _ in range(20):
            time.sleep(0.05)  # in which it looks
            kennel.dog.beat(1)
            now[0] += 0.3
    assert not kennel.codes
    assert list(tmp_path.iterdir()) == []


def test_the_first_step_has_more_time(tmp_path):
    kennel = Kennel(tmp_path, timeout=0.4)
    with kennel.dog:
        began = time.monotonic()
        hang_somewhere(kennel.bitten)
    assert kennel.codes == [HUNG]
    assert time.monotonic() - began >= 0.4 * FIRST_STEP * 0.8  # it looks 8 times in 0.4 s


def test_a_process_that_was_stopped_for_long_has_not_hung(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    kennel = Kennel(tmp_path, timeout=0.4)
    with kennel.dog:
        kennel.dog.beat(1)
        time.sleep(0.2)
        now[0] += 3600.0  # as after kill -STOP and an hour later kill -CONT
        time.sleep(0.2)
    assert not kennel.codes


def _position(rank: int, micro_steps: int, waits_in: str | None) -> Position:
    return Position(rank, f"host{rank}", micro_steps, waits_in, f"place{rank} (file.py:{rank})")


@pytest.mark.parametrize(
    ("positions", "world_size", "said"),
    [
        ([_position(0, 7, "all_reduce"), _position(1, 7, None)], 2, "behind: rank 1, after micro-step 7"),
        ([_position(0, 7, None), _position(1, 6, None)], 2, "behind: rank 1, after micro-step 6"),
        ([_position(0, 7, "all_reduce")], 3, "ranks 1, 2 of 3 did not even tell where"),
        ([_position(0, 7, "add"), _position(1, 7, "add")], 2, "all ranks wait for each other after micro-step 7"),
    ],
    ids=["in the same step", "a step behind", "dead", "network"],
)  # fmt: skip
def test_the_rank_that_the_others_wait_for_is_found(positions, world_size, said):
    assert said in diagnose(positions, world_size)


def test_a_wait_for_the_others_is_told_from_other_work(monkeypatch):
    frames = []

    def all_reduce() -> None:
        frames.append(__import__("sys")._getframe())

    code = all_reduce.__code__.replace(co_filename="/site-packages/torch/distributed/distributed_c10d.py")
    all_reduce.__code__ = code
    all_reduce()
    assert module._where(frames[0])[0] == "all_reduce"
    assert module._where(__import__("sys")._getframe())[0] is None


def test_a_rank_whose_device_is_busy_waits_and_one_with_an_idle_device_is_behind(tmp_path):
    """Both hang in a line of their own: one in reading a result, one before it gave its device anything."""

    def position(work: str | None) -> Position:
        kennel = Kennel(tmp_path, timeout=0.2, unfinished_work=lambda: work)
        with kennel.dog:
            kennel.dog.beat(7)
            hang_somewhere(kennel.bitten)
        return Position(**json.loads((tmp_path / "rank-0.position.json").read_text()))

    waiting, hung = position("cuda:0"), replace(position(None), rank=1)
    assert waiting.waits_in == "cuda:0"
    assert "behind: rank 1, after micro-step 7" in diagnose([waiting, hung], 2)
    assert "all ranks wait for each other after micro-step 7 (in cuda:0)" in diagnose([waiting, waiting], 1)


def test_a_wait_in_torchs_own_lines_for_the_device_is_one(monkeypatch):
    frames = []

    def synchronize() -> None:
        frames.append(__import__("sys")._getframe())

    synchronize.__code__ = synchronize.__code__.replace(co_filename="/site-packages/torch/cuda/__init__.py")
    synchronize()
    assert module._where(frames[0])[0] == "synchronize"


@pytest.mark.parametrize(
    ("finished", "named"), [(True, None), (False, "cuda:1"), (RuntimeError("CUDA error: unknown error"), None)]
)
def test_a_device_with_unfinished_work_is_named(monkeypatch, finished, named):
    class Stream:
        def query(self) -> bool:
            if isinstance(finished, RuntimeError):
                raise finished
            return finished

    monkeypatch.setattr(module.torch.cuda, "default_stream", lambda _: Stream())
    assert unfinished_work(torch.device("cuda", 1)) == named
    assert unfinished_work(torch.device("cpu")) is None


def test_the_last_collectives_are_written_beside_the_stacks(tmp_path):
    kennel = Kennel(tmp_path, timeout=0.2)
    with kennel.dog:
        kennel.dog.beat(1)
        hang_somewhere(kennel.bitten)
    assert "version" in json.loads((tmp_path / "rank-0.collectives.json").read_text())
