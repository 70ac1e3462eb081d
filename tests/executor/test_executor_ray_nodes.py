"""A Ray cluster of two nodes on this machine: fetches come from the right one, a lost one is named, work goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kexue_train.executor import Fetch, RayExecutor, current_machine
from kexue_train.executor.ray_cluster import _loopback_with_token
from kexue_train.executor.ray_executor import share_of_machine
from kexue_train.executor.ray_machines import Node, wait_for_machines
from kexue_train.foundation.errors import MachineLostError, ResourceError, StaleArtifactError
from tests.executor.test_executor import (
    PROMPTLY,
    fail_at_three,
    is_alive,
    kill_own_process,
    touch,
    touch_and_sleep,
    wait_until,
)
from tests.ray_nodes import try_again

FIRST, SECOND = "127.0.0.2", "127.0.0.3"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two CPUs at FIRST; a dead node is noticed after about a second."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # of the tests before; they start another when they need it
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}  # a node takes them
    head = {"node_ip_address": FIRST, "num_cpus": 2, "include_dashboard": False, "_system_config": health}
    cluster = try_again(lambda: Cluster(initialize_head=True, head_node_args=head))
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def executor(cluster: Any) -> RayExecutor:
    return RayExecutor(cluster.address)


@pytest.fixture
def second(cluster: Any) -> Any:
    """Two CPUs at SECOND; they stay for the next tests if this one does not remove them."""
    if not cluster.worker_nodes:
        try_again(lambda: cluster.add_node(node_ip_address=SECOND, num_cpus=2, memory=2**30))
    return next(iter(cluster.worker_nodes))


def place_and_process(item: int) -> tuple[str, int]:
    time.sleep(0.3)
    return current_machine(), os.getpid()


def span(item: int) -> tuple[str, float, float]:
    began = time.time()
    time.sleep(0.5)
    return current_machine(), began, time.time()


def place_after_seconds(folder: Path, seconds: float) -> str:
    (folder / f"{current_machine()}-{os.getpid()}").touch()
    time.sleep(seconds)
    return current_machine()


def absolute(path: str) -> Path:
    return Path(path).absolute()


def large_array(number: int) -> np.ndarray:
    return np.full(1_000_000, number)


def join(item: str, fetched: list[str]) -> str:
    return f"{item}: {' '.join(fetched)}"


def first(item: int, fetched: list[int]) -> int:
    return fetched[0]


def fetcher_and_own_process(item: str, fetched: list[int]) -> tuple[int, int]:
    return fetched[0], os.getpid()


def total(item: int, fetched: list[np.ndarray]) -> int:
    return int(sum(array.sum() for array in fetched))


def machine_of(argument: str) -> str:
    return f"{argument}@{current_machine()}"


def most_at_once(spans: list[tuple[str, float, float]]) -> int:
    """The largest number of tasks that ran on one machine at a time."""
    return max(
        sum(other[0] == machine and other[1] <= began < other[2] for other in spans) for machine, began, _ in spans
    )


@pytest.mark.slow
@pytest.mark.usefixtures("second")
def test_tasks_run_on_all_machines_and_know_which(executor: RayExecutor) -> None:
    assert executor.machines() == [FIRST, SECOND]
    assert (executor.num_workers, executor.workers_per_machine) == (4, 2)
    assert current_machine() == "local"
    places = {place for _, (place, _) in executor.map_unordered(place_and_process, range(12))}
    assert places == {FIRST, SECOND}


@pytest.mark.slow
def test_a_relative_path_means_what_it_means_to_the_driver(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.machines()  # the nodes were started elsewhere
    monkeypatch.chdir(tmp_path)
    assert list(executor.map_unordered(absolute, ["a"])) == [(0, tmp_path / "a")]


@pytest.mark.slow
@pytest.mark.usefixtures("second")
def test_what_is_fetched_comes_from_the_machine_that_is_named_in_the_order_asked(executor: RayExecutor) -> None:
    def fetch(item: str) -> list[Fetch]:
        return [Fetch(machine, machine_of, item) for machine in (SECOND, FIRST, SECOND)]

    results = dict(executor.map_unordered(join, ["a", "b", "c", "d", "e"], fetch=fetch))
    assert results == {i: f"{x}: {x}@{SECOND} {x}@{FIRST} {x}@{SECOND}" for i, x in enumerate("abcde")}


@pytest.mark.slow
@pytest.mark.usefixtures("second")
def test_more_than_the_object_store_holds_is_fetched_piece_by_piece(executor: RayExecutor) -> None:
    """40 x 2 x 8 MB through stores of 150 MiB each."""

    def fetch(item: int) -> list[Fetch]:
        return [Fetch(machine, large_array, item) for machine in (FIRST, SECOND)]

    results = dict(executor.map_unordered(total, range(40), fetch=fetch))
    assert results == {number: 2_000_000 * number for number in range(40)}


@pytest.mark.slow
@pytest.mark.usefixtures("second")
def test_the_token_of_an_earlier_local_ray_is_forgotten(cluster: Any) -> None:
    """With it this process would refuse to tell machines where objects lie."""
    import ray

    ray.shutdown()
    with _loopback_with_token():
        pass  # here a local Ray would be started

    def fetch(item: int) -> list[Fetch]:
        return [Fetch(machine, large_array, item) for machine in (FIRST, SECOND)]

    results = dict(RayExecutor(cluster.address).map_unordered(total, range(6), fetch=fetch))
    assert results == {number: 2_000_000 * number for number in range(6)}


@pytest.mark.slow
@pytest.mark.usefixtures("second")
def test_an_error_of_a_fetch_keeps_its_class_and_fields(executor: RayExecutor) -> None:
    with pytest.raises(StaleArtifactError, match="item 3") as caught:
        list(executor.map_unordered(first, range(5), fetch=lambda item: [Fetch(SECOND, fail_at_three, item)]))
    assert caught.value.reason == "its reason"


@pytest.mark.slow
@pytest.mark.usefixtures("second")
def test_a_fetch_that_always_kills_its_worker_is_given_up_with_advice(executor: RayExecutor, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="3 times, most likely for lack of memory"):
        list(executor.map_unordered(join, ["a"], fetch=lambda item: [Fetch(SECOND, kill_own_process, tmp_path / item)]))


@pytest.mark.slow
@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(("limit", "expected"), [({}, 2), ({"at_once": 1}, 1), ({"task_memory_bytes": 2**50}, 1)])
def test_the_number_of_tasks_at_once_on_a_machine_is_limited(
    executor: RayExecutor, limit: dict[str, int], expected: int
) -> None:
    list(executor.map_unordered(span, range(4)))  # the workers have started
    assert most_at_once([s for _, s in executor.map_unordered(span, range(8), **limit)]) == expected


@pytest.mark.slow
def test_work_goes_on_without_a_lost_machine(executor: RayExecutor, cluster: Any, second: Any, tmp_path: Path) -> None:
    results = executor.map_unordered(partial(place_after_seconds, seconds=1.0), [tmp_path] * 8)
    done = [next(results)]
    wait_until(lambda: any(tmp_path.glob(f"{SECOND}*")))
    cluster.remove_node(second, allow_graceful=False)
    done += results
    assert sorted(index for index, _ in done) == list(range(8))
    assert executor.machines() == [FIRST]
    assert {place for _, (place, _) in executor.map_unordered(place_and_process, range(3))} == {FIRST}


@pytest.mark.slow
def test_a_machine_that_is_lost_in_the_middle_of_a_fetch_is_named(
    executor: RayExecutor, cluster: Any, second: Any, tmp_path: Path
) -> None:
    def fetch(item: Path) -> list[Fetch]:
        seconds = 0 if item == tmp_path / "0" else 100
        return [Fetch(SECOND, partial(place_after_seconds, seconds=seconds), tmp_path)]

    results = executor.map_unordered(join, [tmp_path / str(index) for index in range(20)], fetch=fetch)
    next(results)
    cluster.remove_node(second, allow_graceful=False)
    with pytest.raises(
        MachineLostError, match=rf"node {SECOND} lost together with.*run the same command again"
    ) as caught:
        list(results)
    assert caught.value.machines == {SECOND}
    assert executor.machines() == [FIRST]
    with pytest.raises(MachineLostError, match=SECOND):
        next(executor.map_unordered(join, ["a"], fetch=lambda item: [Fetch(SECOND, machine_of, item)]))


@pytest.mark.slow
def test_a_machine_that_comes_back_in_the_middle_of_a_map_serves_again(
    executor: RayExecutor, cluster: Any, second: Any
) -> None:
    results = executor.map_unordered(join, list("abcdefgh"), fetch=lambda item: [Fetch(SECOND, machine_of, item)])
    done = [next(results)]
    cluster.remove_node(second, allow_graceful=False)
    again = try_again(lambda: cluster.add_node(node_ip_address=SECOND, num_cpus=1))
    done += results
    assert dict(done) == {index: f"{item}: {item}@{SECOND}" for index, item in enumerate("abcdefgh")}
    cluster.remove_node(again, allow_graceful=False)


@pytest.mark.slow
def test_on_one_machine_a_task_fetches_for_itself(executor: RayExecutor, tmp_path: Path) -> None:
    wait_until(lambda: executor.machines() == [FIRST])
    results = executor.map_unordered(
        fetcher_and_own_process, ["a", "b"], fetch=lambda item: [Fetch(FIRST, touch, tmp_path / item)]
    )
    assert all(fetcher == own for _, (fetcher, own) in results)


@pytest.mark.slow
def test_closing_the_generator_kills_running_tasks(executor: RayExecutor, tmp_path: Path) -> None:
    results = executor.map_unordered(touch_and_sleep, [tmp_path / "short", tmp_path / "b", tmp_path / "c"])
    next(results)
    wait_until(lambda: (tmp_path / "b").exists() and (tmp_path / "b").read_text() != "")
    worker, began = int((tmp_path / "b").read_text()), time.monotonic()
    results.close()  # type: ignore[attr-defined]
    wait_until(lambda: not is_alive(worker))
    assert time.monotonic() - began < PROMPTLY


@pytest.fixture
def marked(cluster: Any, second: Any) -> Any:
    """SECOND again, now with the custom resource "data"."""
    cluster.remove_node(second, allow_graceful=False)
    node = try_again(lambda: cluster.add_node(node_ip_address=SECOND, num_cpus=2, resources={"data": 1}))
    yield node
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.slow
@pytest.mark.usefixtures("marked")
def test_where_machines_are_marked_tasks_and_fetches_keep_to_them(executor: RayExecutor, cluster: Any) -> None:
    assert (executor.machines(), executor.num_workers) == ([SECOND], 2)
    places = executor.map_unordered(place_and_process, range(12))
    assert {place for _, (place, _) in places} == {SECOND}
    results = dict(executor.map_unordered(join, ["a", "b"], fetch=lambda item: [Fetch(SECOND, machine_of, item)]))
    assert results == {0: f"a: a@{SECOND}", 1: f"b: b@{SECOND}"}
    assert RayExecutor(cluster.address, custom_resource=None).machines() == [FIRST, SECOND]


@pytest.mark.slow
def test_what_is_missing_is_said_and_waited_for(executor: RayExecutor, caplog: pytest.LogCaptureFixture) -> None:
    executor.machines()
    answers = iter(["a lamp", "a lamp", "a wick", None])
    wait_for_machines(lambda: next(answers), [{"CPU": 64}], seconds=60)
    assert [record.message.partition(";")[0] for record in caplog.records] == ["a lamp", "a wick"]
    wait_for_machines(lambda: "a lamp", [{"CPU": 64}], seconds=60, is_stopped=lambda: True)
    with pytest.raises(ResourceError, match=rf"a lamp; the cluster has \d machines?: {FIRST} \(2 CPU, 0 GPU\).*=0 s"):
        wait_for_machines(lambda: "a lamp", [{"CPU": 64}], seconds=0)


@pytest.mark.slow
@pytest.mark.parametrize(("ray_there", "python_there"), [("2.9.0", None), (None, "3.10.1")])
def test_a_cluster_of_another_version_is_refused_with_both_versions(
    executor: RayExecutor, cluster: Any, ray_there: str | None, python_there: str | None
) -> None:
    import ray
    from ray._private.utils import compute_version_info
    from ray._raylet import GcsClient

    executor.machines()
    mine = compute_version_info()
    ray.shutdown()
    client, key = GcsClient(address=cluster.address), (b"CLUSTER_METADATA", b"cluster")
    told = client.internal_kv_get(key[0], key[1], 10)
    there = (ray_there or mine[0], python_there or mine[1])
    other = json.loads(told) | dict(zip(("ray_version", "python_version"), there, strict=True))
    client.internal_kv_put(key[0], json.dumps(other).encode(), True, key[1], 10)
    try:
        with pytest.raises(
            ResourceError,
            match="Ray {} on Python {}, this process Ray {} on Python {}.*pip install ray".format(*there, *mine[:2]),
        ):
            executor.machines()
    finally:
        ray.shutdown()
        client.internal_kv_put(key[0], told, True, key[1], 10)
    assert FIRST in executor.machines()


@pytest.mark.parametrize("cpus", [1, 2, 3, 7, 16, 64, 192])
def test_the_share_lets_as_many_tasks_on_the_largest_machine_as_are_allowed(cpus: int) -> None:
    nodes = [Node("large", "1", cpus, 0.0), Node("small", "2", 1.0, 0.0)]
    for at_once in range(1, cpus + 2):
        share = share_of_machine(nodes, at_once, None)
        assert share.fits(nodes[0]) == min(at_once, cpus)
    assert share_of_machine(nodes, None, None).fits(nodes[1]) == 1


def test_the_share_of_memory_is_cut_to_the_largest_machine() -> None:
    nodes = [Node("large", "1", 8, 1000.0), Node("small", "2", 8, 500.0)]
    assert [share_of_machine(nodes, None, 250).fits(node) for node in nodes] == [4, 2]
    assert [share_of_machine(nodes, None, 5000).fits(node) for node in nodes] == [1, 0]
