"""Training on a cluster that loses machines, is told of losses to come, and gets new ones; and loses its workers."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, Self

import pytest

from kexue_train.executor import connect_ray
from kexue_train.executor.config import ExecutionConfig
from kexue_train.executor.ray_machines import CUSTOM_RESOURCE_AMOUNT
from kexue_train.foundation.errors import ConfigError, ResourceError, TrainingError
from kexue_train.metrics.file import read_metrics
from kexue_train.train import ray_launch
from kexue_train.train.checkpoint import list_checkpoints, step_of
from kexue_train.train.job import TrainDir
from kexue_train.train.pretrain import pretrain
from kexue_train.train.restarts import WorkersLost
from tests.ray_nodes import try_again
from tests.train.tiny_training import SECONDS, curve, make_config, train_here
from tests.train.warm_python import warm_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
]  # Ray's own warnings are not ours to heed
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
FIRST, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"
STEPS = 250
COMPARED = 100  # the order of additions differs, and differences grow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A machine with room for one worker; a dead one is noticed after about a second."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    health = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 2}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}  # a node takes them
    head = {"node_ip_address": FIRST, "num_cpus": 1, "include_dashboard": False, "_system_config": health}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", warm_python())
        cluster = try_again(lambda: Cluster(initialize_head=True, head_node_args=head))
        yield cluster
    ray.shutdown()
    cluster.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _train(config, samples, out, address, cluster_timeout=600.0):
    execution = ExecutionConfig(ray_address=address, cluster_timeout=cluster_timeout)
    return pretrain(
        config,
        samples,
        out,
        launch=lambda: ray_launch.train_on_ray(config, samples, out, execution=execution),
    )


class Story:
    """A training in another thread, and what happens to its machines in this one, since only a main thread adds any."""

    def __init__(self, config, samples, out, address) -> None:
        self.paths = TrainDir(out)
        self._arguments = (config, samples, out, address)
        self._thread = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        self._training = self._thread.submit(_train, *self._arguments)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # the test has failed: no need to train to the end
            self.paths.stop.touch()
        self._thread.shutdown()
        if kind is None:
            self._training.result()

    @property
    def starts(self) -> list[dict[str, Any]]:
        return [line for line in read_metrics(self.paths.metrics) if line["kind"] in ("start", "resume")]

    def wait_for_start(self, number: int, world_size: int) -> None:
        """Until start ``number`` has so many workers and has saved a checkpoint of its own."""
        deadline = time.monotonic() + SECONDS
        while True:
            starts, newest = self.starts, list_checkpoints(self.paths.checkpoints)
            if len(starts) >= number and newest and step_of(newest[0].name) > starts[-1]["step"]:
                break
            assert not self._training.done(), self._training.exception() or "the training is over"
            assert time.monotonic() < deadline, starts
            time.sleep(0.05)
        assert (len(starts), starts[-1]["world_size"]) == (number, world_size)


def _drain(node: Any, seconds: float) -> None:
    """Announce that the machine will be taken away, as a cloud does."""
    import ray
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    deadline = int((time.time() + seconds) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    accepted, refusal = client.drain_node(node.node_id, reason, "a test", deadline)
    assert accepted, refusal


def test_machines_come_and_go_and_every_row_is_trained_on_once(samples, tmp_path, cluster):
    out = tmp_path / "out"
    config = make_config(
        STILL, steps=STEPS, num_workers=2, min_workers=1, micro_batch_size=1, checkpoint_every=25, validate_every=STEPS
    )
    second = try_again(lambda: cluster.add_node(node_ip_address=SECOND, num_cpus=1))
    with Story(config, samples, out, cluster.address) as story:
        story.wait_for_start(1, world_size=2)
        cluster.remove_node(second, allow_graceful=False)  # without a word
        story.wait_for_start(2, world_size=1)
        _signal_workers(signal.SIGSTOP)  # the node takes its time, in which the steps would come to an end
        third = try_again(lambda: cluster.add_node(node_ip_address=THIRD, num_cpus=1))
        _signal_workers(signal.SIGKILL)
        story.wait_for_start(3, world_size=2)
        _drain(third, seconds=60.0)
        story.wait_for_start(4, world_size=1)
        cluster.remove_node(third, allow_graceful=False)
    lines = curve(out, "train")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["rows"] for line in lines] == [8 * step for step in range(1, STEPS + 1)]
    stopped = [line["step"] for line in curve(out, "stop")]
    assert stopped == [story.starts[3]["step"]]  # told of the loss, the workers saved: no step was done twice
    train_here(make_config(STILL, steps=COMPARED, validate_every=COMPARED), samples, tmp_path / "one")
    one = curve(tmp_path / "one", "train")
    assert [line["loss"] for line in lines[:COMPARED]] == pytest.approx([line["loss"] for line in one], rel=1e-3)
    assert [line["tokens"] for line in lines[:COMPARED]] == [line["tokens"] for line in one]


def _signal_workers(number: signal.Signals) -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        try:
            if "TrainWorker" in " ".join(process.cmdline()):
                process.send_signal(number)
        except psutil.Error:
            continue


def test_a_cluster_without_room_is_told_with_what_it_has(samples, tmp_path, cluster):
    with pytest.raises(
        ResourceError, match=r"asks for 8 CPUs, one for each worker.*\d are there; the cluster has \d mac"
    ):
        _train(make_config(num_workers=8, micro_batch_size=1), samples, tmp_path / "out", cluster.address, 0.0)


def test_a_training_that_waits_for_machines_says_so_and_can_be_stopped(samples, tmp_path, cluster, caplog):
    out, config = tmp_path / "out", make_config(num_workers=8, micro_batch_size=1)
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(_train, config, samples, out, cluster.address)
        deadline = time.monotonic() + SECONDS
        while "waiting up to 10 min 00 s" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (out / "stop").touch()
        with pytest.raises(TrainingError, match="stopped before step 8"):
            training.result(timeout=SECONDS)


def test_a_training_that_waits_for_busy_machines_can_be_stopped(samples, tmp_path, cluster):
    import ray

    out = tmp_path / "out"
    connect_ray(cluster.address, None)

    @ray.remote(num_cpus=1)
    class Busy:
        """Holds a CPU for as long as it lives."""

        def is_there(self) -> bool:
            return True

    holders = [Busy.remote() for _ in range(int(ray.cluster_resources()["CPU"]))]
    ray.get([holder.is_there.remote() for holder in holders])
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(_train, make_config(), samples, out, cluster.address)
        deadline = time.monotonic() + SECONDS
        while not any(group["state"] == "PENDING" for group in ray.util.placement_group_table().values()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (out / "stop").touch()
        with pytest.raises(TrainingError, match="stopped before step 8"):
            training.result(timeout=SECONDS)


def test_training_keeps_to_marked_machines(cluster):
    connect_ray(cluster.address, None)
    pool = ray_launch._Pool("CPU", "train")
    assert pool.share() == {"CPU": 1}
    everywhere = pool.room()
    node = try_again(lambda: cluster.add_node(node_ip_address="127.0.0.6", num_cpus=3, resources={"train": 1}))
    assert [node.machine for node in pool.nodes()] == ["127.0.0.6"]
    assert (pool.room(), pool.share()) == (3, {"CPU": 1, "train": CUSTOM_RESOURCE_AMOUNT})
    assert ray_launch._Pool("CPU", None).room() == everywhere + 3
    cluster.remove_node(node, allow_graceful=False)


@pytest.mark.parametrize(("fewest", "kind"), [(True, ResourceError), (False, WorkersLost)])
def test_a_start_without_room_is_tried_again_with_fewer_workers_if_there_may_be_fewer(cluster, fewest, kind):
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    connect_ray(cluster.address, None)
    error = SimpleNamespace(controller_failure=WorkerGroupStartupTimeoutError(2))
    explained = ray_launch._explained(error, 2, ray_launch._Pool("CPU", None), fewest)
    assert type(explained) is kind
    assert "no room for 2 training workers: they take one CPU each, and there are" in str(explained)


def test_what_a_worker_finds_wrong_comes_back_as_it_was_raised(samples, tmp_path, cluster):
    if not list(cluster.worker_nodes):
        try_again(lambda: cluster.add_node(node_ip_address="127.0.0.5", num_cpus=1))
    config = make_config(num_workers=2)
    broken = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": 3})})
    with pytest.raises(ConfigError, match="global_batch_size=8 is not a multiple of micro_batch_size=3"):
        ray_launch.train_on_ray(
            broken, samples, tmp_path / "out", execution=ExecutionConfig(ray_address=cluster.address)
        )
