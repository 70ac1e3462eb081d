"""Workers of one machine: what launchers around them and the machine's name and networks may not do to them."""

from __future__ import annotations

import logging
import os
import socket
import time
from types import SimpleNamespace

import psutil
import pytest

from kexue_train.executor.config import ExecutionConfig
from kexue_train.foundation.errors import ConfigError
from kexue_train.train import distributed, launch, restarts, torchrun_launch
from kexue_train.train.distributed import loopback_interfaces, use_interface_towards, without_launcher
from kexue_train.train.job import TrainDir
from kexue_train.train.restarts import StartWatch
from tests.train.tiny_training import make_config

# Kubernetes' training operator, torchrun, MPI, DeepSpeed's launcher.
OF_LAUNCHERS = (
    "PET_NNODES", "PET_NPROC_PER_NODE", "PET_RDZV_ENDPOINT", "PET_MASTER_ADDR", "PET_NODE_RANK", "PET_STANDALONE",
    "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_ERROR_FILE",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
    "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
    "CROSS_RANK", "CROSS_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK",
    "NCCL_COMM_ID",
)  # fmt: skip
OF_THE_USER = (
    "PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NCCL_DEBUG", "RAY_ADDRESS", "SLURM_JOB_ID", "MASTER_KEY",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "PETS", "RANKING", "WANDB_MODE", "MLFLOW_TRACKING_URI",
)  # fmt: skip


def test_what_launchers_say_is_told_from_what_the_user_says():
    assert set(without_launcher(dict.fromkeys(OF_LAUNCHERS + OF_THE_USER, "1"))) == set(OF_THE_USER)


def test_no_launcher_hands_on_what_another_one_has_said(tmp_path, monkeypatch):
    for name in OF_LAUNCHERS:
        monkeypatch.setenv(name, "7")
    before, seen = dict(os.environ), []
    monkeypatch.setattr(launch, "LAUNCHERS", {"local": lambda _: seen.append(dict(os.environ))})
    launch.launcher_of(make_config(launcher="local"), tmp_path, tmp_path, ExecutionConfig())()
    assert not set(seen[0]) & set(OF_LAUNCHERS)
    assert dict(os.environ) == before


def test_torchrun_is_told_to_meet_on_this_machine_alone(tmp_path, monkeypatch, samples):
    started = []

    def start(command, **options):
        started.append((command, options["env"]))
        return SimpleNamespace(pid=0, poll=lambda: 0, wait=lambda: 0)

    monkeypatch.setattr(torchrun_launch.subprocess, "Popen", start)
    monkeypatch.setenv("PET_NNODES", "2")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    torchrun_launch.train_with_torchrun(make_config(num_workers=2), samples, tmp_path / "out")
    [(command, environment)] = started
    text = " ".join(command)
    assert "--nnodes 1 --nproc-per-node 2" in text
    assert "--rdzv-endpoint 127.0.0.1:0 --local-addr 127.0.0.1" in text
    assert "PET_NNODES" not in environment
    assert environment["GLOO_SOCKET_IFNAME"] in psutil.net_if_addrs()
    assert environment["NCCL_SOCKET_IFNAME"] == environment["GLOO_SOCKET_IFNAME"]


def test_a_machine_without_a_loopback_address_leaves_the_choice_of_the_interface(monkeypatch):
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"eth0": [SimpleNamespace(address="fe80::1%eth0")]})
    assert loopback_interfaces() == {}


@pytest.mark.parametrize(
    ("own", "name"), [("10.0.0.5", "eth0"), ("fd00::5", "eth1"), ("fe80::2", "eth1"), ("127.0.1.1", "lo"), ("", None)]
)
def test_gloo_takes_the_interface_that_leads_to_the_others_by_ipv4_or_ipv6(own, name, monkeypatch):
    def at(*addresses):
        return [SimpleNamespace(address=address) for address in addresses]

    interfaces = {"lo": at("127.0.0.1", "::1"), "eth0": at("10.0.0.5"), "eth1": at("fd00::5", "fe80::2%eth1")}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(distributed, "_own_address_towards", lambda _: own)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    use_interface_towards("head")
    assert os.environ.get("GLOO_SOCKET_IFNAME") == name


def test_the_own_address_is_found_by_either_protocol():
    assert distributed._own_address_towards("127.0.0.1") == "127.0.0.1"
    assert distributed._own_address_towards("no-such-host.invalid") == ""
    if socket.has_ipv6 and any(
        address.address == "::1" for found in psutil.net_if_addrs().values() for address in found
    ):
        assert distributed._own_address_towards("::1") == "::1"


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": "0", "WORLD_SIZE": "4"}, {"WORLD_SIZE": "2"}])
def test_half_a_group_is_refused_by_the_name_of_what_is_missing(given, monkeypatch):
    monkeypatch.setattr(os, "environ", without_launcher(os.environ) | given)
    missing = {"RANK", "WORLD_SIZE", "MASTER_PORT"} - given.keys()
    with pytest.raises(ConfigError, match=" and ".join(sorted(missing))):
        distributed.join_process_group("gloo", hang_timeout=1.0)


def test_workers_that_do_not_come_up_are_spoken_of_once_with_what_is_known(tmp_path, monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    paths = TrainDir(tmp_path)
    watch = StartWatch(paths, lambda: "torchrun has started none of them")
    assert not watch.have_come_up()
    assert not caplog.records
    now[0] = restarts.SECONDS_TO_COME_UP + 1
    assert restarts.SECONDS_TO_COME_UP < 60
    with caplog.at_level(logging.WARNING):
        assert [watch.have_come_up() for _ in range(3)] == [False] * 3
    [said] = caplog.messages
    assert "torchrun has started none of them" in said
    paths.logs.mkdir()
    restarts.say_started(paths)
    assert watch.have_come_up()


def test_workers_that_could_not_say_that_they_have_met_are_known_by_their_metrics(tmp_path):
    paths = TrainDir(tmp_path)
    paths.metrics.write_text("{}\n")
    watch = StartWatch(paths, str)
    assert not watch.have_come_up()
    paths.metrics.write_text("{}\n{}\n")
    assert watch.have_come_up()


@pytest.mark.slow
def test_a_stop_ends_workers_at_once_that_have_not_met(tmp_path, samples, monkeypatch):
    (tmp_path / "sleeps.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(torchrun_launch, "_WORKER", (str(tmp_path / "sleeps.py"),))
    monkeypatch.setattr(torchrun_launch, "_SECONDS_TO_END", 600.0)
    paths, processes = TrainDir(tmp_path / "out"), []

    def state(torchrun: int, _log: str) -> str:
        processes.extend(psutil.Process(torchrun).children())
        if len(processes) >= 2:
            paths.stop.touch()
        return ""

    monkeypatch.setattr(torchrun_launch, "_state", state)
    monkeypatch.setattr(StartWatch, "have_come_up", lambda self: bool(self._state()))
    torchrun_launch.train_with_torchrun(make_config(num_workers=2), samples, paths.root)
    psutil.wait_procs(processes, timeout=10)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
