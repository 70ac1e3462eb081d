"""Executors: equal results wherever tasks run, errors with their class, lost workers replaced, few tasks in flight."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from kexue_train.executor import Executor, Fetch, LocalExecutor, connect_ray, current_machine
from kexue_train.foundation.errors import CorpusError, MachineLostError, ResourceError, StaleArtifactError

SECONDS = 600.0
"""Far more than anything here takes, also on a machine that does much else."""
PROMPTLY = 60.0  # half of what the tasks would sleep
"""Far less than the two minutes of a long task; ending it takes a second on a machine that does nothing else."""


@pytest.fixture(params=["local", "ray"])
def executor(request: pytest.FixtureRequest) -> Executor:
    """Two local processes, or two CPUs of a local Ray cluster."""
    return LocalExecutor(2) if request.param == "local" else request.getfixturevalue("local_ray")


def square(number: int) -> int:
    return number * number


def power(number: int, exponent: int) -> int:
    return number**exponent


def fail_at_three(number: int) -> int:
    if number == 3:
        raise StaleArtifactError("item 3", "its reason")
    return number


def touch(path: Path) -> int:
    path.write_text(str(os.getpid()))
    return os.getpid()


def kill_own_process_once(marker: Path) -> str:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return marker.name
    return kill_own_process(marker)


def kill_own_process(marker: Path) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def kill_at_ten(number: int) -> int:
    if number == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def reverse(data: bytes) -> bytes:
    return data[::-1]


class OddError(Exception):
    """Cannot be unpickled: it takes two arguments and keeps one."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"odd: {first}, {second}")


def refuse_oddly(number: int) -> int:
    raise OddError(1, 2)


def return_a_lock(number: int) -> Any:
    return threading.Lock()


def list_all(item: int, fetched: list[int]) -> list[int]:
    return [item, *fetched]


def place(item: int) -> str:
    return current_machine()


def nap(item: int) -> tuple[float, float]:
    began = time.time()
    time.sleep(0.1)
    return began, time.time()


def touch_and_sleep(path: Path) -> None:
    touch(path)
    time.sleep(0 if path.name == "short" else 120)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 2, 25])
def test_every_item_gives_its_result_once(executor: Executor, count: int) -> None:
    results = list(executor.map_unordered(square, range(count)))
    assert sorted(results) == [(number, number * number) for number in range(count)]


@pytest.mark.slow
def test_a_partial_function_is_a_task_like_any_other(executor: Executor) -> None:
    cube = functools.partial(power, exponent=3)
    assert sorted(executor.map_unordered(cube, [2, 3, 4])) == [(0, 8), (1, 27), (2, 64)]


@pytest.mark.slow
def test_an_error_keeps_its_class_and_fields_and_ends_the_map(executor: Executor) -> None:
    with pytest.raises(StaleArtifactError, match="item 3") as caught:
        list(executor.map_unordered(fail_at_three, range(20)))
    assert caught.value.reason == "its reason"


@pytest.mark.slow
def test_the_task_of_a_killed_worker_is_done_again(executor: Executor, tmp_path: Path) -> None:
    markers = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    markers[1].touch()
    markers[2].touch()
    assert sorted(executor.map_unordered(kill_own_process_once, markers)) == [(0, "a"), (1, "b"), (2, "c")]


@pytest.mark.slow
def test_a_task_that_always_kills_its_worker_is_given_up_with_advice(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"3 times, most likely for lack of memory.*finished work is kept"):
        list(executor.map_unordered(kill_own_process, [tmp_path / "a", tmp_path / "b"]))


@pytest.mark.slow
def test_any_number_of_workers_may_be_lost_as_long_as_work_goes_on(executor: Executor, tmp_path: Path) -> None:
    markers = [tmp_path / str(index) for index in range(6)]
    results = executor.map_unordered(kill_own_process_once, markers)
    assert sorted(results) == [(index, str(index)) for index in range(6)]


@pytest.mark.slow
def test_all_else_is_done_before_a_task_that_kills_its_worker_is_given_up() -> None:
    results = LocalExecutor(2).map_unordered(kill_at_ten, range(40))
    done = [next(results) for _ in range(39)]
    assert sorted(done) == [(number, number) for number in range(40) if number != 10]
    with pytest.raises(ResourceError, match="the last one ended by signal 9"):
        next(results)


@pytest.mark.slow
def test_items_and_results_may_be_larger_than_a_pipe_holds(executor: Executor) -> None:
    items = [bytes([number]) * 3_000_000 for number in range(6)]
    assert [result for _, result in sorted(executor.map_unordered(reverse, items))] == items


@pytest.mark.slow
@pytest.mark.parametrize("function", [refuse_oddly, return_a_lock])
def test_what_cannot_be_sent_back_ends_the_map_with_its_text(function: Callable[[int], Any]) -> None:
    with pytest.raises((RuntimeError, TypeError), match=r"odd: 1, 2|cannot pickle '_thread.lock'"):
        list(LocalExecutor(2).map_unordered(function, [1, 2]))


@pytest.mark.slow
def test_an_error_says_where_in_the_worker_it_was_raised(executor: Executor) -> None:
    with pytest.raises(StaleArtifactError) as caught:
        list(executor.map_unordered(fail_at_three, [3, 3]))
    assert "in fail_at_three" in caught.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 9])
def test_a_task_gets_what_it_wants_fetched_in_the_order_asked(executor: Executor, count: int) -> None:
    machine, *others = executor.machines()
    assert not others

    def fetch(item: int) -> list[Fetch]:
        return [Fetch(machine, square, item), Fetch(machine, square, item + 1)]

    results = sorted(executor.map_unordered(list_all, range(count), fetch=fetch))
    assert results == [(item, [item, item**2, (item + 1) ** 2]) for item in range(count)]


@pytest.mark.slow
def test_a_fetch_from_a_machine_that_does_not_exist_names_it(executor: Executor) -> None:
    with pytest.raises(MachineLostError, match=r"node 192\.0\.2\.7 lost together with the finished work") as caught:
        list(executor.map_unordered(list_all, range(3), fetch=lambda item: [Fetch("192.0.2.7", square, item)]))
    assert pickle.loads(pickle.dumps(caught.value)).machines == {"192.0.2.7"}


@pytest.mark.slow
def test_a_task_knows_its_machine_by_the_name_the_executor_has_for_it(executor: Executor) -> None:
    assert {place for _, place in executor.map_unordered(place, range(4))} == set(executor.machines())
    assert (executor.num_workers, executor.workers_per_machine) == (2, 2)


@pytest.mark.slow
def test_one_task_at_once_is_done_after_the_other(executor: Executor) -> None:
    spans = sorted(span for _, span in executor.map_unordered(nap, range(4), at_once=1, task_memory_bytes=2**60))
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))
    with pytest.raises(ValueError, match="at_once=0"):
        list(executor.map_unordered(square, range(4), at_once=0))


@pytest.mark.slow
def test_no_more_than_two_tasks_per_worker_are_in_flight(executor: Executor, tmp_path: Path) -> None:
    results = executor.map_unordered(touch, [tmp_path / str(index) for index in range(40)])
    next(results)
    time.sleep(2)  # nothing is submitted while the consumer is busy
    assert 1 <= len(list(tmp_path.iterdir())) <= 4
    assert len(list(results)) == 39


@pytest.mark.slow
def test_a_consumer_may_stop_early(executor: Executor) -> None:
    results = executor.map_unordered(square, range(40))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(list(executor.map_unordered(square, range(5)))) == 5


@pytest.mark.slow
def test_tasks_run_in_other_processes(executor: Executor, tmp_path: Path) -> None:
    processes = {process for _, process in executor.map_unordered(touch, [tmp_path / str(i) for i in range(8)])}
    assert os.getpid() not in processes


def test_workers_do_not_import_the_program_that_started_them(tmp_path: Path) -> None:
    """A flow's imports take seconds; the program here counts how often it is imported."""
    program = """
import math
with open("imported", "a") as file:
    file.write("once ")
if __name__ == "__main__":
    from kexue_train.executor import LocalExecutor
    print(sorted(LocalExecutor(2).map_unordered(math.factorial, [3, 4])))
"""
    (tmp_path / "program.py").write_text(program)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-m", "program"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "[(0, 6), (1, 24)]\n", done.stderr
    assert (tmp_path / "imported").read_text() == "once "


def test_one_worker_is_this_process_and_works_item_by_item(tmp_path: Path) -> None:
    results = LocalExecutor(1).map_unordered(touch, [tmp_path / "a", tmp_path / "b"])
    assert next(results) == (0, os.getpid())
    assert not (tmp_path / "b").exists()


def test_an_error_in_this_process_keeps_its_class() -> None:
    def refuse(item: int) -> int:
        raise CorpusError("broken")

    with pytest.raises(CorpusError, match="broken"):
        list(LocalExecutor(1).map_unordered(refuse, [1]))


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_a_local_ray_listens_on_loopback_alone() -> None:
    connect_ray(None, 2)
    me = psutil.Process()
    listening = [
        (process.name(), connection.laddr.ip)
        for process in [me, *me.children(recursive=True)]
        for connection in _sockets_of(process)
        if connection.status == psutil.CONN_LISTEN
    ]
    assert any(name.startswith("gcs_server") for name, _ in listening)
    assert any(name.startswith("raylet") for name, _ in listening)
    assert not [(name, address) for name, address in listening if address.removeprefix("::ffff:") != "127.0.0.1"]


@pytest.mark.usefixtures("local_ray")
def test_a_local_ray_serves_nobody_without_its_token() -> None:
    import grpc
    import ray

    connect_ray(None, 2)
    address = ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")(b"", timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert "RAY_AUTH_TOKEN" not in os.environ, "of the cluster alone, not of later ones"


def _sockets_of(process: psutil.Process) -> list[Any]:
    try:
        return list(process.net_connections(kind="inet"))
    except psutil.NoSuchProcess:
        return []


@pytest.mark.usefixtures("local_ray")
def test_ray_leaves_the_signal_handlers_alone_and_joins_once() -> None:
    import ray

    before = ray.get_runtime_context().get_job_id()
    connect_ray(None, 2)
    assert ray.get_runtime_context().get_job_id() == before
    # Ignored where the tests run in the background; Ray's own would be a function of Ray.
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one may be running for the tests above."""
    pytest.importorskip("ray")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("kexue_train.executor.ray_cluster._SECONDS_TO_ANSWER", 0.5)


@pytest.mark.usefixtures("no_ray_yet")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_a_ray_cluster_out_of_reach_is_refused_at_once_with_its_address(address: str) -> None:
    with pytest.raises(ResourceError, match=f"the Ray cluster at {address} cannot be reached: .*check that its head"):
        connect_ray(address, None)


@pytest.mark.usefixtures("no_ray_yet")
@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("says", [b"", b"HTTP/1.0 400 no\r\n"])
def test_something_else_at_the_address_is_refused_before_ray_waits_for_it(says: bytes, scheme: str) -> None:
    def answer(server: socket.socket) -> None:
        server.settimeout(20)
        with contextlib.suppress(OSError):  # until the client gives up, and the server is closed
            while True:
                connection, _ = server.accept()
                connections.append(connection)
                connection.sendall(says)

    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        with pytest.raises(ResourceError, match="cannot be reached: something answers there, but it is not Ray"):
            connect_ray(f"{scheme}127.0.0.1:{server.getsockname()[1]}", None)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in connections:
        connection.close()


@pytest.mark.usefixtures("no_ray_yet")
def test_a_cluster_without_a_node_here_is_refused_with_the_ways_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kexue_train.executor.ray_cluster._refusal", lambda *_: None)
    monkeypatch.setattr("ray._private.services.find_node_ids", set)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            ResourceError, match=rf"{address} has no node on this machine.*ray start --address={address}"
        ):
            connect_ray(address, None)


_OF_A_BUSY_HEAD = (
    "Initialization failure from server:\nTraceback (most recent call last):\n  File ...\n"
    "RuntimeError: Proxy failed to Connect to backend!"
)


@pytest.mark.usefixtures("no_ray_yet")
@pytest.mark.parametrize("failures", [2, 3])
def test_a_head_that_is_too_busy_for_a_client_is_asked_again_and_its_reason_told(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Exception | None] = [*[ConnectionAbortedError(_OF_A_BUSY_HEAD)] * failures, None]

    def init(**_: object) -> None:
        if error := answers.pop(0):
            raise error

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("kexue_train.executor.ray_cluster._require_reachable", lambda _: None)
    refusal = pytest.raises(ResourceError, match=r"cannot be reached or started \(RuntimeError: Proxy failed")
    with refusal if failures == 3 else contextlib.nullcontext():
        connect_ray("ray://head:10001", None)
    assert caplog.text.count("ray://head:10001 is busy (RuntimeError: Proxy failed to Connect to backend!)") == 2
    assert len(answers) == (1 if failures == 3 else 0)


def test_a_missing_ray_is_reported_with_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ResourceError, match=r"pip install 'kexue_train\[cluster\]'"):
        connect_ray(None, None)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)


def is_alive(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
