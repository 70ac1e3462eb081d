"""Workers are killed, hang, are stopped, lose their driver: the training ends as if nothing had happened."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from kexue_train.foundation.errors import ResourceError, TrainingError
from kexue_train.metrics.file import read_metrics
from kexue_train.train import distributed, objective, torchrun_launch
from kexue_train.train.checkpoint import list_checkpoints
from kexue_train.train.faults import stop
from kexue_train.train.faults.stop import Ending, StopRequest
from kexue_train.train.faults.watchdog import HUNG
from kexue_train.train.job import JobConfig, TrainDir
from kexue_train.train.launch import preserve_process_state
from kexue_train.train.pretrain import pretrain
from kexue_train.train.torchrun_launch import train_with_torchrun
from tests.free_port import free_port
from tests.train.tiny_training import (
    SECONDS,
    curve,
    final_tensors,
    make_config,
    rank_environment,
    same_bits,
    start_worker,
    train_by_ranks,
    train_here,
)
from tests.train.warm_python import warm_python
from tests.train.warm_worker import WarmProcess

_FAULTY = str(Path(__file__).with_name("faulty_worker.py"))


def _two(**train: object) -> JobConfig:
    return make_config(num_workers=2, **train)


def _torchrun(config: JobConfig, samples: Path, out: Path) -> None:
    pretrain(config, samples, out, launch=lambda: train_with_torchrun(config, samples, out))


def _is_that_of(trained: Path, out: Path) -> bool:
    """Same rows, losses, learning rates and validation in every step, same final bits."""
    return curve(out) == curve(trained) and same_bits(final_tensors(out), final_tensors(trained))


def _wait_until(condition, what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def _messages_are_heard(caplog):
    caplog.set_level(logging.INFO)


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory: pytest.TempPathFactory, samples: Path) -> Path:
    out = tmp_path_factory.mktemp("trained-by-two") / "pretrain"
    train_by_ranks(_two(), samples, out)
    return out


@pytest.fixture
def fault(tmp_path, monkeypatch):
    """``fault("kill", rank, step)``: what the workers that torchrun starts will do, once."""
    monkeypatch.setattr(torchrun_launch, "_WORKER", (_FAULTY,))
    monkeypatch.setattr(sys, "executable", warm_python())

    def cause(kind: str, rank: int, step: int) -> None:
        monkeypatch.setenv("FAULT", f"{kind} {rank} {step} {tmp_path / 'fault-done'}")

    return cause


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(samples, tmp_path, trained_by_two, fault, rank, caplog):
    fault("kill", rank, 5)
    _torchrun(_two(), samples, tmp_path / "out")
    assert [line["step"] for line in curve(tmp_path / "out", "resume")] == [4]
    assert _is_that_of(trained_by_two, tmp_path / "out")
    assert f"rank {rank} was killed by SIGKILL" in caplog.text


@pytest.mark.slow
def test_a_hung_rank_is_named_and_the_training_goes_on(samples, tmp_path, trained_by_two, fault, caplog):
    fault("hang", 1, 5)
    _torchrun(_two(hang_timeout=8.0), samples, tmp_path / "out")
    assert _is_that_of(trained_by_two, tmp_path / "out")
    assert "hung and was ended by its watchdog" in caplog.text
    log = (tmp_path / "out" / "logs" / "torchrun.log").read_text()
    assert f"exitcode  : {HUNG}" in log
    said = [line for line in log.splitlines() if "has finished no micro-step for" in line]
    assert said
    assert all("behind: rank 1, after micro-step 5" in line and "faulty_worker.py" in line for line in said)
    stacks = (tmp_path / "out" / "logs" / "rank-0.stacks.txt").read_text()
    assert "all_reduce" in stacks
    assert "behind: rank 1" in stacks


@pytest.mark.slow
def test_faults_that_come_back_use_the_budget_up(samples, tmp_path, monkeypatch):
    (tmp_path / "dies.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setattr(torchrun_launch, "_WORKER", (str(tmp_path / "dies.py"),))
    monkeypatch.setattr(sys, "executable", warm_python())
    with pytest.raises(TrainingError, match=r"killed by SIGKILL.*1 restarts without a new checkpoint"):
        _torchrun(_two(max_restarts=1), samples, tmp_path / "out")


def _start_driver(
    config: JobConfig, samples: Path, out: Path, tmp_path: Path, launcher: str, python: str, fault: str = "slow 0 3"
) -> WarmProcess:
    """``kexue train`` as a process of its own, whose workers take two seconds per step from step 3 on."""
    file, program = tmp_path / "run.yaml", tmp_path / "slow_driver.py"
    others = {"name": "tiny", "corpus": {"inputs": ["unused"]}, "samples": {"seq_len": 32}}
    file.write_text(json.dumps(config.model_dump(mode="json") | others), encoding="utf-8")
    program.write_text(
        "import sys, time; from kexue_train.train import loop, torchrun_launch\n"
        "from kexue_train.cli import app as cli\n"
        f"torchrun_launch._WORKER = ({_FAULTY!r},); one_step = loop.run_step\n"
        "def slow(training, *more):\n"
        "    result = one_step(training, *more); time.sleep(2.0 * (training.state.step >= 3)); return result\n"
        "loop.run_step = slow; sys.argv[0] = 'kexue'; cli.main()\n"
    )
    command = [program, "train", "-c", file, "--samples", samples, "-o", out, "--launcher", launcher]
    return WarmProcess(command, os.environ | {"FAULT": f"{fault} {tmp_path / 'none'}"}, python=python)


def _wait_for_step(out: Path, step: int, process: WarmProcess) -> None:
    def reached() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return any(line["kind"] == "train" and line["step"] >= step for line in read_metrics(TrainDir(out).metrics))

    _wait_until(reached, f"step {step} of {out}")


def _workers_of(out: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if str(out) in command and "--supervised" in command and "torch.distributed.run" not in " ".join(command):
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "launcher", "code"),
    [(signal.SIGTERM, "torchrun", 143), (signal.SIGINT, "torchrun", 130), (signal.SIGTERM, "local", 143)],
    ids=["SIGTERM torchrun", "Ctrl-C torchrun", "SIGTERM local"],
)
def test_a_driver_that_is_told_to_stop_lets_the_workers_save_first(
    samples, tmp_path, trained, trained_by_two, number, launcher, code
):
    config, out = make_config() if launcher == "local" else _two(), tmp_path / "out"
    driver = _start_driver(config, samples, out, tmp_path, launcher, warm_python())
    _wait_for_step(out, 4, driver)
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=SECONDS)
    assert driver.returncode == code, output
    assert "stopping: the workers save a checkpoint first" in output
    last = curve(out, "train", "stop")[-1]
    assert last["kind"] == "stop"
    assert list_checkpoints(TrainDir(out).checkpoints)[0].name == f"step-{last['step']:08d}"  # no step is lost
    assert not (out / "stop").exists()
    if launcher == "local":
        train_here(config, samples, out)
    else:
        train_by_ranks(config, samples, out)
    assert _is_that_of(trained if launcher == "local" else trained_by_two, out)


@pytest.mark.slow
def test_workers_end_with_a_killed_driver_and_the_same_command_goes_on(samples, tmp_path, trained_by_two, monkeypatch):
    out = tmp_path / "out"
    python = sys.executable  # what the kernel does to the workers of a driver needs processes that are its own
    driver = _start_driver(_two(), samples, out, tmp_path, "torchrun", python, fault="hang 0 6")  # cannot end before
    _wait_for_step(out, 5, driver)
    workers = _workers_of(out)
    assert len(workers) == 2
    driver.kill()
    driver.communicate()
    _wait_until(lambda: not any(worker.is_running() for worker in workers), "the workers end")
    monkeypatch.setattr(sys, "executable", warm_python())
    _torchrun(_two(), samples, out)
    [resumed] = [line["step"] for line in curve(out, "resume")]
    assert resumed >= 2
    assert _is_that_of(trained_by_two, out)


@pytest.mark.slow
def test_a_training_goes_from_two_workers_to_one_and_back(samples, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    out, whole, script = tmp_path / "out", tmp_path / "whole", Path(__file__).with_name("kill_after_step.py")
    train_here(make_config(still), samples, whole)
    for workers, last in ((2, 3), (1, 6)):
        config, port = make_config(still, num_workers=workers), free_port()
        ranks = [
            start_worker(
                config, samples, out, script=f"{script} {last}", environment=rank_environment(rank, workers, port)
            )
            for rank in range(workers)
        ]
        outputs = [process.communicate(timeout=SECONDS)[0] for process in ranks]
        assert {process.returncode for process in ranks} == {-signal.SIGKILL}, outputs
    train_by_ranks(make_config(still, num_workers=2), samples, out)
    starts = [(line["step"], line["world_size"]) for line in curve(out, "start", "resume")]
    assert [workers for _, workers in starts] == [2, 1, 2]
    lines, expected = curve(out, "train"), curve(whole, "train")
    assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in expected], rel=1e-4)
    same = ("step", "rows", "tokens", "lr", "epoch")
    assert [[line[name] for name in same] for line in lines] == [[line[name] for name in same] for line in expected]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["config", "samples"])
def test_a_rank_with_something_else_is_named_on_all_ranks(samples, tmp_path, what):
    if what == "samples":
        import shutil

        other = shutil.copytree(samples, tmp_path / "samples")
        manifest = json.loads((other / "manifest.json").read_text())
        manifest["settings"]["heldout_fraction"] = 0.11
        (other / "manifest.json").write_text(json.dumps(manifest))
    port, ranks = free_port(), []
    for rank in range(3):
        odd = rank == 2
        config = make_config(num_workers=1, global_batch_size=12, lr=3e-3 if odd and what == "config" else 2e-3)
        data = other if odd and what == "samples" else samples
        file = tmp_path / f"{rank}.yaml"
        file.write_text(config.model_dump_json())
        command = ["-m", "kexue_train.train.worker", "--config", file, "--samples", data, "--out", tmp_path / "out"]
        ranks.append(WarmProcess(command, rank_environment(rank, 3, port)))
    for process in ranks:
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 2, said
        assert f"the workers differ in their {what}: rank 2 on " in said


@pytest.mark.slow
def test_workers_that_srun_starts_find_each_other(samples, tmp_path, trained_by_two):
    out, port = tmp_path / "out", str(free_port())
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "127.0.0.[1-2]"}
    ranks, script = [], "-m kexue_train.train.worker --local_rank=0"  # which deepspeed's launcher would add
    for rank in range(2):
        task = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_PORT": port}
        ranks.append(start_worker(_two(), samples, out, script=script, environment=os.environ | step | task))
    for process in ranks:
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, output
    assert _is_that_of(trained_by_two, out)


def test_nobody_at_the_address_is_told_with_rank_address_and_time(samples, tmp_path, monkeypatch):

    monkeypatch.setattr(distributed, "RENDEZVOUS_TIMEOUT", timedelta(seconds=1))
    for name, value in rank_environment(1, 2, free_port()).items():
        monkeypatch.setenv(name, value)
    with (
        preserve_process_state(),
        pytest.raises(ResourceError, match=r"rank 1 of 2 on .* does not meet the others at 127\.0\.0\.1:\d+ .* 1 s"),
    ):
        distributed.join_process_group("gloo", hang_timeout=1.0)


def test_a_clock_that_jumps_changes_nothing(samples, tmp_path, trained, monkeypatch):
    now, jumps = time.time, iter(range(10**6))
    day = 86_400.0
    monkeypatch.setattr(time, "time", lambda: now() + day * (-1) ** next(jumps) * 3)
    assert train_here(make_config(hang_timeout=60.0), samples, tmp_path / "out") is Ending.FINISHED
    assert next(jumps) > 4
    assert _is_that_of(trained, tmp_path / "out")


def test_a_stale_stop_file_does_not_stop_the_next_start(samples, tmp_path, trained):
    out = tmp_path / "out"
    out.mkdir()
    (out / "stop").touch()
    pretrain(make_config(), samples, out, launch=lambda: train_here(make_config(), samples, out))
    assert _is_that_of(trained, out)


def test_a_request_to_stop_is_not_kept_waiting_by_a_validation_which_the_next_start_makes_up_for(
    samples, tmp_path, trained, monkeypatch
):
    config, out = make_config(), tmp_path / "out"
    for last, scored in ((3, []), (7, [4])):  # asked for in the step that is to be validated, each time
        reached = lambda *_, last=last: (any(line["step"] >= last for line in curve(out, "train")), False)  # noqa: E731
        monkeypatch.setattr(StopRequest, "poll", reached)
        assert train_here(config, samples, out) is Ending.STOPPED
        assert [line["step"] for line in curve(out, "validation")] == scored
        assert [line["step"] for line in curve(out, "stop")][-1] == last + 1
    assert not (out / "manifest.json").exists()
    monkeypatch.undo()
    assert train_here(config, samples, out) is Ending.FINISHED
    assert _is_that_of(trained, out)
    manifests = [(root / "checkpoints" / "step-00000008" / "manifest.json").read_bytes() for root in (trained, out)]
    assert manifests[0] == manifests[1]


def test_a_request_to_stop_in_the_middle_of_a_validation_ends_it(samples, tmp_path, trained, monkeypatch):
    out, step = tmp_path / "out", objective.PretrainingObjective.forward

    def forward(self: objective.PretrainingObjective, batch: object) -> object:
        if not self.training:
            (out / "stop").touch()
        return step(self, batch)

    monkeypatch.setattr(objective.PretrainingObjective, "forward", forward)
    monkeypatch.setattr(stop, "_POLL_SECONDS", 0.0)
    assert train_here(make_config(), samples, out) is Ending.STOPPED
    assert [line["step"] for line in curve(out, "validation", "stop")] == [4]
    monkeypatch.undo()
    assert train_here(make_config(), samples, out) is Ending.FINISHED
    assert _is_that_of(trained, out)


def test_a_stop_file_ends_a_training_with_a_checkpoint(samples, tmp_path, trained):
    config, out = make_config(), tmp_path / "out"
    out.mkdir()
    (out / "stop").touch()  # while it runs, as far as the worker can tell
    assert train_here(config, samples, out) is Ending.STOPPED
    stopped = list_checkpoints(TrainDir(out).checkpoints)[0].name
    assert stopped in ("step-00000001", "step-00000002")
    assert not (out / "stop").exists()
    assert train_here(config, samples, out) is Ending.FINISHED
    assert _is_that_of(trained, out)
